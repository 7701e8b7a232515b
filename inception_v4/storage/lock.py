"""One writer for a run directory: a lock file that names its owner and is kept fresh for as long as the owner lives.

Within one machine the owner's process says whether a lock still counts. From another machine only the file can be
seen: it is touched every `BEAT` seconds, and one that nobody touches for `STALE_AFTER` seconds is taken over. Ages are
differences of two times that the file system gave, so that the clocks of two machines need not agree.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from inception_v4.files import atomic_write, require_writable
from inception_v4.storage.address_lock import AddressLock
from inception_v4.storage.owner import LOCK_NAME, FolderInUse, Owner

BEAT = 5.0
STALE_AFTER = 30.0
_POLL = 0.5


@dataclass(frozen=True)
class _Found:
    """A lock file as it is at one moment: what it says, and when it was touched, in seconds of the file system."""

    owner: Owner
    touched: float


class FolderLock:
    """A folder's lock, held from `acquire` to the end of the `with` block.

    Attributes:
        upload: the lock of the address that the folder is uploaded to, given back with it.

    Args:
        say: takes lines for people.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.upload = AddressLock(say)
        self._path: Path | None = None
        self._owner = Owner()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.upload.release()
        self.release()

    def acquire(self, folder: Path) -> None:
        """Become the folder's writer; free where this object is it already.

        A lock whose owner is gone is taken over, and said. One of another machine is watched until it is touched,
        for at most `STALE_AFTER` seconds.

        Raises:
            FolderInUse: its owner lives.
            DiskFull: nothing can be written there.
        """
        path = folder / LOCK_NAME
        if self._path == path:
            return
        require_writable(folder)
        seen: _Found | None = None
        while True:
            with FileLock(folder / f".{LOCK_NAME}.guard"):
                found = _read(path)
                if found is None or not _lives(found, folder):
                    self._take(path, found)
                    return
            if found.owner.is_here or (seen is not None and found != seen):
                raise found.owner.in_use(folder, setting="--output-dir")
            if seen is None:
                self._say(found.owner.watched(folder, STALE_AFTER))
            seen = found
            time.sleep(_POLL)

    def require(self) -> None:
        """Raises FolderInUse where the lock was lost: this process was silent so long that another one took over."""
        if self._path is None or self._is_mine(self._path):
            return
        found = _read(self._path)
        other = found.owner.who if found else "a process that has ended"
        raise FolderInUse(f"{self._path.parent} was taken over by {other}: this run stops and writes nothing more")

    def release(self) -> None:
        """Give the folder back; free where nothing is held."""
        if self._path is None or self._thread is None:
            return
        self._done.set()
        self._thread.join()
        if self._is_mine(self._path):
            with suppress(OSError):  # A disk that has become read-only: the lock goes stale by itself.
                self._path.unlink()
        self._path = None
        self._done.clear()

    def _take(self, path: Path, found: _Found | None) -> None:
        self._owner = Owner.this()
        with atomic_write(path) as temporary:
            temporary.write_text(self._owner.text(), encoding="utf-8")
        if found is not None:
            self._say(found.owner.gone(path.parent))
        self._path = path
        self._thread = threading.Thread(target=self._keep_fresh, args=(path,), name="run lock", daemon=True)
        self._thread.start()

    def _keep_fresh(self, path: Path) -> None:
        while not self._done.wait(BEAT):
            with suppress(OSError):  # Out of reach for a moment; `require` notices a lock that was lost.
                if self._is_mine(path):
                    os.utime(path)

    def _is_mine(self, path: Path) -> bool:
        found = _read(path)
        return found is not None and found.owner.holds_with(self._owner)


def _read(path: Path) -> _Found | None:
    """The lock file; None where there is none. One that is no lock's has an owner without a name."""
    try:
        with open(path, "rb") as file:  # opening asks a network file system for the file's present state
            content, touched = file.read(4096), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    return _Found(Owner.read(content), touched)


def _lives(found: _Found, folder: Path) -> bool:
    if found.owner.is_here:
        return found.owner.runs_here
    with tempfile.TemporaryFile(dir=folder) as now:
        return os.fstat(now.fileno()).st_mtime - found.touched < STALE_AFTER
