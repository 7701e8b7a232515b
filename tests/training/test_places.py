"""Where a run directory is."""

from __future__ import annotations

from pathlib import Path

import pytest

from inception_v4.distributed import World
from inception_v4.settings.schema import Run
from inception_v4.storage.lock import FolderLock
from inception_v4.training.checkpoint import CheckpointError, find_resume
from inception_v4.training.folder import run_folder


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a recipe or `--output-dir=~/run` has it: no shell has seen it there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_folder(Run(output_dir="~/runs/a"), World(), FolderLock(print)).path == tmp_path / "runs" / "a"
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f"no step-.*pt checkpoint in {tmp_path}/empty"):
        find_resume("~/empty", tmp_path, world=World(), warn=print)
