"""Complete training loaders side by side: pictures per second, from files to normalised batches on the device."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader

from inception_v4.accelerator import Accelerator
from inception_v4.console import track
from inception_v4.data.folders import holds_classes
from inception_v4.data.loader import TrainLoader, on_device
from inception_v4.data.local import existing_folder
from inception_v4.data.mixing import MixAndErase
from inception_v4.data.normalise import Normalise
from inception_v4.data.packing import Destination, pack
from inception_v4.data.shards import ShardFolder
from inception_v4.data.sources import FolderSource, Source, Subset
from inception_v4.data.splits import balanced
from inception_v4.data.workers import worker_count
from inception_v4.distributed import World
from inception_v4.settings.schema import Augmentation, Data


class Recipe(NamedTuple):
    """The same augmentation in each program's words."""

    ours: dict[str, Any]
    timm: dict[str, Any]
    torchvision: Callable[[], tuple[list[Any], list[Any]]]  # on pictures, and on normalised tensors


def _randaugment() -> tuple[list[Any], list[Any]]:
    from torchvision import transforms

    return [transforms.RandAugment(2, 9, interpolation=transforms.InterpolationMode.BILINEAR)], []


def _autoaugment_and_erasing() -> tuple[list[Any], list[Any]]:
    from torchvision import transforms

    policy = transforms.AutoAugment(interpolation=transforms.InterpolationMode.BILINEAR)
    return [policy], [transforms.RandomErasing(0.25)]


RECIPES = {
    "crop, flip": Recipe({}, {}, lambda: ([], [])),
    # Without p1 timm leaves every second operation out.
    "crop, flip, RandAugment": Recipe(
        {"auto_augment": "randaug-m9-n2"}, {"auto_augment": "rand-m9-n2-p1"}, _randaugment
    ),
    "crop, flip, AutoAugment, erasing": Recipe(
        {"auto_augment": "autoaug", "re_prob": 0.25},
        {"auto_augment": "original", "re_prob": 0.25},
        _autoaugment_and_erasing,
    ),
}
"""The last one is MindCV's."""
SHARDS = "ours, from shards"
_FEWEST = 1000  # pictures per pass: filling and draining the workers takes as long as some dozens
_MOST = 2000
"""Pictures that are measured with: of more, some of each class."""
_CLASSES = 1000
_SHARD_BYTES = 1 << 28

EpochOf = Callable[[int], Iterable[Tensor]]
"""The batches of an epoch, normalised and on the device."""


def measure_loaders(
    data: Data, augmentation: Augmentation, *, accelerator: Accelerator, peers: Sequence[str], repeats: int = 7
) -> list[dict[str, Any]]:
    """This loader and the `peers` under each of `RECIPES`, and this one from shards, in turns.

    Args:
        data: `data_dir` with class folders (of which there may be several splits), `batch_size`, `workers`; a few
            pictures are taken several times.
        augmentation: crop, flip and normalisation.
        peers: of "timm", "torchvision".
        repeats: passes of each loader, after one that is not counted.

    Returns:
        Per loader and recipe: `loader`, `recipe`, the median, least and most of images_per_second, all `runs`, and
        `ratio`, the median over the rounds of its speed by that of the first peer with the same recipe.

    Raises:
        FileNotFoundError: no class folders.
        ValueError: a peer is not known or not installed.
    """
    root = existing_folder(data)
    train = root / data.folders[0]
    root = train if data.train_split or holds_classes(train) else root
    if unknown := set(peers) - set(_PEERS):
        raise ValueError(f"peer {min(unknown)!r} has no loader that is known here: {' and '.join(_PEERS)} have")
    with tempfile.TemporaryDirectory() as packed:
        passes = _passes(root, Path(packed), data, augmentation, accelerator=accelerator, peers=peers)
        runs: dict[tuple[str, str], list[float]] = {name: [] for name in passes}
        turns = [(number, name) for number in range(repeats + 1) for name in passes]
        for number, name in track(turns, "loading"):
            speed = _speed(passes[name](number))
            if number:  # the first pass starts the workers and reads the files for the first time
                runs[name].append(speed)
    return [_row(*name, speeds, runs[peers[0], name[1]] if peers else None) for name, speeds in runs.items()]


