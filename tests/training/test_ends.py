"""What a run leaves behind where it ends otherwise than planned, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from running import final_state, tiny
from temporary import NewFolder

from inception_v4.accelerator import select
from inception_v4.data.pictures import CorruptImage
from inception_v4.distributed import World
from inception_v4.files import DiskFull
from inception_v4.settings.schema import Run
from inception_v4.storage.lock import FolderLock
from inception_v4.storage.mirror import Mirror
from inception_v4.training import train as training
from inception_v4.training.checkpoint import CheckpointError, list_checkpoints
from inception_v4.training.loop import Loop
from inception_v4.training.train import prepare, train
from inception_v4.training.watchdog import NoWatchdog

SMALL: dict[str, Any] = {"shapes_train": 4, "shapes_val": 4, "freeze": "backbone", "drop_rate": 0.0, "epochs": 1}
"""An epoch of one step of the classifier."""


@pytest.fixture(scope="module")
def small_run(module_folder: NewFolder) -> Path:
    """Its checkpoint has a best validation."""
    folder = module_folder("small") / "run"
    train(tiny(folder, **SMALL))
    return folder


@contextmanager
def prepared(folder: Path, **settings: Any) -> Iterator[Loop]:
    """A run before its first step."""
    lock = FolderLock(print)
    loop = prepare(tiny(folder, **SMALL | settings), select("cpu"), World(), lock)
    try:
        yield loop
    finally:
        loop.log.close()
        loop.folder.writer.finish()
        lock.release()


def unreadable(*arguments: Any) -> Any:
    raise CorruptImage("val/cat/7.jpg is truncated")


def test_time_that_is_over_at_a_quiet_end_of_an_epoch_still_leaves_everything(tmp_path: Path) -> None:
    """Of an epoch of one step only the end looks at the clock; this one is neither validated nor saved by itself."""
    folder = tmp_path / "run"
    summary = train(tiny(folder, **SMALL | {"epochs": 4}, val_interval=3, ckpt_interval=3, max_time="0.001s"))
    assert summary["steps"] == 1 and summary["best"]["epoch"] == 0
    assert (folder / "best.safetensors").is_file() and final_state(folder)["best"] == summary["best"]


@pytest.mark.parametrize("interval", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_validation_that_fails_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], interval: int
) -> None:
    folder, settings = tmp_path / "run", {"epochs": 2, "ckpt_interval": interval}
    with prepared(folder, **settings) as loop:
        loop.validator = unreadable  # type: ignore[assignment]
        with pytest.raises(CorruptImage, match="truncated"):
            loop.run_epochs()
    state = final_state(folder)
    assert (state["step"], state["unvalidated"], state["best"], state["waited"]) == (1, 0, {}, 0)
    assert f"saved: --resume auto --output-dir {folder} goes on with the validation" in capsys.readouterr().err
    summary = train(tiny(folder, **SMALL | settings, resume="auto"))
    state = final_state(folder)
    assert summary["steps"] == state["step"] == 2 and state["unvalidated"] is None and state["best"] == summary["best"]


def test_a_validation_whose_weights_do_not_fit_on_the_disk_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with prepared(tmp_path / "run", patience=9) as loop:

        def full(*arguments: Any) -> None:
            raise DiskFull("best.safetensors: no room")

        monkeypatch.setattr(loop.folder, "save_best", full)
        with pytest.raises(DiskFull):
            loop.run_epochs()
    state = final_state(tmp_path / "run")
    assert state["best"] == {} and state["waited"] == 0 and state["unvalidated"] == 0


def test_weights_that_are_no_numbers_are_not_saved_after_an_error(tmp_path: Path) -> None:
    with prepared(tmp_path / "run") as loop:
        with torch.no_grad():
            loop.job.learner.model.last_linear.bias.fill_(torch.nan)
        loop._keep()
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")


def test_the_last_step_is_saved_before_the_means_statistics_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with prepared(tmp_path / "run", swa_epochs=1) as loop:

        def killed(*arguments: Any, **how: Any) -> str:
            loop._settle()
            assert final_state(tmp_path / "run")["unvalidated"] == 0
            raise KeyboardInterrupt

        monkeypatch.setattr(loop.job.swa, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.run_epochs()


def test_a_stop_without_a_checkpoint_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with prepared(tmp_path / "run") as loop:

        def full(job: Any) -> None:
            raise DiskFull("step-00000001.pt: no room")

        monkeypatch.setattr(loop.folder, "save", full)
        loop.run = Run(on_disk_full="continue")
        loop.stopping.append(15)
        with pytest.raises(DiskFull, match=r"stopped by signal 15 at step 0, which is not saved: .*no room; there"):
            loop._stop_if_asked()


def test_nobody_watches_a_process_that_waits_for_its_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Watching(NoWatchdog):
        def stop(self) -> None:
            order.append("watchdog stopped")

    @contextmanager
    def watching(world: World, limit: float) -> Iterator[Watching]:
        yield Watching()

    def close(mirror: Mirror, *, patience: float) -> None:
        order.append("waiting")
        whole(mirror, patience=patience)

    whole = Mirror.close
    monkeypatch.setattr(training, "watching", watching)
    monkeypatch.setattr(Mirror, "close", close)
    train(tiny(tmp_path / "run", **SMALL, upload_to=(tmp_path / "copy").as_uri()))
    assert order == ["watchdog stopped", "waiting"] and (tmp_path / "copy" / "best.safetensors").is_file()


@pytest.mark.parametrize("epochs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_goes_on_elsewhere_writes_its_best_weights_there(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], epochs: int
) -> None:
    """Also one that is over, and one that gets no better."""
    resumed = {"epochs": epochs, "resume": str(small_run), "lr": 1e-30}
    summary = train(tiny(tmp_path / "other", **SMALL | resumed))
    said = capsys.readouterr().err
    assert "are not in this run's directory: the next validation writes best.safetensors anew" in said
    assert Path(summary["weights"]).is_file() and final_state(tmp_path / "other")["best"] == summary["best"]
    assert summary["best"]["epoch"] == epochs - 1


def test_a_checkpoint_of_another_optimizer_is_refused_in_one_line(small_run: Path, tmp_path: Path) -> None:
    settings = SMALL | {"resume": str(small_run), "epochs": 2}
    remedy = r"is momentum, this run's adamw: resume with --opt momentum, or start a new run .*--ckpt-path"
    with pytest.raises(CheckpointError, match=remedy):
        prepare(tiny(tmp_path / "run", **settings | {"opt": "adamw"}), select("cpu"), World(), FolderLock(print))
    with prepared(tmp_path / "run", **settings, opt="nesterov", weight_decay=0.25, momentum=0.5) as loop:
        (group,) = loop.job.learner.optimizer.param_groups
        assert (group["nesterov"], group["weight_decay"], group["momentum"]) == (True, 0.25, 0.5)
        assert loop.job.learner.optimizer.state, "what it had gathered is there"


def test_layers_are_chosen_before_a_validation_that_was_left_for_later(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of the weights takes statistics of what learns."""
    with prepared(tmp_path / "run", freeze="backbone", unfreeze_at=1, epochs=2) as loop:
        frozen: list[int] = []
        loop.job.learner.course.epoch, loop.job.unvalidated = 2, 1
        monkeypatch.setattr(loop, "_validate", lambda epoch: frozen.append(loop.job.learner.model.frozen_blocks))
        loop.run_epochs()
        assert frozen == [0]


def test_a_first_epoch_without_a_rate_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"epochs": 3, "warmup_epochs": 1, "shapes_train": 8}
    for number, stair in enumerate((True, False)):
        with prepared(tmp_path / str(number), **settings, lr_epoch_stair=stair):
            assert ("the first epoch learns nothing" in capsys.readouterr().err) == stair
