"""Loaders. Sample `i` of epoch `e` is a pure function of `(seed, e, i)`.

The order of the pictures, the number of workers and of processes and restarts change no sample, and no loader
touches the random numbers of the process it runs in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from inception_v4.accelerator import Accelerator
from inception_v4.data.labelled import Source
from inception_v4.data.order import EpochSampler, Key, own_batches
from inception_v4.data.pictures import CorruptImage
from inception_v4.data.sizes import ImageSizes
from inception_v4.data.views import ONE, Views, eval_transform
from inception_v4.data.workers import received_batches, start_worker, worker_count
from inception_v4.preprocessing import Preprocessing
from inception_v4.storage.remote import StorageError

if TYPE_CHECKING:
    from inception_v4.distributed import World
    from inception_v4.settings.schema import Augmentation, Data

_MOST_SKIPPED = 100  # consecutive unreadable pictures that are passed over in training


@dataclass(frozen=True)
class Batch:
    """Pictures on their way to the network.

    Attributes:
        images: [B, C, S, S] uint8, in memory [B, S, S, C]; C is 3, or 1 for grey pictures. [B, V, C, S, S] where
            each picture has V crops.
        labels, indices: [B] int64; indices are positions in the source. Labels are uint8 [B, K], 1 for each class of
            a picture, where it may have several.
        erase: [B, 4] int32, random erasing's boxes (top, left, bottom, right), or None.
        skipped: a message for each picture that could not be read.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    erase: Tensor | None = None
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """A copy on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _map(self, change: Any) -> Batch:
        erase = None if self.erase is None else change(self.erase)
        return Batch(change(self.images), change(self.labels), change(self.indices), erase, self.skipped)


@dataclass(frozen=True)
class _Sample:
    image: Tensor | None  # None: left out
    label: int | Tensor
    index: int
    erase: Tensor | None
    skipped: list[str]


class TrainLoader:
    """Batches of augmented pictures, in a new order each epoch.

    Global batch k of an epoch holds the same samples for every number of processes with the same
    `batch_size x processes`; this process gets every `world.size`-th of them. With `drop_last` off the last batch
    is short, and a process that would get none of it repeats one sample.

    With `aug_splits` S a batch of B samples has S x B pictures: first the B clean ones, then S - 1 times the same,
    augmented anew, as timm's AugMixDataset and its collation make them.

    Attributes:
        samples: of an epoch.
        steps_per_epoch: batches per epoch.
        sizes: side of the pictures in each epoch; where none are given, `augmentation.image_size` in all of them.
        global_batch: pictures per batch over all processes.
        skipped: messages about unreadable pictures so far; each was replaced by the next one in the source.

    Raises:
        ValueError: the settings contradict each other or the data.
    """

    def __init__(
        self,
        source: Source,
        data: Data,
        augmentation: Augmentation,
        *,
        world: World,
        seed: int,
        pin_memory: bool = False,
        sizes: ImageSizes | None = None,
    ) -> None:
        self.skipped: list[str] = []
        self.sizes = sizes or ImageSizes((augmentation.image_size,))
        self._sampler = EpochSampler(len(source), data, augmentation.aug_repeats, world=world, seed=seed, source=source)
        self.samples, self.global_batch = self._sampler.samples, self._sampler.batch
        self.steps_per_epoch = self._sampler.steps
        self._loader = _loader(
            _TrainSet(source, data, augmentation, seed, self.sizes),
            self._sampler,
            workers=worker_count(data.workers, world),
            pin_memory=pin_memory,
            collate=_collate_parts,
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from its sample `start` on; what comes before is not read. One epoch at a time."""
        self._sampler.epoch, self._sampler.start = epoch, start
        return received_batches(iter(self._loader), self.skipped)


