"""`amp auto`: bfloat16 where it is native and faster, and who follows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from running import tiny

from inception_v4.accelerator import ROWS, Accelerator, select
from inception_v4.accelerator.precision import choose_amp
from inception_v4.inference.validate import asked_precision
from inception_v4.settings.defaults import Hardware, choose_defaults
from inception_v4.settings.recipes import build_config, load_config
from inception_v4.settings.schema import Training
from inception_v4.training.train import train


def supporting(answer: str) -> type[Accelerator]:
    class Device(Accelerator):
        def amp_support(self, amp: str) -> str:
            return answer

    return Device


def test_what_is_given_stays() -> None:
    assert [choose_amp(select("cpu"), amp) for amp in ("off", "bf16", "fp16")] == [
        ("off", ""), ("bf16", ""), ("fp16", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(("support", "amp"), [("native", "bf16"), ("emulated", "off"), ("no", "off")])
def test_bfloat16_where_it_is_native(support: str, amp: str) -> None:
    chosen, reason = choose_amp(supporting(support)(), "auto")
    assert chosen == amp and ("no native" in reason) == (amp == "off")


def test_where_nobody_has_measured_it_float32_stays() -> None:
    device = supporting("native")
    device.bf16_pays = False
    assert choose_amp(device(), "auto")[0] == "off"
    assert [name for name, row in ROWS.items() if not row.bf16_pays] == ["npu", "xpu", "mps"]


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not list them")
def test_a_processor_needs_instructions_for_it() -> None:
    has = torch.cpu.get_capabilities()
    if has.get("architecture") != "x86_64":
        pytest.skip("of x86")
    native = bool(has["avx512_bf16"] or has["amx_bf16"])
    assert (select("cpu").amp_support("bf16") == "native") == native
    assert choose_amp(select("cpu"), "auto")[0] == ("bf16" if native else "off")


def test_training_chooses_and_validation_is_exact_unless_asked() -> None:
    assert Training().amp == "auto" and asked_precision(Training()) == "off"
    assert asked_precision(Training(amp="bf16")) == "bf16" and asked_precision(Training(amp="auto")) == "auto"
    assert asked_precision(Training(amp="fp16", val_amp="off")) == "off"


def test_other_projects_defaults_and_recipes_with_a_precision_of_their_own_keep_it(tmp_path: Path) -> None:
    assert load_config("imagenet_momentum_mindcv", {"data_dir": "x"})[0].training.amp == "fp16"
    assert build_config({"amp": "auto", "val_amp": "auto"}).training.val_amp == "auto"
    mindcv = tmp_path / "mindcv.yaml"
    mindcv.write_text("model: inception_v4\ndataset: imagenet\ndata_dir: x\nepoch_size: 3\n")
    assert load_config(mindcv)[0].training.amp == "off", "MindCV's default, O0"


def test_newcomers_follow_the_device() -> None:
    def chosen(device: str, amp: str) -> str:
        return choose_defaults(900, 3, hardware=Hardware(device, 8 << 30, amp=amp))[0]["amp"]

    assert [chosen("cpu", "bf16"), chosen("cpu", "off"), chosen("cuda", "bf16")] == ["bf16", "off", "bf16"]
    assert chosen("cuda", "off") == "fp16", "what an older GPU has"


@pytest.mark.slow
def test_a_run_says_its_choice_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(tmp_path / "run", amp="auto", max_steps=1, shapes_train=8, shapes_val=4)
    train(config)
    amp, reason = choose_amp(select("cpu"), "auto")
    words = {"off": "float32", "bf16": "bfloat16"}[amp]
    assert f"amp auto: {words} ({reason})" in capsys.readouterr().err
    assert load_config(tmp_path / "run" / "config.yaml")[0].training.amp == amp
