"""Complete training loaders side by side: pictures per second, from files to normalised batches on the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from inception_v4.accelerator import Accelerator
from inception_v4.console import track
from inception_v4.data.folders import holds_classes
from inception_v4.data.loader import TrainLoader, on_device, worker_count
from inception_v4.data.local import existing_folder
from inception_v4.data.mixing import MixAndErase
from inception_v4.data.normalise import Normalise
from inception_v4.data.sources import FolderSource, Source, Subset
from inception_v4.distributed import World
from inception_v4.settings.schema import Augmentation, Data

STRONG = {"auto_augment": "autoaug", "re_prob": 0.25}
"""What MindCV's recipe adds to crop and flip."""
_FEWEST = 1000  # pictures per pass: filling and draining the workers takes as long as some dozens
_CLASSES = 1000

EpochOf = Callable[[int], Iterable[Tensor]]
"""The batches of an epoch, normalised and on the device."""


def measure_loaders(
    data: Data, augmentation: Augmentation, *, accelerator: Accelerator, peers: Sequence[str], repeats: int = 7
) -> list[dict[str, Any]]:
    """This loader, the same with AutoAugment and erasing, and the `peers` with crop and flip alone, in turns.

    Args:
        data: `data_dir` with class folders (of which there may be several splits), `batch_size`, `workers`; a few
            pictures are taken several times.
        augmentation: crop, flip and normalisation.
        peers: of "timm".
        repeats: passes of each loader, after one that is not counted.

    Returns:
        Per loader: its name, the median, least and most of images_per_second, all `runs`, and `ratio`, the median
        over the rounds of its speed by that of the first peer.

    Raises:
        FileNotFoundError: no class folders.
        ValueError: a peer is not known or not installed.
    """
    root = existing_folder(data)
    train = root / data.folders[0]
    root = train if data.train_split or holds_classes(train) else root
    source: Source = FolderSource(root)
    copies = -(-_FEWEST // len(source))
    source = Subset(source, list(range(len(source))) * copies)
    passes: dict[str, EpochOf] = {
        "ours": _ours(source, data, augmentation, accelerator),
        "ours + autoaug + erasing": _ours(source, data, augmentation.model_copy(update=STRONG), accelerator),
    }
    for peer in peers:
        if peer != "timm":
            raise ValueError(f"peer {peer!r} has no loader that is known here: timm has")
        passes[peer] = _timm(root, data, augmentation, accelerator=accelerator, copies=copies)
    runs: dict[str, list[float]] = {name: [] for name in passes}
    turns = [(number, name) for number in range(repeats + 1) for name in passes]
    for number, name in track(turns, "loading"):
        speed = _speed(passes[name](number))
        if number:  # the first pass starts the workers and reads the files for the first time
            runs[name].append(speed)
    return [_row(name, speeds, runs[peers[0]] if peers else None) for name, speeds in runs.items()]


def _row(name: str, speeds: list[float], yardstick: list[float] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "loader": name,
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


def _timm(root: Path, data: Data, how: Augmentation, *, accelerator: Accelerator, copies: int) -> EpochOf:
    """timm's loader: Pillow, uint8 batches, normalised on the device."""
    try:
        from timm.data import ImageDataset, create_loader
    except ImportError as error:
        raise ValueError("peer timm is not installed: pip install timm") from error
    dataset = ImageDataset(str(root))
    dataset.reader.samples = dataset.reader.samples * copies
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
