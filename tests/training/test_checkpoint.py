"""Checkpoints: atomic, found again, pruned, and never executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from inception_v4.distributed import World
from inception_v4.files import atomic_write
from inception_v4.storage.lock import FolderLock
from inception_v4.training.checkpoint import (
    CheckpointError,
    find_resume,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from inception_v4.training.folder import RunFolder, earlier_state


def resume(choice: str, folder: Path, warnings: list[str] | None = None) -> dict[str, Any] | None:
    return find_resume(choice, folder, world=World(), warn=[].append if warnings is None else warnings.append)


def test_round_trip_and_pruning(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        save_checkpoint(tmp_path, step, {"step": step, "w": torch.full((3,), float(step))}, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000020.pt", "step-00000100.pt"]
    state = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert state["step"] == 100 and torch.equal(state["w"], torch.full((3,), 100.0))


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [120]), (2, [120, 500]), (3, [120, 400, 500]), (9, [110, 120, 300, 400, 500])]
)
def test_what_was_just_written_is_not_pruned(tmp_path: Path, keep: int, left: list[int]) -> None:
    """A run that goes on from before checkpoints that cannot be read."""
    for step in (300, 400, 500):
        (tmp_path / f"step-{step:08d}.pt").write_bytes(b"damaged")
    for step in (110, 120):
        assert load_checkpoint(save_checkpoint(tmp_path, step, {"step": step}, keep=keep))["step"] == step
    assert [int(path.stem[5:]) for path in list_checkpoints(tmp_path)] == left


def test_a_chosen_checkpoint_is_refused_where_the_run_has_later_ones(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    for step in (100, 300, 500):
        chosen = save_checkpoint(folder, step, {"step": step, "version": 3}, keep=9)
    refused = (
        r"checkpoints holds steps 300, 500, later than step 100 of the chosen checkpoint: give another --output-dir"
    )
    with pytest.raises(CheckpointError, match=refused) as caught:
        resume(str(folder / "step-00000100.pt"), folder)
    assert "move those files away" in str(caught.value) and "\n" not in str(caught.value)
    for choice in (str(chosen), str(tmp_path / "run"), "auto"):
        state = resume(choice, folder)
        assert state is not None and state["step"] == 500
    for run, refuses in (("run", True), ("another", False)):
        with FolderLock(print) as lock:
            begun = RunFolder(tmp_path / run, 3, lock, resume=str(folder / "step-00000100.pt"))
            if refuses:
                with pytest.raises(CheckpointError, match=refused):
                    earlier_state(begun, World())
            else:
                state = earlier_state(begun, World())
    assert state is not None and state["step"] == 100 and len(list_checkpoints(folder)) == 3


def test_a_write_that_fails_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_temporary_files_are_never_checkpoints(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.pt.77.tmp").write_bytes(b"half")
    (tmp_path / "step-x.pt").write_bytes(b"no")
    assert list_checkpoints(tmp_path) == []
    assert resume("auto", tmp_path) is None


def test_auto_skips_a_truncated_checkpoint_and_says_so(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1}, keep=9)
    newest = save_checkpoint(tmp_path, 2, {"step": 2, "w": torch.zeros(1000)}, keep=9)
    newest.write_bytes(newest.read_bytes()[:1500])
    warnings: list[str] = []
    state = resume("auto", tmp_path, warnings)
    assert state is not None and state["step"] == 1
    assert len(warnings) == 1 and "step-00000002.pt" in warnings[0] and "damaged" in warnings[0]
    with pytest.raises(CheckpointError, match="damaged"):
        resume(str(newest), tmp_path, warnings)


def test_auto_goes_back_from_a_checkpoint_that_was_altered(tmp_path: Path) -> None:
    """One bit of a weight: torch reads it without a word."""
    for step in (1, 2):
        newest = save_checkpoint(tmp_path, step, {"step": step, "w": torch.ones(1000)}, keep=9)
    content = bytearray(newest.read_bytes())
    place = content.index(torch.ones(8).numpy().tobytes()) + 402
    content[place] ^= 64  # 1.0 becomes 1.5
    newest.write_bytes(content)
    assert torch.load(newest, weights_only=True)["w"].sum() != 1000, "a control"
    warnings: list[str] = []
    state = resume("auto", tmp_path, warnings)
    assert state is not None and state["step"] == 1 and state["w"].sum() == 1000
    assert len(warnings) == 1 and "does not have its checksum" in warnings[0] and "step-00000002.pt" in warnings[0]


def test_auto_starts_nothing_anew_over_checkpoints_that_cannot_be_read(tmp_path: Path) -> None:
    newest = save_checkpoint(tmp_path, 2, {"step": 2, "w": torch.zeros(1000)}, keep=9)
    newest.write_bytes(newest.read_bytes()[:1500])
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* \(found steps 2\): .* --output-dir"):
        resume("auto", tmp_path)


class Bomb:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, ("touch exploded",)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in (
        ("plain.pt", lambda p: p.write_bytes(pickle.dumps(Bomb()))),
        ("zip.pt", lambda p: torch.save({"version": 1, "x": Bomb()}, p)),
    ):
        write(tmp_path / name)
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint .*gone\.pt"):
        resume(str(tmp_path / "gone.pt"), tmp_path)
    with pytest.raises(CheckpointError, match=r"no step-\*\.pt"):
        resume(str(tmp_path), tmp_path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="--ckpt-path"):
        load_checkpoint(tmp_path / "weights.pt")
    torch.save({"version": 99}, tmp_path / "future.pt")
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(tmp_path / "future.pt")
