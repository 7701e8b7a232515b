"""CIFAR-10 and CIFAR-100 in the layouts they are handed around in, and their download.

Python pickles can run code when they are opened: they are opened by torchvision, and only where all checksums
that it knows agree. The binary version holds plain bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inception_v4.files import build_once

_PIXELS = 3 * 32 * 32

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100_NAMES.split())


class DownloadFailed(RuntimeError):
    """Data could not be fetched."""


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets and the files of its layouts."""

    title: str
    torchvision_name: str
    class_names: tuple[str, ...]
    python_folder: str
    python_file: str
    binary_folders: tuple[str, ...]
    binary_train: tuple[str, ...]
    binary_test: str
    label_bytes: int  # before each picture; the last one is the (fine) label


CIFAR10 = Cifar(
    "CIFAR-10",
    "CIFAR10",
    CIFAR10_CLASSES,
    python_folder="cifar-10-batches-py",
    python_file="data_batch_1",
    binary_folders=("cifar-10-batches-bin", "cifar-10-verify-bin"),  # the latter: the ModelZoo's test set
    binary_train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    binary_test="test_batch.bin",
    label_bytes=1,
)
CIFAR100 = Cifar(
    "CIFAR-100",
    "CIFAR100",
    CIFAR100_CLASSES,
    python_folder="cifar-100-python",
    python_file="train",
    binary_folders=("cifar-100-binary",),
    binary_train=("train.bin",),
    binary_test="test.bin",
    label_bytes=2,
)


def read_cifar(cifar: Cifar, root: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Pictures [N, 32, 32, 3] uint8 and labels [N] from the pickles or binary files in or below `root`; None: neither.

    Raises:
        ValueError: a file is damaged, or incomplete, or not the original.
    """
    for folder in (root, root / cifar.python_folder):
        if (folder / cifar.python_file).is_file():
            return _read_pickles(cifar, folder, train)
    wanted = cifar.binary_train if train else (cifar.binary_test,)
    for folder in (root, *(base / name for base in (root, root.parent) for name in cifar.binary_folders)):
        if any((folder / name).is_file() for name in wanted):
            return _read_binary(cifar, [folder / name for name in wanted])
    return None


def download(cifar: Cifar, root: Path) -> None:
    """Fetches the pickles into `root` unless they are there; the archive's checksum is verified.

    Raises:
        DownloadFailed: no connection, or a checksum that does not agree. Nothing half-done is left in place.
    """
    build_once(root / cifar.python_folder, lambda part: _download(cifar, part))


def _download(cifar: Cifar, part: Path) -> None:
    dataset = _torchvision_class(cifar)
    try:
        dataset(part, download=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise DownloadFailed(
            f"cannot fetch {cifar.title} from {dataset.url} ({' '.join(str(error).split())}): "
            "try again, or fetch it by hand, unpack it and give data_dir"
        ) from error
    for file in (part / cifar.python_folder).iterdir():
        file.rename(part / file.name)
    (part / cifar.python_folder).rmdir()
    (part / dataset.filename).unlink()


def _torchvision_class(cifar: Cifar) -> Any:
    from torchvision import datasets  # takes a second, which other data need not wait for

    return getattr(datasets, cifar.torchvision_name)


def _read_pickles(cifar: Cifar, folder: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.datasets.utils import check_integrity

    base = _torchvision_class(cifar)
    for name, checksum in [*base.train_list, *base.test_list, (base.meta["filename"], base.meta["md5"])]:
        if not check_integrity(folder / name, checksum):
            state = "is not the original (checksum)" if (folder / name).is_file() else "is missing"
            raise ValueError(
                f"{cifar.title}: {folder / name} {state}; pickles can run code and are only opened unchanged: "
                "delete the folder and fetch it again (dataset_download true), or use the binary version"
            )
    dataset = type(base.__name__, (base,), {"base_folder": folder.name})(folder.parent, train=train)
    return dataset.data, np.array(dataset.targets)


def _read_binary(cifar: Cifar, files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{cifar.title}: {files[0].parent} lacks {', '.join(missing)}")
    size = cifar.label_bytes + _PIXELS
    parts = []
    for file in files:
        data = np.fromfile(file, dtype=np.uint8)
        if len(data) == 0 or len(data) % size:
            raise ValueError(f"{cifar.title}: {file} has {len(data)} bytes, not a multiple of {size}: fetch it again")
        parts.append(data.reshape(-1, size))
    records = np.concatenate(parts)
    labels = records[:, cifar.label_bytes - 1].astype(np.int64)
    if labels.max() >= len(cifar.class_names):
        raise ValueError(f"{cifar.title}: {files[0].parent} has a label {labels.max()}: the files are damaged")
    pictures = records[:, cifar.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pictures), labels
