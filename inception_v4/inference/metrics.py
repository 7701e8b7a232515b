"""Counting correct predictions and measuring throughput."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor


def topk_hits(logits: Tensor, labels: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """Whether the label is the first, and among the first k, of the classes.

    Args:
        logits: [B, K]; labels: int64 [B].
        k: clipped to the number of classes.
    Returns:
        Two bool tensors [B].
    """
    ranked = logits.topk(min(k, logits.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    return hits[:, 0], hits.any(dim=1)


class Throughput:
    """Images per second of a loop, without its first seconds.

    The first `warmup` calls of `update` (compilation, allocator and cache warm-up) and the time up to them are
    left out. `pause()` and `resume()` leave out validation and checkpointing.
    """

    def __init__(self, *, warmup: int = 3, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._warmup = clock, warmup
        self.images, self.seconds, self.calls = 0, 0.0, 0
        self._since: float | None = None

    def update(self, images: int) -> None:
        """Count a finished step of `images` images."""
        now = self._clock()
        self.calls += 1
        if self._since is not None and self.calls > self._warmup:
            self.images += images
            self.seconds += now - self._since
        self._since = now

    def pause(self) -> None:
        """The time until the next `resume` does not count."""
        self._since = None

    def resume(self) -> None:
        self._since = self._clock()

    @property
    def per_second(self) -> float | None:
        """Images per second; None before anything was measured."""
        return self.images / self.seconds if self.seconds > 0 else None


def class_table(confused: Tensor, names: tuple[str, ...] | None) -> list[dict[str, object]]:
    """Rows of the per-class table from `confused` [K, 3]: samples, top-1 hits, top-5 hits of each class."""
    rows = []
    for index, (total, first, fifth) in enumerate(confused.tolist()):
        if total:
            name = names[index] if names and index < len(names) else str(index)
            rows.append(
                {"class": name, "samples": total, "top1": 100 * first / total, "top5": 100 * fifth / total}
            )  # fmt: skip
    return rows