def _passes(
    root: Path, packed: Path, data: Data, how: Augmentation, *, accelerator: Accelerator, peers: Sequence[str]
) -> dict[tuple[str, str], EpochOf]:
    """Each loader under each recipe."""
    source: Source = FolderSource(root)
    if len(source) > _MOST:
        source = Subset(source, balanced(source.labels, _MOST, seed=0))
    copies = -(-_FEWEST // len(source))
    pack(source, "train", Destination(str(packed)), shard_bytes=_SHARD_BYTES, seed=0)
    shards: Source = ShardFolder(data.model_copy(update={"data_dir": str(packed)})).source("train")
    source, shards = (Subset(one, list(range(len(one))) * copies) for one in (source, shards))
    files = {os.path.abspath(source.name(index)) for index in range(len(source))}
    common = _Common(root, data, how, accelerator, files, copies)
    passes: dict[tuple[str, str], EpochOf] = {}
    for title, recipe in RECIPES.items():
        augmentation = how.model_copy(update=recipe.ours)
        passes["ours", title] = _ours(source, data, augmentation, accelerator)
        if not recipe.ours:
            passes[SHARDS, title] = _ours(shards, data, augmentation, accelerator)
        for peer in peers:
            passes[peer, title] = _PEERS[peer](common, recipe)
    return passes


def _row(loader: str, recipe: str, speeds: list[float], yardstick: list[float] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "loader": loader,
        "recipe": recipe,
        "images_per_second": statistics.median(speeds),
        "least": min(speeds),
        "most": max(speeds),
        "runs": speeds,
    }
    if yardstick is not None:
        row["ratio"] = statistics.median(a / b for a, b in zip(speeds, yardstick, strict=True))
    return row


def _speed(batches: Iterable[Tensor]) -> float:
    start, count = time.perf_counter(), 0
    images = None
    for images in batches:
        count += len(images)
    assert images is not None
    images[0, 0, 0, 0].item()  # waits for the device
    return count / (time.perf_counter() - start)


def _ours(source: Source, data: Data, augmentation: Augmentation, accelerator: Accelerator) -> EpochOf:
    loader = TrainLoader(source, data, augmentation, world=World(), seed=0, pin_memory=accelerator.pin_memory)
    layout = accelerator.memory_format(None)
    normalise, mix = Normalise(augmentation, layout), MixAndErase(augmentation, num_classes=_CLASSES)

    def batches(number: int) -> Iterator[Tensor]:
        for batch in on_device(loader.epoch(number), accelerator):
            yield mix(normalise(batch.images), batch, number)[0]

    return batches


class _Common(NamedTuple):
    """What the loaders of all peers have in common; `files` are read `copies` times each."""

    root: Path
    data: Data
    how: Augmentation
    accelerator: Accelerator
    files: set[str]
    copies: int

    def same_files(self, samples: list[Any]) -> list[Any]:
        """Of a peer's (path, class) those that the others read too, as often as they do."""
        return [sample for sample in samples if os.path.abspath(sample[0]) in self.files] * self.copies


def _timm(common: _Common, recipe: Recipe) -> EpochOf:
    """timm's loader: Pillow, uint8 batches, normalised on the device."""
    try:
        from timm.data import ImageDataset, create_loader
    except ImportError as error:
        raise ValueError("peer timm is not installed: pip install timm") from error
    data, how, accelerator = common.data, common.how, common.accelerator
    dataset = ImageDataset(str(common.root))
    dataset.reader.samples = common.same_files(dataset.reader.samples)
    workers = worker_count(data.workers, World())
    loader = create_loader(
        dataset,
        input_size=(3, how.image_size, how.image_size),
        batch_size=data.batch_size,
        is_training=True,
        use_prefetcher=True,
        scale=how.scale,
        ratio=how.ratio,
        hflip=how.hflip,
        color_jitter=0.0,
        **recipe.timm,
        interpolation=how.interpolation,
        mean=how.mean,
        std=how.std,
        num_workers=workers,
        pin_memory=accelerator.pin_memory,
        device=accelerator.device,
        persistent_workers=workers > 0,
    )

    def batches(number: int) -> Iterator[Tensor]:
        return (images for images, _ in loader)

    return batches


def _torchvision(common: _Common, recipe: Recipe) -> EpochOf:
    """torchvision's reference: Pillow, transforms and normalisation in the loader processes."""
    from torchvision import datasets, transforms

    data, how, accelerator = common.data, common.how, common.accelerator
    of_pictures, of_tensors = recipe.torchvision()
    mode = transforms.InterpolationMode(how.interpolation)
    steps = [
        transforms.RandomResizedCrop(how.image_size, how.scale, how.ratio, mode),
        transforms.RandomHorizontalFlip(how.hflip),
        *of_pictures,
        transforms.ToTensor(),
        transforms.Normalize(how.mean, how.std),
        *of_tensors,
    ]
    dataset = datasets.ImageFolder(str(common.root), transforms.Compose(steps))
    dataset.samples = dataset.imgs = common.same_files(dataset.samples)
    workers = worker_count(data.workers, World())
    loader = DataLoader(
        dataset, batch_size=data.batch_size, shuffle=True, drop_last=True, num_workers=workers,
        pin_memory=accelerator.pin_memory, persistent_workers=workers > 0,
    )  # fmt: skip

    def batches(number: int) -> Iterator[Tensor]:
        return (images.to(accelerator.device, non_blocking=True) for images, _ in loader)

    return batches


_PEERS = {"timm": _timm, "torchvision": _torchvision}
