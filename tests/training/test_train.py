"""The recipe end to end: what a run leaves behind, resuming, stopping, diverging, several processes."""

from __future__ import annotations

import copy
import itertools
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from live import enliven
from running import LIVELY, TINY, as_flags, command, differing, environment, final_state, run, tiny
from safetensors import safe_open

from inception_v4.accelerator import DeviceError, select
from inception_v4.accelerator.precision import Precision
from inception_v4.data.loader import Batch
from inception_v4.data.mixing import MixAndErase
from inception_v4.data.normalise import Normalise
from inception_v4.distributed import World
from inception_v4.inference.evaluate import Evaluation
from inception_v4.network.model import InceptionV4
from inception_v4.settings.recipes import load_config
from inception_v4.settings.schema import Augmentation
from inception_v4.storage.lock import FolderLock
from inception_v4.training.checkpoint import CheckpointError
from inception_v4.training.loop import INTERRUPTED, Interrupted
from inception_v4.training.schedule import Course
from inception_v4.training.step import DivergedError, Learner, make_criterion, mix_seeds, optimizer_step
from inception_v4.training.train import prepare, train

STATE = ("model", "ema", "optimizer", "step", "best", "ema_updates")


def states_differ(a: Path, b: Path) -> list[str]:
    first, second = final_state(a), final_state(b)
    return differing({k: first[k] for k in STATE}, {k: second[k] for k in STATE})


def test_a_run_leaves_what_it_promises(finished_run: Path) -> None:
    names = {p.name for p in finished_run.iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "curves.png",
        "checkpoints",
        "best.safetensors",
        "last.safetensors",
    } <= names
    assert not list(finished_run.rglob("*.tmp"))
    assert load_config(finished_run / "config.yaml")[0] == tiny(finished_run, **LIVELY)
    records = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
    validations = [r for r in records if r["kind"] == "val"]
    assert [r["epoch"] for r in validations] == [0, 1] and all("ema_top1" in r for r in validations)
    assert (finished_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    with safe_open(finished_run / "best.safetensors", "pt") as file:
        assert len(file.keys()) == 896 and file.metadata()["format"] == "pt"


@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.slow), 6])
def test_resuming_gives_the_same_bits_with_other_workers(finished_run: Path, tmp_path: Path, step: int) -> None:
    folder = tmp_path / "resumed"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(finished_run / "checkpoints" / f"step-{step:08d}.pt", folder / "checkpoints")
    shutil.copy(finished_run / "best.safetensors", folder)
    torch.rand(17)  # the global random state of this process must not matter
    train(tiny(folder, **LIVELY, resume="auto", workers=2))
    assert states_differ(finished_run, folder) == []


