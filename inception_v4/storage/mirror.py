"""A copy of a run directory in object storage, kept up to date in the background.

Training never waits for it and never stops because of it: the local directory is the run, and the copy follows.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from inception_v4.files import megabytes
from inception_v4.storage.address_lock import AddressLock, AddressLost
from inception_v4.storage.owner import LOCK_NAME
from inception_v4.storage.remote import Place, StorageError

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
_APPENDED = (".jsonl",)
"""Suffixes of files that grow in place, as TensorBoard's do; all others are replaced as a whole."""

_CHECKPOINT = re.compile(r"checkpoints/step-([0-9]+)\.pt")

Stamp = tuple[int, int]
"""Size and time of change of a file, in bytes and nanoseconds."""


class NotUploaded(RuntimeError):
    """The run is over and whole, and its copy is not."""

    exit_code = 74


class NoMirror:
    """The off state."""

    def follow(self) -> None: ...

    def close(self, *, patience: float) -> None: ...


class Mirror:
    """Uploads what is new in `folder` to `address`, whenever `follow` is called, in a thread of its own.

    A failed upload is tried again after a pause that doubles up to a minute. What the folder no longer has is removed
    from the copy after what is new has arrived.

    Args:
        say: takes lines for people.
        lock: of the address; where it is lost nothing more is uploaded.
    """

    def __init__(
        self, folder: Path, address: str, say: Callable[[str], None], *, lock: AddressLock | None = None
    ) -> None:
        self._folder, self._place, self._say = folder, Place(address), say
        self._lock = lock or AddressLock(say)
        self._sent: dict[str, Stamp] = {}
        self._wake, self._ending, self._hurry = threading.Event(), threading.Event(), threading.Event()
        self._trouble = ""
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    def follow(self) -> None:
        """The folder has something new. Returns at once."""
        self._wake.set()

    def close(self, *, patience: float) -> None:
        """Wait for the uploads, for at most `patience` seconds.

        Raises:
            NotUploaded: some of the files have not arrived, and says how many; or another run writes there.
        """
        missing = self._missing()
        if missing:
            size = sum(state[0] for state in missing.values())
            self._say(f"waiting for {len(missing)} files ({megabytes(size)}) to reach {self._place.address}")
        for event in (self._ending, self._hurry, self._wake):
            event.set()
        self._thread.join(patience)
        if self._lock.lost:
            raise NotUploaded(
                f"{self._lock.lost}; the run is whole in {self._folder}, and the same command with --resume auto "
                f"--output-dir {self._folder} and another --upload-to uploads it"
            )
        if left := self._missing():
            raise NotUploaded(
                f"{len(left)} files of {self._folder} did not reach {self._place.address} within {patience:g} s "
                f"({self._trouble or 'they were not done'}): the run is whole in {self._folder}; the same command with "
                "--resume auto uploads the rest"
            )

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            self._wake.wait()
            self._wake.clear()
            try:
                self._upload()
                if over := self._ending.is_set() and not self._missing():
                    self._lock.beat()
            except AddressLost:
                return
            except (StorageError, OSError) as error:
                if str(error) != self._trouble:
                    self._say(f"not uploaded yet, and tried again: {error}")
                self._trouble = str(error)
                self._hurry.wait(pause)
                self._hurry.clear()
                pause = min(2 * pause, LONGEST_PAUSE)
                self._wake.set()
                continue
            if self._trouble:
                self._say(f"{self._place.address} is reached again, and up to date")
            self._trouble, pause = "", FIRST_PAUSE
            if over:
                return

    def _upload(self) -> None:
        for name, state in self._missing().items():
            snapshot = self._folder / f".upload-{os.getpid()}"
            try:
                if not self._snapshot(name, snapshot):
                    continue
                self._lock.require()
                self._place.put(snapshot, name)
            finally:
                snapshot.unlink(missing_ok=True)
            self._sent[name] = state
        for name in self._sent.keys() - self._states().keys():
            self._lock.require()
            self._place.delete(name)
            del self._sent[name]

    def _snapshot(self, name: str, snapshot: Path) -> bool:
        """The file as it is now, under another name; False where it has gone since."""
        path = self._folder / name
        # One of a process that was killed may be another name of a checkpoint: a copy would be written into that.
        snapshot.unlink(missing_ok=True)
        grows = path.suffix in _APPENDED or "tfevents" in path.name
        try:
            if grows or not _linked(path, snapshot):
                shutil.copyfile(path, snapshot)
        except FileNotFoundError:
            return False
        return True

    def _missing(self) -> dict[str, Stamp]:
        """What is new, small files first, so that figures can be read while a checkpoint is under way."""
        states = {name: state for name, state in self._states().items() if self._sent.get(name) != state}
        return dict(sorted(states.items(), key=lambda item: item[1]))

    def _states(self) -> dict[str, Stamp]:
        states = {}
        for path in self._folder.rglob("*"):
            name = path.relative_to(self._folder).as_posix()
            if path.name != LOCK_NAME and not path.name.startswith("."):
                with suppress(FileNotFoundError):  # replaced or pruned while this looks
                    if path.is_file():
                        states[name] = (path.stat().st_size, path.stat().st_mtime_ns)
        return states


def _linked(path: Path, other: Path) -> bool:
    """Whether a file has got another name; not where its file system has no hard links, or is another one."""
    try:
        os.link(path, other)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def bring_back(address: str, folder: Path) -> None:
    """What a run directory needs to go on from its copy: the newest checkpoint, weights and records; nothing where the
    directory has a checkpoint of that step or of a later one.

    Raises:
        StorageError: the copy cannot be read.
        DiskFull: no room.
    """
    place = Place(address)
    entries = place.entries()
    copied = {_step_of(entry.name): entry for entry in entries}
    here = (path.relative_to(folder).as_posix() for path in folder.glob("checkpoints/step-*.pt") if path.is_file())
    newest = max(copied, default=-1)
    if newest <= max(map(_step_of, here), default=-1):
        return
    rest = [e for e in entries if e.name in ("metrics.jsonl", "best.safetensors", "last.safetensors")]
    for entry in [*rest, copied[newest]]:  # the checkpoint last: with it nothing is brought again
        place.get(entry, folder / entry.name)


def _step_of(name: str) -> int:
    """Of a checkpoint; -1 of any other file."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else -1
