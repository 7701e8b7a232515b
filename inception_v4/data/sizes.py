"""The side of the network's input in each epoch: one for all, or a ladder that is climbed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inception_v4.preprocessing import MIN_IMAGE_SIZE

if TYPE_CHECKING:
    from inception_v4.settings.schema import Augmentation

STRIDE = 32
"""Of the network: at `MIN_IMAGE_SIZE` + 32 k pixels its last map has k + 1 columns and no pixel is left over."""

CLOSEST = 16
"""Pixels between two sizes, at least: a step costs a compilation, and memory for other shapes."""

FINAL_SHARE = 4
"""One part in so many of the epochs, rounded up, has the final size."""


def ladder(first: int, last: int) -> tuple[int, ...]:
    """`first`, the sizes between that suit the network (75, 107, 139, 171, 203, 235, 267, 299, ...), and `last`."""
    rungs = range(MIN_IMAGE_SIZE, last, STRIDE)
    between = (size for size in rungs if first + CLOSEST <= size <= last - CLOSEST)
    return tuple(dict.fromkeys((first, *between, last)))


@dataclass(frozen=True)
class ImageSizes:
    """A function of the epoch alone, so that a run which goes on, or has other batches, has the same sizes.

    The last quarter of the epochs, rounded up, has the final size; the others are shared evenly among the smaller
    sizes, in rising order. Where there are fewer epochs than sizes some sizes are left out, never the first one.

    Attributes:
        rungs: sides in pixels, rising; the last one is the size of validation and of the finished weights.
        epochs: of the whole run, by its schedule.
    """

    rungs: tuple[int, ...]
    epochs: int = 1

    @classmethod
    def of(cls, how: Augmentation, epochs: int) -> ImageSizes:
        return cls(ladder(how.first_image_size or how.image_size, how.image_size), epochs)

    def __call__(self, epoch: int) -> int:
        """The side in epoch `epoch`, counted from 0; epochs after the last one have its size."""
        growing = self.epochs - -(-self.epochs // FINAL_SHARE)
        smaller = len(self.rungs) - 1
        return self.rungs[epoch * smaller // growing] if epoch < growing else self.rungs[-1]

    def __str__(self) -> str:
        """For people: `128 px (epochs 1-3), 171 px (epoch 4), ...`."""
        starts = [e for e in range(self.epochs) if e == 0 or self(e) != self(e - 1)]
        ends = [*starts[1:], self.epochs]
        if len(starts) == 1:
            return f"{self(0)} px"
        return ", ".join(
            f"{self(start)} px (epoch{f's {start + 1}-{end}' if end - start > 1 else f' {end}'})"
            for start, end in zip(starts, ends, strict=True)
        )
