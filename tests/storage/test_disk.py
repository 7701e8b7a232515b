"""Disks that are full or read-only: one line, what was there stays whole, and the run does as it was told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import fill, make_read_only, small_disk
from running import TINY, as_flags, tiny
from safetensors.torch import save_file
from temporary import NewFolder

from inception_v4.accelerator import select
from inception_v4.cli.main import run
from inception_v4.distributed import World
from inception_v4.files import DiskFull, atomic_write, require_writable, staged
from inception_v4.settings.recipes import build_config
from inception_v4.settings.schema import Run
from inception_v4.storage.lock import FolderLock
from inception_v4.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from inception_v4.training.job import capture
from inception_v4.training.loop import Loop
from inception_v4.training.room import _state_per_weight, checkpoint_bytes, planned_checkpoints
from inception_v4.training.runlog import METRICS, RunLog, read_records
from inception_v4.training.schedule import Course
from inception_v4.training.train import prepare, train

TENSORS = {"w": torch.arange(500_000, dtype=torch.float32)}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4) as place:
        yield place


def _with_torch(path: Path) -> None:
    torch.save(TENSORS, path)


def _with_safetensors(path: Path) -> None:
    save_file(TENSORS, path)


def _with_python(path: Path) -> None:
    path.write_bytes(bytes(2_000_000))


@pytest.mark.parametrize("write", [_with_torch, _with_safetensors, _with_python])
def test_whatever_a_library_says_a_full_disk_is_called_so(disk: Path, write: Any) -> None:
    target = disk / "file"
    target.write_text("old")
    fill(disk, leave=500_000)
    with (
        pytest.raises(
            DiskFull, match=r"/file: the disk is full \([\d.]+ MB were written, [\d.]+ MB are free\): make room"
        ),
        atomic_write(target) as temporary,
    ):
        write(temporary)
    assert target.read_text() == "old" and sorted(os.listdir(disk)) == ["ballast", "file"]
    with pytest.raises(DiskFull, match="/out: the disk is full"), staged(disk / "out") as folder:
        write(folder / "out")
    assert sorted(os.listdir(disk)) == ["ballast", "file"]


def test_other_errors_of_writing_stay_what_they_are(disk: Path) -> None:
    with pytest.raises(RuntimeError, match="inline_container"), atomic_write(disk / "file"):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . with room on the disk")
    with pytest.raises(FileNotFoundError), atomic_write(disk / "file") as temporary:
        (temporary / "below").write_text("")


def test_a_read_only_disk_is_called_so(disk: Path) -> None:
    make_read_only(disk)
    for folder in (disk, disk / "run"):
        with pytest.raises(DiskFull, match=f"{folder}.*: it is read-only: choose another folder"):
            require_writable(folder)
        with pytest.raises(DiskFull, match="file: it is read-only"), atomic_write(folder / "file") as temporary:
            temporary.write_text("new")


def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_written(disk: Path) -> None:
    save_checkpoint(disk, 1, {"step": 1, **TENSORS}, keep=1)
    with pytest.raises(DiskFull, match=r"step-00000002.pt: this file needs 4 MB, [\d.]+ MB are free"):
        save_checkpoint(disk, 2, {"step": 2, "nested": [TENSORS, {"v": torch.zeros(500_000)}]}, keep=1)
    assert [load_checkpoint(path)["step"] for path in list_checkpoints(disk)] == [1]


@pytest.mark.parametrize("opt, state", [("momentum", 1), ("rmsproptf", 2), ("adamw", 2)])
def test_what_an_optimizer_will_keep_is_foreseen(opt: str, state: float) -> None:
    assert _state_per_weight(build_config({"opt": opt}).optimizer) == pytest.approx(state, abs=0.01)


@pytest.fixture(scope="module")
def prepared(module_folder: NewFolder) -> Iterator[tuple[Loop, Path]]:
    """A run on a small disk that is about to take its first step."""
    with small_disk(module_folder("disks") / "disk", 1000) as disk, FolderLock(print) as lock:
        config = tiny(disk / "run", on_disk_full="continue", val_samples=4)
        loop = prepare(config, select("cpu"), World(), lock)
        yield loop, disk
        loop.log.close()


def test_the_size_of_a_checkpoint_is_foreseen(prepared: tuple[Loop, Path], tmp_path: Path) -> None:
    learner = prepared[0].job.learner
    opt = build_config({"opt": "momentum"}).optimizer
    foreseen = checkpoint_bytes(prepared[0].job, opt)
    for parameter in learner.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    written = save_checkpoint(tmp_path, 1, capture(prepared[0].job, ""), keep=1).stat().st_size
    assert foreseen <= written <= foreseen * 1.01, "without the names and numbers beside the tensors"


@pytest.mark.slow
def test_a_disk_that_fills_up(prepared: tuple[Loop, Path], capsys: pytest.CaptureFixture[str]) -> None:
    loop, disk = prepared
    learner, checkpoints = loop.job.learner, loop.folder.checkpoints
    learner.course.step = 6
    loop._save()
    loop._settle()
    ballast = fill(disk, leave=50_000_000)
    learner.course.step = 12
    loop._save()
    loop._settle()
    said = capsys.readouterr().err
    assert "not written" in said and "step-00000012.pt: this file needs" in said
    assert "training goes on" in said and "step-00000006.pt is whole: --resume auto" in said
    with pytest.raises(DiskFull, match=r"the run is over, and its end was not written: .*step-00000012"):
        loop.finish("a run")
    loop.run = Run(on_disk_full="stop")
    with pytest.raises(DiskFull, match=r"step-00000012.pt: .* step-00000006.pt is whole: --resume auto"):
        loop._save()
        loop._settle()
    assert [load_checkpoint(path)["step"] for path in list_checkpoints(checkpoints)] == [6]
    ballast.unlink()
    loop._save()
    loop._settle()
    assert loop.unwritten == "" and load_checkpoint(list_checkpoints(checkpoints)[-1])["step"] == 12


@pytest.mark.parametrize("lossy", [False, True])
def test_records_on_a_full_disk(disk: Path, lossy: bool, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"epoch": 0, "step": 1, "loss": 1.0, "lr": 0.1, "more": "x" * 3000}
    log = RunLog(disk, total_steps=9, tensorboard=False, lossy=lossy)
    log.train(record)
    ballast = fill(disk, leave=0)
    for step in (2, 3, 4):
        try:
            log.train(record | {"step": step})
        except DiskFull as error:
            assert not lossy and "metrics.jsonl: No space left on device: make room" in str(error)
    ballast.unlink()
    log.train(record | {"step": 5})
    log.close()
    steps = [kept["step"] for kept in read_records(disk / METRICS)]
    assert steps[0] == 1 and steps[-1] == 5 and len(steps) < 5, "some were lost, none is cut short"
    assert capsys.readouterr().err.count("records are lost") == lossy


@pytest.mark.parametrize("settings, count", [({}, 2), ({"ckpt_interval": 2}, 1), ({"ckpt_steps": 4}, 5)])
def test_checkpoints_to_come_are_counted(settings: dict[str, Any], count: int) -> None:
    from types import SimpleNamespace

    job: Any = SimpleNamespace(learner=SimpleNamespace(course=Course(samples=6, batch=1, epochs=2)))
    assert planned_checkpoints(job, Run(**settings)) == count


def test_a_run_that_cannot_be_written_is_refused_before_it_begins(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = disk / "run"
    needs = (
        r"/run: this run needs [\d.]+ MB \(1 checkpoint of 3[\d.]+ MB, 2 weights files of 16[\d.]+ MB\), "
        r"4[\d.]* MB are free: make room, lower --keep-checkpoint-max"
    )
    with pytest.raises(DiskFull, match=needs):
        train(tiny(folder, epochs=1))
    assert not folder.exists()
    make_read_only(disk)
    assert run(["train", *as_flags(TINY), f"--output-dir={folder}"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {folder}: it is read-only: choose another folder"
