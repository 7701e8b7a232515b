"""Files and folders that are either complete or absent, what a disk refuses, and the user's cache folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

REFUSALS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EROFS: "it is read-only"}
"""What a disk that takes no more says."""

_RUST_CODE = re.compile(r"\(os error (\d+)\)")
"""In the text of errors of libraries written in Rust (safetensors)."""


class DiskFull(OSError):
    """A disk that takes no more; one line that names the path, what was needed and what is free."""


def free_bytes(path: Path) -> int:
    """Free bytes, for this user, on the disk where `path` is or will be; raises DiskFull where it is read-only."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        raise DiskFull(_refused(path, errno.EROFS, 0))
    return shutil.disk_usage(place).free


def require_room(path: Path, needed: int, purpose: str) -> None:
    """Raises DiskFull where fewer than `needed` bytes are free for `path`, before anything is written."""
    free = free_bytes(path)
    if free < needed:
        raise DiskFull(f"{path}: {purpose} needs {megabytes(needed)}, {megabytes(free)} are free: make room")


def require_writable(folder: Path) -> None:
    """Make the folder and try to write in it; raises DiskFull where that is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        if error.errno in REFUSALS:
            raise DiskFull(_refused(folder, error.errno, 0)) from error
        raise


def megabytes(count: int) -> str:
    return f"{count / 1e6:.4g} MB"


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/inception-v4`, or `~/.cache/inception-v4`; not created."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "inception-v4"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    started = _AHEAD.pop(_version(path), None)
    return started.result() if started else _digest_of(path)


def hash_ahead(paths: Iterable[Path]) -> None:
    """Begin to read files whose `sha256_of` will be asked for once, beside something that needs no disk."""
    _AHEAD.update({_version(path): _Hashing(path) for path in paths})


class _Hashing(threading.Thread):
    """A file being read; it ends with the process, asked for or not."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.digest = path, ""
        self.start()

    def run(self) -> None:
        with suppress(OSError):  # whoever asks reads again, and is told
            self.digest = _digest_of(self.path)

    def result(self) -> str:
        self.join()
        return self.digest or _digest_of(self.path)


_AHEAD: dict[tuple[int, ...], _Hashing] = {}


def _version(path: Path) -> tuple[int, ...]:
    """Which file this is, and which content it had: another after every change."""
    at = path.stat()
    return at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


@contextmanager
def atomic_write(path: Path, *, needed: int | None = None) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the name only when it is complete and on disk.

    Args:
        needed: bytes that will be written, where it is known: what does not fit is refused before the first of them.
    Raises:
        DiskFull: whatever the writing library makes of a disk that takes no more.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if needed is not None:
            require_room(path, needed, "this file")
        yield temporary
        to_disk(temporary)
        os.replace(temporary, path)
        to_disk(path.parent)
    except Exception as error:
        # While the file is still there: once it is gone, the disk is no longer full.
        if (code := disk_refusal(error, temporary)) is not None:
            raise DiskFull(_refused(path, code, bytes_on_disk(temporary))) from error
        raise
    finally:
        if temporary.exists():
            temporary.unlink()


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output` to write into; gone afterwards. Raises DiskFull as `atomic_write` does."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield folder
    except Exception as error:
        if (code := disk_refusal(error, folder / "probe")) is not None:
            raise DiskFull(_refused(output, code, bytes_on_disk(folder))) from error
        raise
    finally:
        shutil.rmtree(folder)


def disk_refusal(error: BaseException, file: Path) -> int | None:
    """The `REFUSALS` code that is behind an error of writing `file`, which is still there; None for any other error."""
    causes: BaseException | None = error
    while causes is not None:
        if isinstance(causes, OSError) and causes.errno in REFUSALS:
            return causes.errno
        if (match := _RUST_CODE.search(str(causes))) and int(match[1]) in REFUSALS:
            return int(match[1])
        causes = causes.__cause__ or causes.__context__
    # torch's archive writer notices that bytes are missing and does not say why: the disk does.
    return _probe(file) if isinstance(error, RuntimeError) and "inline_container" in str(error) else None


def _probe(file: Path) -> int | None:
    try:
        with open(file, "ab") as more:
            more.write(bytes(1 << 20))
            more.flush()
            os.fsync(more.fileno())
    except OSError as error:
        return error.errno if error.errno in REFUSALS else None
    return None


def _refused(path: Path, code: int, written: int) -> str:
    if code == errno.EROFS:
        return f"{path}: {REFUSALS[code]}: choose another folder"
    free = megabytes(free_bytes(path))
    sizes = f"{megabytes(written)} were written, {free} are free"
    return f"{path}: {REFUSALS[code]} ({sizes}): make room, or choose another folder"


def bytes_on_disk(path: Path) -> int:
    """Of a file or of the files of a folder, some of which may go while this looks."""
    files = (
        [str(path)] if path.is_file() else [os.path.join(at, name) for at, _, names in os.walk(path) for name in names]
    )
    total = 0
    for file in files:
        with suppress(FileNotFoundError):
            total += os.stat(file).st_size
    return total


def remove_abandoned(folder: Path) -> None:
    """Delete what `atomic_write` has left in a folder, at any depth, where its process was killed meanwhile."""
    for abandoned in folder.rglob(".*.tmp"):
        if abandoned.is_file():
            abandoned.unlink()


def publish(folder: Path, output: Path) -> list[Path]:
    """Move the files of `folder` beside `output`, which takes its name last; returns them, `output` first.

    Raises:
        FileExistsError: a file beside it has the name of one that is no earlier `output`'s; nothing was moved.
    """
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name == output.name)
    taken = [path.name for path in files if path.name != output.name and output.with_name(path.name).exists()]
    if taken and not output.exists():
        raise FileExistsError(
            f"{output} was not written: {taken[0]}, which comes with it, would replace a file of something else: give "
            "another output name, or move that file away"
        )
    placed: list[Path] = []
    for path in files:
        to_disk(path)
        placed.insert(0, output.with_name(path.name))
        os.replace(path, placed[0])
    return placed


def to_disk(path: Path) -> None:
    """Wait until what was written of a file, or the names in a folder, would outlast a failure of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes) -> Any:
    """JSON from elsewhere; raises ValueError for whatever is none, and for what is nested without end."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested too deep ({error})") from None