class EvalLoader:
    """Every picture once, in order: this process gets pictures rank, rank + size, ...; no padding.

    Unreadable pictures are left out; their messages are in `Batch.skipped` (of an empty batch where none of its
    pictures can be read) and in `skipped`. `source` is where they come from.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        workers: int | None,
        world: World,
        on_corrupt: str = "error",
        pin_memory: bool = False,
        views: Views = ONE,
    ) -> None:
        self.source = source
        self.skipped: list[str] = []
        self._mine, self._batch_size = range(world.rank, len(source), world.size), batch_size
        self._loader = _loader(
            _EvalSet(source, preprocessing, views, skip=on_corrupt == "skip"),
            own_batches(len(source), batch_size, world),
            workers=worker_count(workers, world),
            pin_memory=pin_memory,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = received_batches(iter(self._loader), self.skipped)
        asked = self.source.read_ahead(np.asarray(self._mine, np.int64))
        for number, batch in enumerate(batches):
            asked(number * self._batch_size)
            yield batch


class _TrainSet(Dataset):
    def __init__(self, source: Source, data: Data, augmentation: Augmentation, seed: int, sizes: ImageSizes) -> None:
        self._source, self._augmentation, self._seed, self._sizes = source, augmentation, seed, sizes
        self._skip = data.on_corrupt == "skip"
        # torchvision's, which takes long to import: here, so that loader processes need not.
        from inception_v4.data.augment import TrainTransform

        # A worker lives through all epochs: the key of a sample says which one it is of.
        self._transforms = {
            size: TrainTransform(augmentation.model_copy(update={"image_size": size})) for size in sizes.rungs
        }
        # Without antialiasing pixels are picked, not averaged, and must be those of the file.
        self._reduce = data.scaled_decoding and augmentation.train_crop == "random_resized" and augmentation.antialias

    def __getitem__(self, key: Key) -> list[_Sample] | Exception:
        return _caught(self._sample, key)

    def _sample(self, key: Key) -> list[_Sample]:
        index = key.picture
        skipped: list[str] = []
        while True:
            try:
                return self._augmented(index, key, skipped)
            except CorruptImage as error:
                if not self._skip:
                    raise
                skipped.append(str(error))
            if len(skipped) == min(_MOST_SKIPPED, len(self._source)):
                raise CorruptImage(f"{len(skipped)} pictures in a row cannot be read; the first: {skipped[0]}")
            # The next readable picture takes its place: a batch keeps its size.
            index = (index + 1) % len(self._source)

    def _augmented(self, index: int, key: Key, skipped: list[str]) -> list[_Sample]:
        """The sample, or the parts of it that go into the parts of a split batch: the first one is clean."""
        rng, size = key.generator(self._seed), self._sizes(key.epoch)
        transform = self._transforms[size]
        image = self._source.load_box(
            index,
            partial(transform.box, rng=rng),
            least=size if self._reduce else None,
            exif_rotation=self._augmentation.exif_rotation,
        )
        rngs = [rng, *(key.generator(self._seed, split) for split in range(1, transform.how.aug_splits))]
        label = self._source.target(index)
        return [
            _Sample(part, label, index, erase, [] if number else skipped)
            for number, (part, erase) in enumerate(transform.parts(image, rngs))
        ]


class _EvalSet(Dataset):
    def __init__(self, source: Source, preprocessing: Preprocessing, views: Views, *, skip: bool) -> None:
        self._source, self._skip = source, skip
        self._transform = eval_transform(preprocessing, views)
        self._exif_rotation = preprocessing.exif_rotation

    def __getitem__(self, index: int) -> _Sample | Exception:
        return _caught(self._sample, index)

    def _sample(self, index: int) -> _Sample:
        try:
            image = self._transform(self._source.load(index, exif_rotation=self._exif_rotation))
        except CorruptImage as error:
            if not self._skip:
                raise
            return _Sample(None, 0, index, None, [str(error)])
        return _Sample(image, self._source.target(index), index, None, [])


def _caught(read: Any, key: Any) -> Any:
    """A picture's error as a value: raised in a worker it would arrive wrapped in a traceback."""
    try:
        return read(key)
    except (CorruptImage, OSError, StorageError) as error:
        return error


def _collate_parts(samples: Sequence[list[_Sample] | Exception]) -> Batch | Exception:
    """The first part of every sample, then the second of every one, and so on."""
    whole = [sample for sample in samples if isinstance(sample, list)]
    if len(whole) < len(samples):
        return next(sample for sample in samples if isinstance(sample, Exception))
    return _collate([part for parts in zip(*whole, strict=True) for part in parts])


def _collate(samples: Sequence[_Sample | Exception]) -> Batch | Exception:
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
    good = [sample for sample in samples if isinstance(sample, _Sample)]
    skipped = [message for sample in good for message in sample.skipped]
    good = [sample for sample in good if sample.image is not None]
    images = [sample.image.movedim(-3, -1) for sample in good if sample.image is not None]
    if not good:
        empty = torch.zeros(0, dtype=torch.int64)  # nobody looks at the channels of no picture
        return Batch(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), empty, empty, None, skipped)
    return Batch(
        # Straight into shared memory, the three values of a pixel together as the transforms leave them.
        images=default_collate(images).movedim(-1, -3),
        labels=default_collate([sample.label for sample in good]),
        indices=torch.tensor([sample.index for sample in good]),
        erase=None if good[0].erase is None else default_collate([sample.erase for sample in good]),
        skipped=skipped,
    )


def _loader(
    dataset: Dataset, batch_sampler: Any, *, workers: int, pin_memory: bool, collate: Any = _collate
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        # Without one of its own the loader draws a seed from the global generator.
        generator=torch.Generator(),
    )


def on_device(batches: Iterable[Any], accelerator: Accelerator) -> Iterator[Any]:
    """The batches on the device, each copied on a side stream while the one before is being computed."""
    copier = accelerator.copy_stream()
    ahead = None
    for batch in batches:
        with copier:
            # From memory that is not pinned a device may still read when it has been freed.
            upcoming = batch.to(accelerator.device, non_blocking=accelerator.pin_memory)
        if ahead is not None:
            yield copier.ready(ahead)
        ahead = upcoming
    if ahead is not None:
        yield copier.ready(ahead)
