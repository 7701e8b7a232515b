"""Training state on disk: written atomically, found again, pruned. Not weight formats: see `weights`."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

VERSION = 1
_NAME = re.compile(r"step-(\d+)\.pt")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another kind; one line with the remedy."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the name only when it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write `state` as the checkpoint of `step`, then delete all but the newest `keep`."""
    path = folder / f"step-{step:08d}.pt"
    with atomic_write(path) as temporary:
        torch.save(state | {"version": VERSION}, temporary)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a folder, oldest first. Temporary files never carry such a name."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved in `path`, on the host. Nothing in the file is executed (`weights_only`).

    Raises:
        CheckpointError: missing, truncated, or not written by this project.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: give a step-*.pt file, a run directory or `auto`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Remarks on foreign pickle protocols: the error says what matters.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({reason}): it is damaged; resume from another one"
        ) from error
    if not isinstance(state, dict) or "version" not in state:
        raise CheckpointError(f"{path} is not a training checkpoint: use --ckpt-path to start from weights")
    if state["version"] != VERSION:
        raise CheckpointError(f"checkpoint {path} has format {state['version']}, this program reads {VERSION}")
    return state


def find_resume(choice: str, folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The state that `--resume choice` means.

    `auto` is the newest readable checkpoint of `folder`, or None when there is none yet. A path may be a file, a
    run directory or its checkpoints folder; then an unreadable checkpoint is an error.
    """
    if choice == "auto":
        for path in reversed(list_checkpoints(folder)):
            try:
                return load_checkpoint(path)
            except CheckpointError as error:
                warn(str(error))
        return None
    path = Path(choice)
    if path.is_dir():
        found = list_checkpoints(path) or list_checkpoints(path / "checkpoints")
        if not found:
            raise CheckpointError(f"no step-*.pt checkpoint in {path}: give a run directory that has one")
        path = found[-1]
    return load_checkpoint(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
