"""One writer for an address: an object that names the run which uploads there, and is refreshed while that run lives.

An object store has no locks. What it has decides how much is excluded: where it creates an object only if there is
none (S3's `If-None-Match`, Google's generation match), one of two runs that begin at once is refused by the store.
Elsewhere, and where a lock is taken over, each writes its token and reads it back after a moment; who finds another's
yields. A run that loses its lock later finds that out at its next beat, before its next file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from inception_v4.storage.owner import LOCK_NAME, Owner
from inception_v4.storage.remote import Place, StorageError

ADDRESS_BEAT = 10.0
ADDRESS_STALE_AFTER = 60.0
SETTLE = 2.0
"""Seconds between writing a token and reading it back: time for another that began in the same moment."""

_LOOK_EVERY = 1.0
_LEAVE_WITHIN = 10.0


class AddressLost(RuntimeError):
    """Another run has taken this one's address over: nothing more is uploaded; one line."""

    exit_code = 74


class AddressLock:
    """The lock of the address that a run is uploaded to, held from `acquire` to `release`.

    Attributes:
        lost: who has taken the address over, in one line; empty while nobody has.

    Args:
        say: takes lines for people.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.lost = ""
        self._place: Place | None = None
        self._owner = Owner()
        self._beats, self._beaten = 0, 0.0
        self._one = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, address: str, *, setting: str = "--output-dir") -> None:
        """Become the address's writer; free where this object is it already.

        A lock whose owner is gone is taken over, and said. One of another machine is watched until it changes, for
        at most `ADDRESS_STALE_AFTER` seconds.

        Args:
            setting: what gives a run another address.
        Raises:
            FolderInUse: its owner lives.
            StorageError: nothing can be read or written there.
        """
        place = Place(address)
        if self._place is not None and self._place.address == place.address:
            return
        seen: bytes | None = None
        since = time.monotonic()
        while True:
            found = place.read(LOCK_NAME)
            owner = Owner.read(found or b"")
            if found is None or self._is_gone(owner, same=found == seen, since=since):
                if self._claim(place, found, owner):
                    return
                seen = None
            elif owner.is_here or seen not in (None, found):
                raise owner.in_use(place.address, setting=setting)
            elif seen is None:
                self._say(owner.watched(place.address, ADDRESS_STALE_AFTER))
                seen, since = found, time.monotonic()
            time.sleep(_LOOK_EVERY)

    def require(self) -> None:
        """Before a file is uploaded; free where nothing is held.

        Raises:
            AddressLost: another run writes there.
            StorageError: no beat got through for so long that another may, and it cannot be seen whether one does.
        """
        if self._place is not None and time.monotonic() - self._beaten > ADDRESS_STALE_AFTER:
            self.beat()
        if self.lost:
            raise AddressLost(self.lost)

    def beat(self) -> None:
        """Refresh the lock, or notice that it was lost; free where nothing is held.

        Raises:
            StorageError: the store is out of reach.
        """
        with self._one:
            place = self._place
            if place is None or self.lost:
                return
            found = place.read(LOCK_NAME)
            # One that is not there was removed by hand, or by a run that has taken it over and ended.
            removed = found is None and time.monotonic() - self._beaten < ADDRESS_STALE_AFTER
            if not removed and not self._is_mine(found):
                other = Owner.read(found).who if found is not None else "a run that has ended"
                self.lost = f"{place.address} was taken over by {other}: nothing more of this run is uploaded"
                self._say(self.lost)
                return
            place.write(LOCK_NAME, self._text())
            self._beaten = time.monotonic()

    def release(self) -> None:
        """Give the address back; free where nothing is held. Where the store is out of reach the lock goes stale."""
        if self._thread is not None:
            self._done.set()
            self._thread.join(_LEAVE_WITHIN)
        self._thread, self._place = None, None

    def _is_gone(self, owner: Owner, *, same: bool, since: float) -> bool:
        if owner.is_here:
            return not owner.runs_here
        return same and time.monotonic() - since >= ADDRESS_STALE_AFTER

    def _claim(self, place: Place, found: bytes | None, earlier: Owner) -> bool:
        """Write this run's token; False where another's is there in the end."""
        self._owner = Owner.this()
        new = found is None
        place.write(LOCK_NAME, self._text(), only_new=new)
        # A store that knows the condition refuses the second; one that does not has written it again.
        if not (new and place.excludes and not place.write(LOCK_NAME, self._text(), only_new=True)):
            time.sleep(SETTLE)
        if not self._is_mine(place.read(LOCK_NAME)):
            return False
        if found is not None:
            self._say(earlier.gone(place.address))
        self.lost, self._place, self._beaten = "", place, time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._keep_fresh, args=(place, self._done), name="address lock", daemon=True
        )
        self._thread.start()
        return True

    def _keep_fresh(self, place: Place, done: threading.Event) -> None:
        while not done.wait(ADDRESS_BEAT):
            with suppress(StorageError, OSError):  # Out of reach: the uploads say so, and `require` looks again.
                self.beat()
        with suppress(StorageError, OSError):
            if not self.lost and self._is_mine(place.read(LOCK_NAME)):
                place.delete(LOCK_NAME)

    def _is_mine(self, found: bytes | None) -> bool:
        return found is not None and Owner.read(found).holds_with(self._owner)

    def _text(self) -> bytes:
        self._beats += 1
        return self._owner.text(beat=self._beats, at=time.strftime("%Y-%m-%d %H:%M:%S")).encode()
