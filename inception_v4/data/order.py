"""Which samples a process gets in an epoch, in what order, and the random numbers of each."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inception_v4.data.labelled import Source, nothing_to_fetch

if TYPE_CHECKING:
    from inception_v4.distributed import World
    from inception_v4.settings.schema import Data

_ORDER, _SAMPLE = 1, 2  # streams of random numbers


class Key(NamedTuple):
    """A sample."""

    epoch: int
    picture: int
    draw: int  # of the same picture in the same epoch

    def generator(self, seed: int, split: int = 0) -> Random:
        """The sample's random numbers: a function of the seed and the key, and of nothing else.

        Those of a further `split` of it are unrelated.
        """
        return Random(" ".join(map(str, (_SAMPLE, seed, *self, *([split] if split else [])))))


class EpochSampler:
    """Batches of keys for one process: the order of an epoch is a function of the seed and the epoch alone.

    Attributes:
        epoch, start: what is iterated over: this epoch, from this sample of it on.
        samples: of an epoch.
        batch: samples of a batch over all processes.
        steps: batches of an epoch.

    Args:
        source: of the pictures; needed for balanced sampling, and where archives decide on the order.
    """

    def __init__(
        self, length: int, data: Data, repeats: int, *, world: World, seed: int, source: Source | None = None
    ) -> None:
        self.epoch = self.start = 0
        self._source = source
        self._labels = np.asarray(source.labels) if source and data.balanced_sampling else None
        self._shards, self._buffer = source.shards if source else None, data.shard_buffer
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
        asked = self._source.read_ahead(keys[self.start :, 0]) if self._source else nothing_to_fetch
        for number in range(len(self)):
            first = self.start + number * self.batch
            asked(number * self.batch)
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
        order, rng = np.arange(self.samples), np.random.default_rng([_ORDER, self._seed, self.epoch])
        if self._shuffle and self._shards is not None:
            order = _order_by_shards(self._shards, self._buffer, rng)
        elif self._shuffle:
            order = rng.permutation(self.samples)
        draws = np.tile(np.arange(self._repeats), self.samples)
        return np.stack([np.repeat(order, self._repeats), draws], axis=1)[: self.samples]


def own_batches(length: int, batch_size: int, world: World) -> list[list[int]]:
    """Numbers below `length` for this process, rank, rank + size, ..., in batches: each once over all processes."""
    mine = range(world.rank, length, world.size)
    return [list(mine[first : first + batch_size]) for first in range(0, len(mine), batch_size)]


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


def _order_by_shards(shards: np.ndarray, buffer: int, rng: np.random.Generator) -> np.ndarray:
    """Shards in a random order, each read once, and `buffer` pictures after another shuffled among themselves."""
    numbers = np.unique(shards)
    place = np.empty(int(shards.max()) + 1, np.int64)
    place[rng.permutation(numbers)] = np.arange(len(numbers))
    order = np.argsort(place[shards], kind="stable")
    return np.concatenate([rng.permutation(order[first : first + buffer]) for first in range(0, len(order), buffer)])
