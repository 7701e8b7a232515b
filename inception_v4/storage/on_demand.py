"""Files of a place that are copied here when they are wanted, within a limit of bytes that processes share."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from inception_v4.files import free_bytes, megabytes
from inception_v4.storage.fetch import KEEP_FREE
from inception_v4.storage.remote import Place, RemoteFile, StorageError

AHEAD = 2 << 30
"""Bytes of files that are fetched before they are wanted, where the limit has room for twice as much."""


class OnDemand:
    """Copies of some of an address's files, the least recently wanted removed where a new one needs the room.

    Args:
        address: the folder that they are in.
        files: as `Place.entries` gave them.
        cache: folder of the copies.
        limit: bytes of all copies of this address; None: what leaves a tenth of the disk free.
    """

    def __init__(self, address: str, files: Sequence[RemoteFile], *, cache: Path, limit: int | None) -> None:
        self._address, self.files = address, list(files)
        key = hashlib.sha256(address.encode()).hexdigest()[:16]
        self.folder = cache / "shards" / f"{address.rstrip('/').rpartition('/')[2] or 'files'}-{key}"
        self._limit = limit
        self._place: tuple[int, Place] | None = None

    def open(self, number: int) -> int:
        """A descriptor of file `number`, read-only: it stays good after the copy has been removed.

        Raises:
            StorageError: it cannot be had, or is larger than the limit.
            DiskFull: no room.
        """
        entry, copy = self.files[number], self.copy(number)
        self.folder.mkdir(parents=True, exist_ok=True)
        if (descriptor := _opened(copy, entry.size)) is not None:
            return descriptor
        with FileLock(_lock_of(copy)):
            # What has just come may be the first to go, where others need room.
            while (descriptor := _opened(copy, entry.size)) is None:
                with FileLock(self.folder / ".room.lock"):
                    self._make_room(entry)
                    _promise(copy).write_text(str(entry.size))
                try:
                    self._reach().get(entry, copy)
                finally:
                    _promise(copy).unlink()
        return descriptor

    def copy(self, number: int) -> Path:
        """Where file `number` lies while it is here; another version of it lies elsewhere."""
        entry = self.files[number]
        return self.folder / f"{hashlib.sha256(repr(entry).encode()).hexdigest()[:12]}-{Path(entry.name).name}"

    @property
    def ahead(self) -> int:
        """Bytes that may be fetched before they are wanted."""
        return AHEAD if self._limit is None else min(AHEAD, self._limit // 2)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_place": None}

    def _reach(self) -> Place:
        """A connection of this process: those of fsspec do not outlive a fork."""
        if self._place is None or self._place[0] != os.getpid():
            self._place = os.getpid(), Place(self._address)
        return self._place[1]

    def _make_room(self, entry: RemoteFile) -> None:
        copies = {path: path.stat() for path in self.folder.iterdir() if not path.name.startswith(".")}
        held = sum(state.st_size for state in copies.values()) + sum(map(_promised, self.folder.glob(".*.coming")))
        most = int((free_bytes(self.folder) + held) * (1 - KEEP_FREE)) if self._limit is None else self._limit
        if entry.size > most:
            raise StorageError(
                f"{self._address}/{entry.name} has {megabytes(entry.size)}, more than the {megabytes(most)} that "
                f"copies in {self.folder.parent} may take: raise data_cache_gb, or name another data_cache"
            )
        for path in sorted(copies, key=lambda path: copies[path].st_mtime):
            if held + entry.size <= most:
                break
            path.unlink(missing_ok=True)
            held -= copies[path].st_size


class Ahead(threading.Thread):
    """Fetches files in the order in which they will be wanted, a limited number of bytes before they are.

    Args:
        wanted: (position, file number), by position: when each is wanted for the first time.
    """

    def __init__(self, files: OnDemand, wanted: Sequence[tuple[int, int]]) -> None:
        super().__init__(name="shards ahead", daemon=True)
        self._files, self._wanted = files, list(wanted)
        self._reached = threading.Condition()
        self._position, self._over = 0, False
        self._fetched: list[tuple[int, int]] = []
        self.error: StorageError | OSError | None = None  # whoever wants the file meets it too, and tells
        self.start()

    def reach(self, position: int) -> None:
        """What is before `position` has been asked for."""
        with self._reached:
            self._position = position
            self._reached.notify()

    def close(self) -> None:
        with self._reached:
            self._over = True
            self._reached.notify()

    def run(self) -> None:
        for position, number in self._wanted:
            with self._reached:
                while not (self._over or self._may_fetch(position, number)):
                    self._reached.wait()
                if self._over:
                    return
            try:
                os.close(self._files.open(number))
            except (StorageError, OSError) as error:
                self.error = error
                return
            self._fetched.append((position, self._files.files[number].size))

    def _may_fetch(self, position: int, number: int) -> bool:
        unread = sum(size for wanted, size in self._fetched if wanted > self._position)
        return position <= self._position or unread + self._files.files[number].size <= self._files.ahead


def _lock_of(copy: Path) -> Path:
    return copy.with_name(f".{copy.name}.lock")


def _promise(copy: Path) -> Path:
    """The room that a copy on its way will need: others count it as taken."""
    return copy.with_name(f".{copy.name}.coming")


def _promised(promise: Path) -> int:
    """Its bytes; none where the process that made it has died, and with it the lock."""
    try:
        with FileLock(promise.with_suffix(".lock"), timeout=0):
            promise.unlink(missing_ok=True)
            return 0
    except Timeout:
        text = promise.read_text() if promise.exists() else ""
        return int(text or 0)


def _opened(copy: Path, size: int) -> int | None:
    try:
        descriptor = os.open(copy, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size == size:
        os.utime(descriptor)
        return descriptor
    os.close(descriptor)
    return None
