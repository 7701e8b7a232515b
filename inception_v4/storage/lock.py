"""One writer for a run directory: a lock file that names its owner and is kept fresh for as long as the owner lives.

Within one machine the owner's process says whether a lock still counts. From another machine only the file can be
seen: it is touched every `BEAT` seconds, and one that nobody touches for `STALE_AFTER` seconds is taken over. Ages are
differences of two times that the file system gave, so that the clocks of two machines need not agree.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from inception_v4.files import atomic_write, require_writable

NAME = "run.lock"
BEAT = 5.0
STALE_AFTER = 30.0
_POLL = 0.5


class FolderInUse(ValueError):
    """Another process writes into this folder; one line that names its host and pid."""


@dataclass(frozen=True)
class _Found:
    """A lock file as it is at one moment: what it says, and when it was touched, in seconds of the file system."""

    owner: dict[str, Any]
    touched: float

    @property
    def who(self) -> str:
        owner = self.owner
        if "host" not in owner:
            return "an owner that its file does not name"
        return f"process {owner.get('pid')} on {owner['host']}, since {owner.get('since', 'an unknown time')}"


class FolderLock:
    """A folder's lock, held from `acquire` to the end of the `with` block.

    Args:
        say: takes lines for people.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._path: Path | None = None
        self._owner: dict[str, Any] = {}
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def acquire(self, folder: Path) -> None:
        """Become the folder's writer; free where this object is it already.

        A lock whose owner is gone is taken over, and said. One of another machine is watched until it is touched,
        for at most `STALE_AFTER` seconds.

        Raises:
            FolderInUse: its owner lives.
            DiskFull: nothing can be written there.
        """
        path = folder / NAME
        if self._path == path:
            return
        require_writable(folder)
        seen: _Found | None = None
        while True:
            with FileLock(folder / f".{NAME}.guard"):
                found = _read(path)
                if found is None or not _lives(found, folder):
                    self._take(path, found)
                    return
            if _is_here(found.owner) or (seen is not None and found != seen):
                raise FolderInUse(
                    f"{folder} is written to by {found.who}: wait for it or stop it, or give another --output-dir"
                )
            if seen is None:
                self._say(f"{folder} is locked by {found.who}: watching for a sign of life for {STALE_AFTER:g} s")
            seen = found
            time.sleep(_POLL)

    def require(self) -> None:
        """Raises FolderInUse where the lock was lost: this process was silent so long that another one took over."""
        if self._path is None or self._is_mine(self._path):
            return
        found = _read(self._path)
        who = found.who if found else "a process that has ended"
        raise FolderInUse(f"{self._path.parent} was taken over by {who}: this run stops and writes nothing more")

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
        self._owner = _identity() | {"token": uuid.uuid4().hex, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self._owner), encoding="utf-8")
        if found is not None:
            self._say(f"{path.parent} was locked by {found.who}, which is gone: the lock is taken over")
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
        return found is not None and found.owner.get("token") == self._owner["token"]


def _read(path: Path) -> _Found | None:
    """The lock file; None where there is none. One that is no lock's has an owner without a name."""
    try:
        with open(path, "rb") as file:  # opening asks a network file system for the file's present state
            content, touched = file.read(4096), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        owner = json.loads(content)
    except ValueError:
        owner = {}
    return _Found(owner if isinstance(owner, dict) else {}, touched)


def _lives(found: _Found, folder: Path) -> bool:
    if _is_here(found.owner):
        started = _process_started(found.owner.get("pid"))
        return started is not None and started == found.owner.get("started")
    with tempfile.TemporaryFile(dir=folder) as now:
        return os.fstat(now.fileno()).st_mtime - found.touched < STALE_AFTER


def _identity() -> dict[str, Any]:
    """This process, and what tells its machine and its numbering of processes (a container's) from others."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _process_started(pid), **_machine()}


def _machine() -> dict[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    return {
        "boot": boot.read_text(encoding="ascii").strip() if boot.exists() else "",
        "processes": os.readlink(namespace) if namespace.is_symlink() else "",
    }


def _is_here(owner: dict[str, Any]) -> bool:
    """Whether the owner's pid is one that this process can look up."""
    mine = _machine()
    return bool(mine["boot"]) and all(owner.get(name) == value for name, value in mine.items())


def _process_started(pid: Any) -> str | None:
    """Clock ticks from the machine's start to the process's, which tell it from a later one of the same pid."""
    try:
        stat = Path(f"/proc/{int(pid)}/stat").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError, TypeError):
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]  # a zombie writes nothing
