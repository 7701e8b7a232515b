"""Copies of remote files in a local folder: complete or absent, shared by processes, within a limit of bytes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from inception_v4.console import progress, say
from inception_v4.files import build_once, cache_dir, free_bytes, megabytes, require_room
from inception_v4.settings.addresses import is_address
from inception_v4.storage.remote import Place, RemoteFile, StorageError

KEEP_FREE = 0.1
"""Part of the free disk that copies leave alone where no limit is given."""

_AT_ONCE = 8
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
        limit: bytes of all copies; default: what leaves a tenth of the disk free.
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
    if not folder.is_dir():
        size = sum(entry.size for _, entry in pieces)
        _make_room(cache, source, size, limit)
        build_once(folder, lambda part: _download(place.address, pieces, part))
    os.utime(folder)
    return str(folder / place.name if is_file else folder)


def _beside(place: Place, names: Sequence[str]) -> list[tuple[Place, RemoteFile]]:
    parent = place.address.rpartition("/")[0]
    others = [Place(f"{parent}/{name}") for name in names]
    return [(other, entry) for other in others for entry in other.entries() if entry.name == ""]


def _download(address: str, pieces: list[tuple[Place, RemoteFile]], part: Path) -> None:
    size = sum(entry.size for _, entry in pieces)
    say(f"fetching {address} ({len(pieces)} files, {megabytes(size)})")

    def one(piece: tuple[Place, RemoteFile]) -> int:
        place, entry = piece
        target = part / (entry.name or place.name)
        if not (target.is_file() and target.stat().st_size == entry.size):  # else an interrupted fetch brought it
            place.get(entry, target)
        return entry.size

    with progress("fetching, MB", size / 1e6) as count_on, ThreadPoolExecutor(_AT_ONCE) as several:
        for count in several.map(one, pieces):
            count_on(count / 1e6)


def _make_room(cache: Path, source: str, size: int, limit: int | None) -> None:
    """Remove the least recently used copies until `size` more bytes are within the limit."""
    copies = [folder for folder in cache.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    sizes = {folder: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for folder in copies}
    held = sum(sizes.values())
    most = int((free_bytes(cache) + held) * (1 - KEEP_FREE)) if limit is None else limit
    for folder in sorted(copies, key=lambda folder: folder.stat().st_mtime):
        if held + size > most and _remove(folder):
            held -= sizes[folder]
    if held + size > most:
        raise StorageError(
            f"{source} has {megabytes(size)}: with the {megabytes(held)} of copies in use in {cache} that is more than "
            f"the {megabytes(most)} that they may take: raise the limit, or name another folder for the copies"
        )
    require_room(cache, size, f"a copy of {source}")


def _hold(folder: Path) -> None:
    """Mark a copy as used for as long as this process lives."""
    mark = open(folder.parent / f".{folder.name}.used", "ab")  # noqa: SIM115 open until the process ends
    fcntl.flock(mark, fcntl.LOCK_SH)
    _used.append(mark)


def _remove(folder: Path) -> bool:
    with open(folder.parent / f".{folder.name}.used", "ab") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder)
    return True
