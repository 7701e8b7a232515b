"""Copies of remote files in a local folder: complete or absent, shared by processes, within a limit of bytes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

from inception_v4.console import progress, say
from inception_v4.files import (
    build_once,
    bytes_on_disk,
    cache_dir,
    free_bytes,
    megabytes,
    remove_abandoned,
    require_room,
)
from inception_v4.settings.addresses import is_address
from inception_v4.storage.remote import Place, RemoteFile, StorageError

KEEP_FREE = 0.1
"""Part of the free disk that copies leave alone where no limit is given."""

_AT_ONCE = 8
_PART, _GONE = ".part", ".gone"
"""Ends of the hidden folders of what `build_once` has not done yet, and of copies that are being removed."""
_Piece = tuple[Place, RemoteFile]
_used: list[IO[bytes]] = []
"""Open for as long as this process lives: copies that it reads and nobody may remove."""


def local_copy(
    source: str,
    *,
    cache: Path | None = None,
    limit: int | None = None,
    wanted: Callable[[str], bool] | None = None,
    beside: Sequence[str] = (),
) -> str:
    """`source` itself where it is a path; the place of a copy of the file or folder where it is an address.

    A copy is found again while the original is unchanged. The least recently used copies go where a new one would
    exceed the limit; one that a living process reads stays.

    Args:
        cache: folder of the copies; default: the user's cache.
        limit: bytes of all copies, whole or not; default: what leaves a tenth of the disk free.
        wanted: of the names in a folder, those that are copied.
        beside: names of files beside a file that belong to it, where they are there.
    Raises:
        StorageError, ValueError: not there, not reachable, or changed on the way.
        DiskFull: no room within the limit.
    """
    if not is_address(source):
        return source
    place = Place(source)
    entries = [entry for entry in place.entries() if wanted is None or not entry.name or wanted(entry.name)]
    if not entries:
        raise StorageError(f"{source} holds no files: check the address")
    is_file = entries[0].name == ""
    others = _beside(place, beside) if is_file else []
    pieces = [*((place, entry) for entry in entries), *others]
    cache = (cache or cache_dir()) / "remote"
    versions = (place.address, entries, [entry for _, entry in others])
    key = hashlib.sha256(repr(versions).encode()).hexdigest()[:16]
    folder = cache / f"{place.name or 'files'}-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    _hold(folder)

    def build(part: Path) -> None:
        _make_room(part, source, pieces, limit)
        _download(place.address, pieces, part)

    build_once(folder, build)
    os.utime(folder)
    return str(folder / place.name if is_file else folder)


def _beside(place: Place, names: Sequence[str]) -> list[_Piece]:
    parent = place.address.rpartition("/")[0]
    others = [Place(f"{parent}/{name}") for name in names]
    return [(other, entry) for other in others for entry in other.entries() if entry.name == ""]


def _download(address: str, pieces: list[_Piece], part: Path) -> None:
    size = _bytes_of(pieces)
    say(f"fetching {address} ({len(pieces)} files, {megabytes(size)})")

    def one(piece: _Piece) -> int:
        place, entry = piece
        if not _has_come(piece, part):
            place.get(entry, _target(piece, part))
        return entry.size

    with progress("fetching, MB", size / 1e6) as count_on, ThreadPoolExecutor(_AT_ONCE) as several:
        for count in several.map(one, pieces):
            count_on(count / 1e6)


def _bytes_of(pieces: list[_Piece]) -> int:
    return sum(entry.size for _, entry in pieces)


def _target(piece: _Piece, part: Path) -> Path:
    place, entry = piece
    return part / (entry.name or place.name)


def _has_come(piece: _Piece, part: Path) -> bool:
    """By an interrupted fetch."""
    target = _target(piece, part)
    return target.is_file() and target.stat().st_size == piece[1].size


def _make_room(part: Path, source: str, pieces: list[_Piece], limit: int | None) -> None:
    """Remove the least recently used copies, and what interrupted fetches have left of others, until this one is within
    the limit."""
    cache, size = part.parent, _bytes_of(pieces)
    _sweep(cache)
    remove_abandoned(part)
    missing = _bytes_of([piece for piece in pieces if not _has_come(piece, part)])
    others = [folder for folder in cache.iterdir() if folder.is_dir() and folder.suffix != _GONE and folder != part]
    sizes = {folder: bytes_on_disk(folder) for folder in others}
    held = sum(sizes.values())
    most = int((free_bytes(cache) + size - missing + held) * (1 - KEEP_FREE)) if limit is None else limit
    for folder in sorted(others, key=_last_used):
        if held + size > most and _remove(folder):
            held -= sizes[folder]
    if held + size > most:
        raise StorageError(
            f"{source} has {megabytes(size)}: with the {megabytes(held)} of copies in use in {cache} that is more than "
            f"the {megabytes(most)} that they may take: raise the limit, or name another folder for the copies"
        )
    require_room(cache, missing, f"a copy of {source}")


def _last_used(folder: Path) -> float:
    """As a time of the file system; long ago where another process has just removed it."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _hold(folder: Path) -> None:
    """Mark a copy as used, or as being made, for as long as this process lives."""
    mark = open(_mark(folder), "ab")  # noqa: SIM115 open until the process ends
    fcntl.flock(mark, fcntl.LOCK_SH)
    _used.append(mark)


def _mark(folder: Path) -> Path:
    """The file that is locked by those who use a copy; what there is of it before it is whole has the same."""
    name = folder.name[1:].removesuffix(_PART) if folder.suffix == _PART else folder.name
    return folder.with_name(f".{name}.used")


def _remove(folder: Path) -> bool:
    """Remove a copy, or a part of one; False where a living process uses it."""
    with open(_mark(folder), "ab") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # At once under its name: what an interruption leaves would be taken for a copy.
        with suppress(FileNotFoundError):  # another process was faster
            folder.rename(folder.with_name(f".{uuid.uuid4().hex}{_GONE}"))
    _sweep(folder.parent)
    return True


def _sweep(cache: Path) -> None:
    """Delete what has been removed; several processes may do that at once."""
    for gone in cache.glob(f".*{_GONE}"):
        shutil.rmtree(gone, ignore_errors=True)
