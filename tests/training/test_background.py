"""Checkpoints are written beside the training, of the state at their step, one at a time, and failures are reported."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from running import final_state, tiny

from inception_v4.accelerator import select
from inception_v4.distributed import World
from inception_v4.storage.lock import FolderLock
from inception_v4.training import folder
from inception_v4.training.background import BackgroundWriter, host_copy
from inception_v4.training.checkpoint import list_checkpoints, save_checkpoint
from inception_v4.training.train import prepare


def test_one_at_a_time_and_in_order() -> None:
    running, most, order = 0, 0, []

    def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        order.append(number)
        running -= 1

    writer = BackgroundWriter()
    for number in range(4):
        writer.start(lambda number=number: work(number))  # type: ignore[misc]
    writer.finish()
    assert order == [0, 1, 2, 3] and most == 1
    writer.finish()


def test_what_goes_wrong_is_raised_by_the_next_call_and_the_next_work_is_done() -> None:
    writer, done = BackgroundWriter(), threading.Event()

    def fail() -> None:
        raise OSError("no room")

    writer.start(fail)
    with pytest.raises(OSError, match="no room"):
        writer.start(done.set)
    writer.finish()
    assert done.is_set()
    writer.start(fail)
    with pytest.raises(OSError, match="no room"):
        writer.finish()


def test_a_copy_shares_no_memory() -> None:
    state = {"a": torch.zeros(2), "b": [torch.zeros(2), 3], "c": (torch.zeros(2),)}
    copied = host_copy(state)
    for tensor in (state["a"], state["b"][0], state["c"][0]):  # type: ignore[index]
        tensor += 1  # type: ignore[operator]
    assert not copied["a"].any() and not copied["b"][0].any() and not copied["c"][0].any() and copied["b"][1] == 3


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step loop waits for the copy alone, and what is written is the state at that step."""
    goes_on = threading.Event()

    def slowly(*arguments: Any, **options: Any) -> Path:
        assert goes_on.wait(60)
        return save_checkpoint(*arguments, **options)

    monkeypatch.setattr(folder, "save_checkpoint", slowly)
    loop = prepare(tiny(tmp_path / "run", ema=True), select("cpu"), World(), FolderLock(print))
    try:
        weights = loop.job.learner.model.last_linear.weight
        before = weights.detach().clone()
        loop._save()
        assert list_checkpoints(loop.folder.checkpoints) == [], "not written yet"
        with torch.no_grad():
            weights.add_(1)  # training goes on
        goes_on.set()
        loop._settle()
        assert torch.equal(final_state(tmp_path / "run")["model"]["last_linear.weight"], before)
    finally:
        goes_on.set()
        loop.log.close()
