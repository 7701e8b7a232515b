"""The search for the largest batch, on a device whose memory overflows where the test says so."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from running import tiny

from inception_v4.accelerator import Accelerator, select
from inception_v4.accelerator.devices import Cuda
from inception_v4.accelerator.npu import Npu
from inception_v4.accelerator.overflow import is_out_of_memory
from inception_v4.training import batch_size
from inception_v4.training.batch_size import Trial, find_batch_size, propose_batch, try_batches
from inception_v4.training.step import optimizer_step


class Device(Accelerator):
    """The CPU's, which counts what is asked of it and overflows as a GPU does."""

    can_overflow = True

    class Module:
        released = 0

        def empty_cache(self) -> None:
            type(self).released += 1

    module = Module()  # type: ignore[assignment]
    peak = 0

    def memory(self) -> int:
        return 1000

    def used_memory(self) -> int:
        return 24

    def peak_memory(self) -> int:
        return type(self).peak

    def reset_peak_memory(self) -> None:
        type(self).peak = 0

    def synchronize(self) -> None: ...


class Overflow(torch.OutOfMemoryError):
    """As a device raises it."""


def search(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, most: int, error: Exception, device: Accelerator, **settings: Any
) -> tuple[dict[str, Any], list[weakref.ref[torch.Tensor]]]:
    """A search by real steps, of which those with more than `most` pictures fail when the gradients are there."""
    held: list[weakref.ref[torch.Tensor]] = []

    def step(learner: Any, group: list[Any], *, epoch: int) -> torch.Tensor:
        pictures = len(group[0].labels)
        Device.peak = max(Device.peak, 120 * pictures)
        if pictures <= most:
            return optimizer_step(learner, group, epoch=epoch)
        logits = learner.compute(learner.normalise(group[0].images[:2]))
        logits.sum().backward()
        held.extend([weakref.ref(logits), weakref.ref(learner.model.last_linear.weight.grad)])
        raise error

    monkeypatch.setattr(batch_size, "optimizer_step", step)
    monkeypatch.setattr(batch_size, "select", lambda name: device)
    monkeypatch.chdir(folder)
    return find_batch_size(tiny(folder / "run", shapes_train=24, **settings)), held


@pytest.mark.slow
def test_powers_of_two_are_tried_until_one_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = Overflow("CUDA out of memory. Tried to allocate 2.00 GiB")
    result, held = search(
        monkeypatch, tmp_path, most=4, error=error, device=Device(), freeze="reduction_b", re_prob=0.5
    )
    assert [(trial.batch, trial.fits) for trial in result["trials"]] == [(2, True), (4, True), (8, False)]
    assert all((trial.speed is not None) == trial.fits for trial in result["trials"])
    assert result["batch_size"] == 4, "480 of 1024 bytes"
    shown = capsys.readouterr()
    assert "does not fit" in shown.out and "proposed: --batch-size 4" in shown.err
    gc.collect()
    assert len(held) == 2 and [ref() for ref in held] == [None, None], "nothing of the step that failed is left"
    assert Device.Module.released >= 4, "before each try and at the end"
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_errors_of_other_kinds_are_not_taken_for_too_little_memory() -> None:
    class Failing:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def __call__(self, batch: int) -> None:
            raise self.error

        def clear(self) -> None: ...

    with pytest.raises(RuntimeError, match="shapes do not match"):
        try_batches(Failing(RuntimeError("shapes do not match")), Device(), most=8)  # type: ignore[arg-type]
    trials = try_batches(Failing(RuntimeError("NPU out of memory.")), Device(), most=8)  # type: ignore[arg-type]
    assert [trial.fits for trial in trials] == [False]
    with pytest.raises(ValueError, match="not even a batch of 2 pictures fits"):
        propose_batch(trials, 100)


def test_too_little_memory_is_known_by_class_and_in_words() -> None:
    assert is_out_of_memory(Overflow("x")) and is_out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_out_of_memory(RuntimeError("a NaN")) and not is_out_of_memory(ValueError("out of memory"))
    assert Cuda.can_overflow and Npu.can_overflow and not Accelerator.can_overflow


def test_the_proposal_leaves_a_margin() -> None:
    trials = [Trial(2, True, 20, 1.0), Trial(4, True, 40, 1.0), Trial(8, True, 80, 1.0), Trial(16, False, 100, None)]
    assert propose_batch(trials, 100) == 8 and propose_batch(trials, 88) == 4 and propose_batch(trials, 21) == 4
    unknown = [trial._replace(peak=None) for trial in trials]
    assert propose_batch(unknown, None) == 4, "one before the largest that fits"
    assert propose_batch(unknown[:3], None) == 8, "nothing failed: the pictures were over"


def test_a_cpu_needs_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not select("cpu").can_overflow
    result = find_batch_size(tiny(tmp_path / "run", shapes_train=64, freeze="backbone"))
    assert result == {"batch_size": 8, "trials": []}
    said = capsys.readouterr().err
    assert "find_batch_size is not needed on this CPU" in said and "batch_size 8: " in said
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="run it without torchrun"):
        find_batch_size(tiny(tmp_path / "run"))
