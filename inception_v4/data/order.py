"""Which samples a process gets in an epoch, in what order, and the random numbers of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from inception_v4.distributed import World
    from inception_v4.settings.schema import Data

_ORDER, _SAMPLE = 1, 2  # streams of random numbers


class Key(NamedTuple):
    """A sample."""

    epoch: int
    picture: int
    draw: int  # of the same picture in the same epoch

    def generator(self, seed: int) -> Random:
        """The sample's random numbers: a function of the seed and the key, and of nothing else."""
        return Random(" ".join(map(str, (_SAMPLE, seed, *self))))


class EpochSampler:
    """Batches of keys for one process: the order of an epoch is a function of the seed and the epoch alone.

    Attributes:
        epoch, start: what is iterated over: this epoch, from this sample of it on.
        samples: of an epoch.
        batch: samples of a batch over all processes.
        steps: batches of an epoch.

    Args:
        labels: of the pictures; needed where `data` asks for balanced sampling.
    """

    def __init__(
        self, length: int, data: Data, repeats: int, *, world: World, seed: int, labels: Sequence[int] = ()
    ) -> None:
        self.epoch = self.start = 0
        self._labels = np.asarray(labels) if data.balanced_sampling else None
        self.samples, self._shuffle, self._seed, self._drop_last = length, data.shuffle, seed, data.drop_last
        self._repeats = max(1, repeats)
        self._world = world
        self.batch = data.batch_size * world.size
        self.steps = self._batches(length)
        if self._repeats > 1 and not data.shuffle:
            raise ValueError(f"aug_repeats {repeats} with shuffle off would leave out the same pictures every epoch")
        if data.balanced_sampling and (self._repeats > 1 or not data.shuffle):
            other = f"aug_repeats {repeats}" if self._repeats > 1 else "shuffle off"
            raise ValueError(f"balanced_sampling has an order of its own: it cannot be had with {other}")
        if self.steps == 0:
            raise ValueError(
                f"a batch of {self.batch} (batch_size {data.batch_size} x {world.size} processes) is more than the "
                f"{length} training pictures: lower batch_size or set drop_last false"
            )

    def __len__(self) -> int:
        return self._batches(self.samples - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        keys = self._order()
        for number in range(len(self)):
            first = self.start + number * self.batch
            whole = keys[first : first + self.batch]
            mine = whole[self._world.rank :: self._world.size]
            if len(mine) == 0:
                mine = whole[self._world.rank % len(whole)][None]
            yield [Key(self.epoch, int(picture), int(draw)) for picture, draw in mine]

    def _batches(self, samples: int) -> int:
        return samples // self.batch if self._drop_last else -(-samples // self.batch)

    def _order(self) -> np.ndarray:
        """(picture, draw) of each sample of the epoch, [length, 2].

        With repeated augmentation an epoch has as many samples as without, of fewer pictures.
        """
        if self._labels is not None:
            return _balanced_order(self._labels, np.random.default_rng([_ORDER, self._seed, self.epoch]))
        order = np.arange(self.samples)
        if self._shuffle:
            order = np.random.default_rng([_ORDER, self._seed, self.epoch]).permutation(self.samples)
        draws = np.tile(np.arange(self._repeats), self.samples)
        return np.stack([np.repeat(order, self._repeats), draws], axis=1)[: self.samples]


def _balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(picture, draw) of each sample, [length, 2]: of every class equally many, or one more.

    A class is gone through as a whole before any of its pictures comes again, with another draw.
    """
    classes = np.unique(labels)
    shares = np.full(len(classes), len(labels) // len(classes))
    shares[rng.permutation(len(classes))[: len(labels) % len(classes)]] += 1
    parts = []
    for label, share in zip(classes, shares, strict=True):
        members = np.flatnonzero(labels == label)
        rounds = [rng.permutation(members) for _ in range(-(-share // len(members)))]
        draws = np.repeat(np.arange(len(rounds)), len(members))
        parts.append(np.stack([np.concatenate([members[:0], *rounds]), draws], axis=1)[:share])
    return rng.permutation(np.concatenate(parts))
