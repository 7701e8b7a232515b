"""The user's cache folder, and folders that are either complete or absent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/inception-v4`, or `~/.cache/inception-v4`; not created."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "inception-v4"


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, complete: if it is missing, `build(part)` fills a hidden sibling that is then renamed.

    A lock file beside it keeps concurrent processes (also of other machines on a shared file system) from
    building twice. An interrupted build leaves its sibling behind, and `build` gets it again to go on from.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not folder.is_dir():
            part = folder.parent / f".{folder.name}.part"
            part.mkdir(exist_ok=True)
            build(part)
            part.rename(folder)
    return folder
