"""The real commands with `--device npu`, on the simulated device: the same files as with `--device cpu`, bit for bit.

`npu_simulator` says what this shows (the host code of every command) and what it cannot (anything of Ascend's own).
"""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import npu_simulator
import pytest
import torch
from conftest import LIVELY
from live import enliven
from running import TINY, as_flags, command, differing, final_state

from inception_v4.model import InceptionV4

pytestmark = pytest.mark.skipif(npu_simulator.missing() is not None, reason=str(npu_simulator.missing()))

SHORT = TINY | {"device": "npu", "shapes_train": 12, "shapes_val": 6, "epochs": 1}
"""Three steps."""
FULL = SHORT | LIVELY | {"channels_last": False, "ckpt_steps": 2, "lr": 0.0001}
"""Everything random takes part. Gentle: three steps from scratch would end in a network that overflows."""


def run(*words: str, processes: int = 1, expect: int = 0, **settings: object) -> tuple[str, str]:
    """Run a command where torch-npu is the simulator; returns what it wrote to stdout and to stderr."""
    given = {"OMP_NUM_THREADS": 2 // processes, "NPU_SIMULATOR_DEVICES": 2, "TORCH_DEVICE_BACKEND_AUTOLOAD": 1}
    done = subprocess.run(
        command(*words, processes=processes),
        env=npu_simulator.environment(**(given | settings)), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


@pytest.fixture(scope="module", autouse=True)
def live_weights(tmp_path_factory) -> None:
    """Runs start from weights with live signals, so that equal results mean something."""
    path = tmp_path_factory.mktemp("weights") / "live.pth"
    torch.save(enliven(InceptionV4(num_classes=2)).state_dict(), path)
    FULL["ckpt_path"] = str(path)


def train(folder: Path, *extra: str, processes: int = 1, **settings: object) -> str:
    flags = as_flags(FULL | settings | {"output_dir": str(folder)})
    return "".join(run("train", *flags, *extra, processes=processes))


def records(folder: Path, kind: str) -> list[dict[str, object]]:
    """Lines of metrics.jsonl, without what differs between two equal runs: speed and time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    changing = ("images_per_second", "seconds", "time", "peak_memory")
    return [{k: v for k, v in line.items() if k not in changing} for line in lines if line["kind"] == kind]


def equal(one: Path, other: Path) -> bool:
    parts = ("model", "ema", "optimizer", "step", "scaler")
    a, b = final_state(one), final_state(other)
    return not differing({k: a[k] for k in parts}, {k: b[k] for k in parts})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """The same run on both devices, with everything random switched on."""
    folder = tmp_path_factory.mktemp("npu")
    for device in ("cpu", "npu"):
        said = train(folder / device, device=device)
        assert ("Ascend910B3" in said) == (device == "npu"), said
        assert "float64" not in said, "a number was shortened to float32 on the device"
    return {device: folder / device for device in ("cpu", "npu")}


def test_training_writes_what_the_cpu_writes(trained):
    assert equal(trained["cpu"], trained["npu"])
    for kind in ("train", "val"):
        assert records(trained["cpu"], kind) == records(trained["npu"], kind)
    losses = [record["loss"] for kind in ("train", "val") for record in records(trained["npu"], kind)]
    assert all(map(math.isfinite, losses)) and len(set(losses)) == 4  # live runs, not constant ones


@pytest.mark.slow
def test_validation_and_prediction_say_what_the_cpu_says(trained, tmp_path):
    picture = str(tmp_path / "circle.png")
    run("draw", picture)
    data = as_flags({k: v for k, v in SHORT.items() if k.startswith(("shapes", "dataset", "val_batch"))})
    answers = {}
    for device in ("cpu", "npu"):
        options = [f"--ckpt-path={trained['npu']}", f"--device={device}", "--json"]
        validated = json.loads(run("validate", *options, *data, "--channels-last=false")[0])
        predicted = json.loads(run("predict", picture, *options)[0])
        answers[device] = {k: v for k, v in validated.items() if "second" not in k and k != "device"}, predicted
    assert answers["cpu"] == answers["npu"]
    assert math.isfinite(answers["npu"][0]["loss"])


def test_refusals_are_one_line(tmp_path):
    flags = as_flags(SHORT)
    _, said = run("train", *flags, f"--output-dir={tmp_path / 'a'}", "--channels-last", expect=2)
    assert said.strip().splitlines()[-1].startswith("error: channels_last is impossible on Ascend NPUs")
    old = {"NPU_SIMULATOR_CHIP": "Ascend910A", "expect": 2}
    _, said = run("train", *flags, f"--output-dir={tmp_path / 'b'}", "--amp=bf16", **old)
    assert "amp bf16 is not supported by Ascend910A: use amp fp16, or off" in said


@pytest.mark.slow
def test_resuming_is_exact_and_moves_between_devices(trained, tmp_path):
    for first, second in (("npu", "npu"), ("cpu", "npu")):
        folder = tmp_path / f"{first}-{second}"
        train(folder, "--max-steps=2", device=first)
        train(folder, "--resume=auto", device=second)
        assert equal(folder, trained["npu"]), (first, second)


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_gives_what_the_cpu_gives(tmp_path, amp):
    for device in ("cpu", "npu"):
        train(tmp_path / device, device=device, amp=amp, loss_scale=128)
    assert equal(tmp_path / "cpu", tmp_path / "npu")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"sync_bn": True}, {"amp": "fp16"}], ids=["plain", "sync_bn", "fp16"])
def test_two_processes_under_torchrun(tmp_path, settings):
    """Gradients averaged by `hccl` are gloo's sums in another order of the same two numbers: equal to the last bit."""
    for device in ("cpu", "npu"):
        train(tmp_path / device, processes=2, device=device, batch_size=2, **settings)
    if settings.get("sync_bn"):  # torch's own layer on the NPU, this project's on the CPU
        losses = [[r["loss"] for r in records(tmp_path / device, "train")] for device in ("cpu", "npu")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    else:
        assert equal(tmp_path / "cpu", tmp_path / "npu")


@pytest.mark.slow
def test_fused_optimizer_and_first_910(tmp_path):
    """torch-npu's optimizer and loss scaler, as the recipe of the paper would use them on the oldest chip."""
    settings = {"opt": "rmsproptf", "lr": 0.0001, "amp": "fp16", "loss_scale": 128, "clip_grad": 2.0}
    train(tmp_path / "plain", **settings)
    flags = as_flags(FULL | settings | {"output_dir": str(tmp_path / "fused"), "fused_optimizer": True})
    run("train", *flags, NPU_SIMULATOR_CHIP="Ascend910A")
    plain, fused = (final_state(tmp_path / name)["model"] for name in ("plain", "fused"))
    for name, value in plain.items():
        torch.testing.assert_close(value.float(), fused[name].float(), rtol=1e-3, atol=1e-5)
