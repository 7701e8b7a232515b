"""The real commands with `--device npu`, on the simulated device: the same files as with `--device cpu`, bit for bit.

This shows that the host code of every command is right: what is asked of the device, in which order, and that
nothing the real torch-npu refuses is asked. A simulator in host memory cannot show anything of Ascend's own: kernels,
their precision and speed, compilers, HCCL on a network (see `npu_simulator`).
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import npu_simulator
import pytest
import torch
from live import enliven_gently
from running import LIVELY, TINY, as_flags, command, differing, final_state

from inception_v4.network.model import InceptionV4

pytestmark = pytest.mark.skipif(npu_simulator.missing() is not None, reason=str(npu_simulator.missing()))

SHORT = TINY | {"device": "npu", "shapes_train": 12, "shapes_val": 6, "epochs": 1, "init": "torch"}
"""Three steps."""
FULL = SHORT | LIVELY | {"channels_last": False, "lr": 0.0001, "bn_momentum": 0.001}
"""Everything random takes part.

Gentle, because validation runs through a hundred layers whose statistics are averages: where these have come halfway to
those of a few small batches, each layer multiplies, and the loss ends beyond 1e9 or is not finite.
"""


def environment(**settings: object) -> dict[str, str]:
    # One thread: the loader's thread for page-locked memory gives the simulated kernels one, whatever is said here,
    # and sums over another number of threads round otherwise.
    return npu_simulator.environment(**{"OMP_NUM_THREADS": 1, "NPU_SIMULATOR_DEVICES": 2, **settings})


def run(*words: str, processes: int = 1, expect: int = 0, **settings: object) -> str:
    """Run a command in processes of its own, where torch loads the simulator by itself; returns what it wrote."""
    line = command(*words, processes=processes)
    chosen = environment(TORCH_DEVICE_BACKEND_AUTOLOAD=1, **settings)
    done = subprocess.run(line, env=chosen, capture_output=True, text=True)
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module", autouse=True)
def live_weights(module_folder) -> None:
    """Runs start from weights with live signals, so that equal results mean something."""
    path = module_folder("weights") / "live.pth"
    torch.save(enliven_gently(InceptionV4(num_classes=2)).state_dict(), path)
    FULL["ckpt_path"] = str(path)


def training(folder: Path, **settings: object) -> list[str]:
    return ["train", *as_flags(FULL | settings | {"output_dir": str(folder)})]


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, without what differs between two equal runs: speed and time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    changing = ("images_per_second", "data_wait", "seconds", "time", "peak_memory")
    return [{k: v for k, v in line.items() if k not in changing} for line in lines if line["kind"] == kind]


def equal(one: Path, other: Path) -> bool:
    parts = ("model", "ema", "optimizer", "step", "scaler")
    a, b = final_state(one), final_state(other)
    return not differing({k: a[k] for k in parts}, {k: b[k] for k in parts})


@pytest.fixture(scope="module")
def folder(module_folder) -> Path:
    return module_folder("npu")


@pytest.fixture(scope="module")
def answers(folder) -> dict[str, dict[str, Any]]:
    """Outcomes by name: trained and used on both devices, and refused, in one process that imports torch-npu itself.

    First on the NPU: autograd counts the devices when it starts, and the first backward pass starts it.
    """
    picture, refused = str(folder / "circle.png"), folder / "refused"
    data = as_flags({k: v for k, v in SHORT.items() if k.startswith(("shapes", "dataset", "val_batch"))})
    devices = ("npu", "cpu")
    chosen = {"tf32": False, "workers": 1, "deterministic": True}
    lines = {f"train {device}": training(folder / device, device=device, **chosen) for device in devices}
    lines["draw"] = ["draw", picture]
    for device in devices:
        words = [f"--ckpt-path={folder / 'npu'}", f"--device={device}", "--json"]
        lines[f"validate {device}"] = ["validate", *words, *data, "--channels-last=false"]
        lines[f"predict {device}"] = ["predict", picture, *words, "--amp=off"]
    for word in ("channels_last", "compile"):
        lines[word] = training(refused, **{word: True})
    lines["no fused"] = training(refused, opt="adamw", fused_optimizer=True)
    program = [sys.executable, npu_simulator.HERE / "commands.py"]
    done = subprocess.run(program, input=json.dumps(lines), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_training_writes_what_the_cpu_writes(answers, folder):
    for device in ("cpu", "npu"):
        said = answers[f"train {device}"]["err"]
        assert answers[f"train {device}"]["code"] == 0, said
        assert ("Ascend910B3" in said) == (device == "npu"), said
        assert "float64" not in said, "a number was shortened to float32 on the device"
    assert equal(folder / "cpu", folder / "npu")
    for kind in ("train", "val"):
        assert records(folder / "cpu", kind) == records(folder / "npu", kind)
    losses = [record["loss"] for kind in ("train", "val") for record in records(folder / "npu", kind)]
    assert all(map(math.isfinite, losses)) and len(set(losses)) == 4  # live runs, not constant ones


@pytest.mark.slow
def test_validation_and_prediction_say_what_the_cpu_says(answers):
    """Validation bit for bit; prediction, where the CPU takes its own kernels and memory format, to 1e-6."""
    said = {}
    for device in ("cpu", "npu"):
        validated, predicted = (answers[f"{name} {device}"] for name in ("validate", "predict"))
        assert (validated["code"], predicted["code"]) == (0, 0), validated["err"] + predicted["err"]
        assert "float64" not in validated["err"] + predicted["err"]
        figures = {k: v for k, v in json.loads(validated["out"]).items() if "second" not in k}
        said[device] = figures, json.loads(predicted["out"])
    assert said["cpu"][0] == said["npu"][0]
    assert math.isfinite(said["npu"][0]["loss"]) and said["npu"][0]["samples"] == 6
    theirs, probabilities = ([entry.pop("probability") for entry in said[d][1][0]["top"]] for d in ("cpu", "npu"))
    assert probabilities == pytest.approx(theirs, abs=1e-6)
    assert (
        said["cpu"][1][0].pop("probability") == theirs[0] and said["npu"][1][0].pop("probability") == probabilities[0]
    )
    assert said["cpu"] == said["npu"]  # everything else
    assert sum(probabilities) == pytest.approx(1, abs=1e-5) and probabilities[0] > probabilities[1]


@pytest.mark.slow
def test_hf32_is_what_was_asked_for(answers):
    """`--tf32 false` reaches the device as HF32, and the default is on."""
    for name, allowed in (("train npu", False), ("validate npu", True)):
        modes = answers[name]["modes"]
        assert (modes["matmul.allow_hf32"], modes["conv.allow_hf32"]) == (allowed, allowed)
        assert not modes["jit_compile"] and not modes["allow_internal_format"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("channels_last", "channels_last is impossible on Ascend NPUs: leave it out, or set it to false"),
        ("compile", "compile is impossible on this Ascend NPU: it needs Ascend's Triton: `pip install triton-ascend`"),
        ("no fused", "fused_optimizer: npu has none for opt adamw: leave --fused-optimizer out"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(answers, folder, name, message):
    assert answers[name]["code"] == 2
    assert answers[name]["err"].strip().splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in answers[name]["err"] and not (folder / "refused").exists()


@pytest.mark.slow
def test_resuming_is_exact_and_moves_between_devices(answers, folder, tmp_path):
    for first, second in (("npu", "npu"), ("cpu", "npu")):
        output = tmp_path / f"{first}-{second}"
        run(*training(output, device=first, max_steps=2))
        assert final_state(output)["step"] == 2
        run(*training(output, device=second, resume="auto"))
        assert equal(output, folder / "npu"), (first, second)


def learnt(folder: Path) -> torch.Tensor:
    """What training changed in the weights, all of them in one vector."""
    start, end = torch.load(FULL["ckpt_path"], weights_only=True), final_state(folder)["model"]
    return torch.cat([(end[name] - start[name]).flatten() for name in start if name.endswith(("weight", "bias"))])


def on_both(folder: Path, *, processes: int = 1, **settings: object) -> tuple[list[list[dict[str, Any]]], float]:
    """Records of training steps on the CPU and the NPU; how far the NPU's change of the weights is from the CPU's."""
    for device in ("cpu", "npu"):
        said = run(*training(folder / device, device=device, **settings), processes=processes)
        assert "FutureWarning" not in said, said
    steps = [records(folder / device, "train") for device in ("cpu", "npu")]
    losses = [record["loss"] for record in steps[1]]
    assert all(map(math.isfinite, losses)) and len(set(losses)) == settings.get("max_steps", 3)
    cpu, npu = (learnt(folder / device) for device in ("cpu", "npu"))
    return steps, float((npu - cpu).norm() / cpu.norm())


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"amp": "bf16"}, marks=pytest.mark.slow, id="bf16"),
        pytest.param({"amp": "fp16", "loss_scale": 1024}, marks=pytest.mark.long, id="fp16"),
    ],
)
def test_mixed_precision_learns_what_it_learns_on_the_cpu(tmp_path, settings):
    """To the last bit. Without dropout: a CPU rounds its factor to 16 bits, the device does not.

    Two steps, of which the first has the rate 0; the third would overflow in float16.
    """
    (cpu, npu), difference = on_both(tmp_path, max_steps=2, drop_rate=0, **settings)
    assert cpu == npu and [record["skipped_steps"] for record in npu] == [0, 0]
    assert difference == 0 and learnt(tmp_path / "npu").any() and equal(tmp_path / "cpu", tmp_path / "npu")


@pytest.mark.slow
def test_fp16_keeps_its_loss_scale_and_counts_overflow(tmp_path):
    """A million is too much for the gradients of this network: every step is left out, and says so."""
    (cpu, npu), _ = on_both(tmp_path, amp="fp16", loss_scale=2**20)
    assert cpu == npu and [record["skipped_steps"] for record in npu] == [1, 2, 3]
    assert equal(tmp_path / "cpu", tmp_path / "npu") and not learnt(tmp_path / "npu").any()
    assert final_state(tmp_path / "npu")["scaler"]["scale"] == 2**20


@pytest.mark.slow
def test_two_processes_under_torchrun(tmp_path):
    """Gradients averaged by `hccl` are gloo's sums in another order of the same two numbers: equal to the last bit."""
    on_both(tmp_path, batch_size=2, processes=2)
    assert equal(tmp_path / "cpu", tmp_path / "npu")


