"""Images per second of a training loop, and how much of its time goes by waiting for data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throughput:
    """Images per second of a loop, without its first seconds.

    The first `warmup` calls of `update` (compilation, allocator and cache warm-up) and the time up to them are
    left out. `pause()` and `resume()` leave out validation and checkpointing.
    """

    def __init__(self, *, warmup: int = 3, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._warmup = clock, warmup
        self.images, self.seconds, self.calls = 0, 0.0, 0
        self._since: float | None = None
        self._waited, self._lap = 0.0, 0.0  # since the last `data_wait`

    def update(self, images: int) -> None:
        """Count a finished step of `images` images."""
        now = self._clock()
        self.calls += 1
        if self._since is not None:
            self._lap += now - self._since
        if self._since is not None and self.calls > self._warmup:
            self.images += images
            self.seconds += now - self._since
        self._since = now

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time of the block is one of waiting for data."""
        began = self._clock()
        yield
        self._waited += self._clock() - began

    def data_wait(self) -> float:
        """Share of the steps' time since the last call, from 0 to 1, that was one of waiting for data."""
        share = min(1.0, self._waited / self._lap) if self._lap > 0 else 0.0
        self._waited, self._lap = 0.0, 0.0
        return share

    def pause(self) -> None:
        """The time until the next `resume` does not count."""
        self._since = None

    def resume(self) -> None:
        self._since = self._clock()

    @property
    def per_second(self) -> float | None:
        """Images per second; None before anything was measured."""
        return self.images / self.seconds if self.seconds > 0 else None
