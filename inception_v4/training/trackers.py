"""Other programs that are told a run's figures, each in a thread of its own: none can stop a run, or hold it up."""

from __future__ import annotations

import math
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from inception_v4.console import say

_ROOM = 10_000
"""Records that may wait for a slow program; later ones are lost, which is said."""
_PATIENCE = 120.0
"""Seconds after the run for what still waits."""

FINISHED, STOPPED, BROKEN_OFF = "finished", "stopped", "failed"
"""How a run may end."""


class TrackerMissing(RuntimeError):
    """A program that was asked for and cannot be used; one line with the remedy."""


class Tracker(Protocol):
    """One program, with a run of its own opened in it."""

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Figures by names like `train/loss`."""

    def close(self, outcome: str) -> None: ...


class TrackerThread:
    """A tracker, opened and told in a thread. Its first error is said, and then it is left alone.

    Args:
        open: in the thread, at the first record.
    """

    def __init__(self, name: str, open: Callable[[], Tracker]) -> None:
        self._name, self._open = name, open
        self._waiting: queue.Queue[tuple[int, dict[str, float]] | str] = queue.Queue(_ROOM)
        self._thread: threading.Thread | None = None
        self._broken = False

    def write(self, record: dict[str, Any]) -> None:
        """A record of the run's log."""
        if self._broken:
            return
        if self._thread is None:
            # Not one that the program would wait for: it may hang.
            self._thread = threading.Thread(target=self._work, name=f"{self._name} tracker", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((record["step"], figures_of(record)))
        except queue.Full:
            self._give_up(f"takes no records ({_ROOM} wait)")

    def close(self, outcome: str) -> None:
        """Wait for what it has not taken yet, for a while."""
        if self._thread is None or self._broken:
            return
        try:
            self._waiting.put_nowait(outcome)
        except queue.Full:
            return self._give_up(f"takes no records ({_ROOM} wait)")
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._give_up(f"has not taken everything within {_PATIENCE:g} s")

    def _work(self) -> None:
        try:
            tracker = self._open()
            while not isinstance(item := self._waiting.get(), str):
                tracker.log(*item)
            tracker.close(item)
        except Exception as error:  # whatever the program and its network raise: the run goes on
            self._give_up(" ".join(f"{type(error).__name__}: {error}".split())[:300])

    def _give_up(self, reason: str) -> None:
        self._broken = True
        say(f"{self._name} gets no more of this run, which goes on: {reason}")


def figures_of(record: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a record, by names like `train/loss`."""
    return {
        f"{record['kind']}/{name}": float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, (int, float)) and math.isfinite(value)
    }


def outcome_now() -> str:
    """Of a run that is being left: by an error under way, or by none."""
    error = sys.exc_info()[1]
    if error is None:
        return FINISHED
    stopped = isinstance(error, KeyboardInterrupt) or hasattr(error, "exit_code")
    return STOPPED if stopped else BROKEN_OFF