@pytest.mark.slow
def test_synchronised_batch_norm_under_torchrun(tmp_path):
    """torch's own layer on the NPU, this project's on the CPU: they round otherwise. Measured: 0.1 %.

    Of two steps the first has the rate 0, so that one update is compared: differences grow from step to step.
    """
    steps, difference = on_both(tmp_path, batch_size=2, sync_bn=True, max_steps=2, processes=2)
    cpu, npu = ([record["loss"] for record in records] for records in steps)
    assert npu == pytest.approx(cpu, rel=1e-4) and 0 < difference < 0.01


@pytest.mark.slow
def test_slow_work_of_the_main_process_starves_nobody(tmp_path):
    """Its checkpoints take longer than HCCL lets an operation wait (which test_npu.py shows to be enforced)."""
    line = command(*training(tmp_path / "run", batch_size=2, ckpt_steps=1), processes=2)
    line[line.index("-m", 3) : line.index("train")] = [str(npu_simulator.HERE / "slow_main.py")]
    settings = environment(HCCL_EXEC_TIMEOUT=8, SLOW_SECONDS=12, TORCH_DEVICE_BACKEND_AUTOLOAD=1)
    done = subprocess.run(line, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert final_state(tmp_path / "run")["step"] == 3


@pytest.mark.long
def test_fused_optimizer_profile_and_first_910(tmp_path):
    """torch-npu's optimizer and loss scaler, as the recipe of the paper would use them on the oldest chip."""
    settings = {"opt": "rmsproptf", "amp": "fp16", "loss_scale": 1, "clip_grad": 2.0, "lr": 0.01, "shapes_train": 20}
    run(*training(tmp_path / "plain", **settings))
    old = {"NPU_SIMULATOR_CHIP": "Ascend910A"}
    said = run(*training(tmp_path / "fused", **settings, fused_optimizer=True, profile=True), **old)
    assert "profile of the run's third to fifth step" in said
    assert list((tmp_path / "fused" / "profile").rglob("*.json"))
    plain, fused = (learnt(tmp_path / name) for name in ("plain", "fused"))
    assert plain.any() and (fused - plain).norm() <= 0.02 * plain.norm()  # float16, another order of the sums
    said = run(*training(tmp_path / "bf16", amp="bf16"), expect=2, **old)
    assert "amp bf16 is not supported by Ascend910A: use amp fp16, or off" in said
