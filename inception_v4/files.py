"""Files and folders that are either complete or absent, and the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output` to write into; gone afterwards."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def publish(folder: Path, output: Path) -> list[Path]:
    """Move the files of `folder` beside `output`, which takes its name last; returns them, `output` first."""
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name == output.name)
    placed: list[Path] = []
    for path in files:
        with open(path, "rb") as written:
            os.fsync(written.fileno())
        placed.insert(0, output.with_name(path.name))
        os.replace(path, placed[0])
    return placed


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