@pytest.mark.slow
def test_an_earlier_versions_checkpoint_goes_on_and_says_what_differs(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(finished_run / "checkpoints" / "step-00000008.pt", weights_only=True)
    del state["position"]
    torch.save(state | {"version": 1, "steps_per_epoch": 6}, tmp_path / "old.pt")
    train(tiny(tmp_path / "run", **LIVELY, resume=str(tmp_path / "old.pt")))
    assert "other random numbers" in capsys.readouterr().err
    assert final_state(tmp_path / "run")["step"] == final_state(finished_run)["step"]


def test_seeds_differ_with_every_number_and_their_order() -> None:
    seeds = {mix_seeds(*parts) for parts in itertools.product(range(7), repeat=3)}
    assert len(seeds) == 7**3 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.slow
def test_another_seed_gives_other_weights(finished_run: Path, tmp_path: Path) -> None:
    """The comparison above can fail."""
    folder = tmp_path / "resumed"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(finished_run / "checkpoints" / "step-00000008.pt", folder / "checkpoints")
    train(tiny(folder, **LIVELY, resume="auto", seed=1))
    assert states_differ(finished_run, folder)


@pytest.mark.slow
def test_killed_three_times(tmp_path: Path) -> None:
    settings = TINY | {"shapes_train": 40, "ckpt_steps": 1, "epochs": 1, "keep_checkpoint_max": 2, "drop_rate": 0.2}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run("train", *as_flags(settings), f"--output-dir={undisturbed}")
    rng = random.Random(time.time_ns())
    stops = sorted(rng.sample(range(1, 10), 3))
    for stop in stops:
        process = subprocess.Popen(
            command("train", *as_flags(settings), f"--output-dir={killed}", "--resume=auto"),
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if f" step {stop}/" in line:
                break
        process.kill()
        process.wait()
        process.stderr.close()
        assert process.returncode == -signal.SIGKILL, f"the run was over before step {stop}"
    run("train", *as_flags(settings), f"--output-dir={killed}", "--resume=auto")
    assert states_differ(undisturbed, killed) == [], f"killed at steps {stops}"


def test_sigterm_saves_and_exits_with_the_documented_code(tmp_path: Path) -> None:
    settings = as_flags(TINY | {"shapes_train": 400})
    process = subprocess.Popen(
        command("train", *settings, f"--output-dir={tmp_path / 'run'}"),
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if " step 2/" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == INTERRUPTED == 75
    message = [line for line in rest.splitlines() if line.startswith("error")]
    assert len(message) == 1 and "--resume auto" in message[0]
    assert 2 <= final_state(tmp_path / "run")["step"] <= 5


@pytest.mark.slow
def test_a_validation_that_a_signal_ends_is_done_when_the_run_goes_on(finished_run: Path, tmp_path: Path) -> None:
    """The last one: the end is that of the run that was never stopped, best figures too."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(finished_run / "checkpoints" / "step-00000008.pt", folder / "checkpoints")
    shutil.copy(finished_run / "best.safetensors", folder)
    lock = FolderLock(print)
    loop = prepare(tiny(folder, **LIVELY, resume="auto"), select("cpu"), World(), lock)
    seen = []
    validator = loop.validator

    def signalled(network: torch.nn.Module, goes_on: Callable[[], bool]) -> Evaluation:
        loop.stopping.append(signal.SIGTERM)
        seen.append(validator(network, goes_on))
        return seen[-1]

    loop.validator = signalled  # type: ignore[assignment]
    with pytest.raises(Interrupted, match="at step 12"):
        loop.run_epochs()
    loop.log.close()
    lock.release()
    assert [result.samples for result in seen] == [4, 4], "a batch each of ten pictures"
    assert final_state(folder)["unvalidated"] == 1
    train(tiny(folder, **LIVELY, resume="auto"))
    assert states_differ(finished_run, folder) == [] and final_state(folder)["unvalidated"] is None


@pytest.mark.slow
def test_divergence_stops_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny(folder, epochs=1))
    with pytest.raises(DivergedError, match=r"step \d+: lower --lr"):
        train(tiny(folder, epochs=3, lr=1e38, resume="auto"))
    state = final_state(folder)
    assert state["step"] == 6 and all(torch.isfinite(t.float()).all() for t in state["model"].values())


@pytest.mark.slow
def test_contradicting_resume_is_refused(finished_run: Path, tmp_path: Path) -> None:
    checkpoint = str(finished_run / "checkpoints" / "step-00000008.pt")
    with pytest.raises(CheckpointError, match="epochs have 24 samples, this run's 20"):
        train(tiny(tmp_path / "a", **LIVELY, resume=checkpoint, num_samples=20))
    with pytest.raises(CheckpointError, match="parameter groups"):
        train(tiny(tmp_path / "b", **LIVELY, resume=checkpoint, weight_decay_filter="no_norm_bias"))
    with pytest.raises(ValueError, match="holds a run already"):
        train(tiny(finished_run))


@pytest.mark.slow
def test_a_run_without_a_step_is_refused_and_a_finished_one_is_not(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"starts at step 6 .* ends at step 4 .*: raise epochs or max_steps"):
        train(tiny(tmp_path / "run", start_epoch=1, max_steps=4))
    assert not (tmp_path / "run").exists()
    checkpoint = str(finished_run / "checkpoints" / "step-00000004.pt")  # from before the first validation
    with pytest.raises(ValueError, match=r"starts at step 4 .* ends at step 3 "):
        train(tiny(tmp_path / "run", **LIVELY, resume=checkpoint, max_steps=3))
    again = tmp_path / "again"
    (again / "checkpoints").mkdir(parents=True)
    shutil.copy(finished_run / "checkpoints" / "step-00000012.pt", again / "checkpoints")
    for name in ("metrics.jsonl", "best.safetensors"):
        shutil.copy(finished_run / name, again)
    summary = train(tiny(again, **LIVELY, resume="auto"))
    assert summary["steps"] == 12 and summary["best"]["top1"] == final_state(finished_run)["best"]["top1"]


@pytest.mark.slow
def test_profile_leaves_a_trace_of_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(tmp_path / "run", epochs=1, shapes_train=20, profile=True))
    (trace,) = (tmp_path / "run" / "profile").glob("*.json")
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert sum(name.startswith("ProfilerStep#") for name in names) == 3 and "aten::convolution" in names
    assert f"profile of the run's third to fifth step: {trace.parent}" in capsys.readouterr().err
    train(tiny(tmp_path / "short", max_steps=1, profile=True))
    assert "no profile: " in capsys.readouterr().err and not list((tmp_path / "short" / "profile").glob("*"))


@pytest.mark.slow
def test_compiling_is_announced_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Traced in earnest; the machine code, which takes minutes, is left out."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    train(tiny(tmp_path / "run", compile=True, max_steps=1))
    said = capsys.readouterr().err.splitlines()
    (notice,) = (i for i, line in enumerate(said) if line.startswith("compile: the first step compiles the network"))
    assert "3 to 4 minutes for training, on two cores" in said[notice]
    assert notice < next(i for i, line in enumerate(said) if "step 1/1" in line)


@pytest.mark.slow
def test_what_the_device_cannot_do_is_refused_and_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeviceError, match="fused_optimizer: cpu has none for opt momentum"):
        train(tiny(tmp_path / "run", fused_optimizer=True))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"compile is impossible on this CPU: there is no C\+\+ compiler.*install g"):
        train(tiny(tmp_path / "run", compile=True))
    assert not (tmp_path / "run").exists()


def test_accumulation_with_a_remainder_equals_one_big_batch() -> None:
    """With BatchNorm's statistics fixed and no dropout, the update of 2 + 2 + 1 pictures is that of 5."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 75, 75), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 1, 0])
    start = enliven(InceptionV4(3, drop_rate=0.0)).double().eval()
    how = Augmentation(image_size=75)

    def weights_after(*sizes: int) -> torch.Tensor:
        model = copy.deepcopy(start)
        accelerator = select("cpu")
        learner = Learner(
            model, model, torch.optim.SGD(model.parameters(), 0.1), accelerator.grad_scaler(None, "dynamic"),
            lambda step: 0.1, make_criterion("ce", 0.1), InDouble(how), MixAndErase(how, num_classes=3),
            Precision(accelerator), Course(5, 5),
        )  # fmt: skip
        parts = zip(images.split(sizes), labels.split(sizes), torch.arange(5).split(sizes), strict=True)
        optimizer_step(learner, [Batch(*part) for part in parts], epoch=0)
        return model.last_linear.weight.detach()

    whole = weights_after(5)
    torch.testing.assert_close(weights_after(2, 2, 1), whole, rtol=1e-6, atol=1e-9)
    assert (weights_after(1, 4) - start.last_linear.weight).abs().max() > 1e-4, "the update is not nothing"


class InDouble(Normalise):
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return super().__call__(images).double()
