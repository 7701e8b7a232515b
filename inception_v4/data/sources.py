"""Where pictures come from: folders by class, CIFAR in every layout, ImageNet's archives, drawn shapes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from inception_v4.data import imagenet, shapes
from inception_v4.data.cifar import CIFAR10, CIFAR100, download, read_cifar
from inception_v4.data.folders import (
    check_same_classes,
    class_folders,
    folders_for_tests,
    holds_classes,
    missing,
    nearest,
    no_pictures,
    picture_files,
    stand_in,
    subfolders,
)
from inception_v4.data.labelled import ArraySource, FileSource, Source, Subset
from inception_v4.data.lists import PictureList
from inception_v4.data.local import existing_folder, existing_list, local_data
from inception_v4.data.pictures import CorruptImage
from inception_v4.data.shards import ShardFolder
from inception_v4.data.splits import balanced, fold_part, held_out_part, rarest
from inception_v4.data.suffixes import Sieve
from inception_v4.files import build_once, cache_dir
from inception_v4.preprocessing import MAX_PIXELS

if TYPE_CHECKING:
    from inception_v4.distributed import World
    from inception_v4.settings.schema import Data

__all__ = ["CorruptImage", "FolderSource", "Source", "Subset", "open_source"]


class FolderSource(FileSource):
    """Pictures in `root/<class>/`, at any depth; class index by sorted name.

    Args:
        class_order: how names are sorted, `text` or `natural`.
        max_pixels: as in `pictures.Decoding`.
    Raises:
        FileNotFoundError: `root`, or every class folder, is missing.
        ValueError: a class folder holds no pictures.
    """

    def __init__(self, root: Path, *, class_order: str = "text", max_pixels: int = MAX_PIXELS) -> None:
        sieve = Sieve()
        class_names = class_folders(root, sieve, order=class_order)
        labels, files = [], []
        for label, name in enumerate(class_names):
            found = sorted(picture_files(root / name, sieve))
            if not found:
                raise ValueError(no_pictures(root / name))
            files += [os.path.relpath(file, root) for file in found]
            labels += [label] * len(found)
        super().__init__(root, files, labels, class_names=class_names, max_pixels=max_pixels)
        self.remarks = sieve.remarks(root)


class _Wanted(NamedTuple):
    split: str
    world: World
    seed: int
    alone: bool
    several: bool


def open_source(
    data: Data, split: str, *, world: World, seed: int, alone: bool = False, several: bool = False
) -> Source:
    """The pictures of `split` ("train" or "val"), after subsetting.

    Pictures are fetched, unpacked or drawn here where that is asked for: once per machine, the other processes
    wait.

    Args:
        alone: the other split plays no part; else both must have the same classes.
        several: pictures of a list may have several classes each; where none has, they mean what they do without.
    Raises:
        FileNotFoundError, ValueError: naming what is missing or wrong and the remedy.
    """
    assert split in ("train", "val")
    data = data if data.kind == "wds" else local_data(data, world)
    wanted = _Wanted(split, world, seed, alone, several)
    source = _OPENERS[data.kind](data, wanted) if data.folds is None else _open_fold(data, wanted)
    if data.num_classes is not None and data.num_classes < len(source.class_names):
        raise ValueError(f"num_classes {data.num_classes} is less than the data's {len(source.class_names)}: raise it")
    count = data.num_samples if split == "train" else data.val_samples
    if count is None or count >= len(source):
        return source
    return Subset(source, balanced(source.labels, count, seed))


def _open_shapes(data: Data, wanted: _Wanted) -> Source:
    train, val, classes, size = data.shapes_train, data.shapes_val, data.shapes_classes, data.shapes_size
    shapes.check_request(train=train, val=val, classes=classes)
    base = Path(data.data_dir).expanduser() if data.data_dir else cache_dir()
    folder = base / f"shapes-v{shapes.SHAPES_VERSION}-{classes}x{size}px-{train}-{val}"
    with wanted.world.main_first():
        build_once(folder, lambda part: shapes.generate(part, train=train, val=val, classes=classes, size=size))
    return FolderSource(folder / wanted.split)


def _open_folder(data: Data, wanted: _Wanted) -> Source:
    root = existing_folder(data)
    train, val = (root / name for name in data.folders)
    if data.val_split and not val.is_dir():
        raise FileNotFoundError(missing(val, "val_split"))
    if holds_classes(val) or data.val_split:
        return _open_split(data, wanted)
    # Where classes are in the root itself, a name that is merely near is one of theirs ("rain" is not "train"): only
    # what says the same is a split then. Where they are in the training folder, what lies beside it is no class.
    likely = nearest if holds_classes(train) else stand_in
    for folder, setting, asked in ((train, "train_split", data.train_split), (val, "val_split", None)):
        similar = likely(folder.name, subfolders(root))
        if not folder.is_dir() and (asked or (similar and holds_classes(root / similar))):
            # Not taken for a class, nor left aside while a part of the training pictures is held out.
            raise FileNotFoundError(missing(folder, setting))
    pictures = train if holds_classes(train) or data.train_split else root
    source = _pictures_by_class(pictures, data)
    if pictures != root and (unused := folders_for_tests(root)):
        source.remarks += (
            f"{root} has no {val.name!r} folder: {data.val_fraction:.3g} of {train.name!r} is held out for validation, "
            f"{unused[0]!r} is not used (to validate on it: --val-split {unused[0]})",
        )
    return _held_out(source, data, wanted)


def _open_split(data: Data, wanted: _Wanted) -> Source:
    """The train or the val folder; the other one, where it is there and plays a part, must have the same classes."""
    root = existing_folder(data)
    train, val = (root / name for name in data.folders)
    folder, setting = (train, "train_split") if wanted.split == "train" else (val, "val_split")
    if not folder.is_dir():
        raise FileNotFoundError(missing(folder, setting))
    if train.is_dir() and val.is_dir() and not wanted.alone:
        check_same_classes(train, val)
    return _pictures_by_class(folder, data)


def _pictures_by_class(folder: Path, data: Data) -> FolderSource:
    return FolderSource(folder, class_order=data.class_order, max_pixels=data.max_pixels)


def _held_out(source: Source, data: Data, wanted: _Wanted) -> Source:
    """One side of the stratified split of `source`; no class loses its only picture."""
    chosen = held_out_part(source.labels, data.val_fraction, wanted.seed)
    if not chosen:
        raise ValueError(
            f"{data.data_dir} has no {data.folders[1]!r} folder and one picture per class: "
            "there is nothing to hold out for validation; add pictures or a validation folder"
        )
    return Subset(source, [i for i in range(len(source)) if (i in chosen) == (wanted.split == "val")])


def _open_fold(data: Data, wanted: _Wanted) -> Source:
    """One side of one fold of the training pictures; validation pictures of their own are left aside."""
    assert data.folds is not None
    if data.kind == "folder":
        root = existing_folder(data)
        train = root / data.folders[0]
        source: Source = _pictures_by_class(train if holds_classes(train) or data.train_split else root, data)
    elif data.kind == "wds":
        source = _open_shards(data, wanted._replace(split="train", alone=True), whole=True)
    elif data.kind == "list":
        source = _listed(PictureList(existing_list(data), several=wanted.several), data.folders[0], data)
    else:
        source = _OPENERS[data.kind](data, wanted._replace(split="train", alone=True))
    chosen = fold_part(source.labels, data.folds, data.fold, wanted.seed)
    if not chosen:
        raise ValueError(f"fold {data.fold} of {data.folds} is empty: {len(source)} pictures are too few for it")
    part = Subset(source, [i for i in range(len(source)) if (i in chosen) == (wanted.split == "val")])
    part.remarks += (f"fold {data.fold} of {data.folds}: {len(chosen)} of the training pictures are for validation",)
    return part


def _open_list(data: Data, wanted: _Wanted) -> Source:
    """The rows of a split; where none is for validation, a part of the training's is held out."""
    train, val = data.folders
    listed = PictureList(existing_list(data), several=wanted.several)
    if listed.has(val, asked=data.val_split is not None):
        return _listed(listed, train if wanted.split == "train" else val, data)
    return _held_out(_listed(listed, train, data), data, wanted)


def _listed(pictures: PictureList, split: str, data: Data) -> FileSource:
    classes = pictures.classes(data.class_order)
    rows = pictures.rows_of(split)
    number = {name: k for k, name in enumerate(classes)}
    sets = [tuple(number[name] for name in row.labels) for row in rows]
    root, files = pictures.file.parent, [row.path for row in rows]
    source = FileSource(root, files, rarest(sets), class_names=classes, max_pixels=data.max_pixels)
    source.label_sets = sets if pictures.several else None
    source.remarks = pictures.remarks
    return source


def _open_shards(data: Data, wanted: _Wanted, *, whole: bool = False) -> Source:
    """Webdataset's shards; where none are for validation, a part of the training pictures is held out."""
    train, val = data.folders
    with wanted.world.main_first():  # which reads labels and headers where nobody has yet
        folder = ShardFolder(data)
        has_val = bool(folder.split(val))
        split = val if wanted.split == "val" and has_val else train
        for name in filter(None, (split, data.val_split)):
            folder.require(name)
        source = folder.source(split)
        if has_val and not wanted.alone:
            folder.require_same_classes(train, val)
    return source if has_val or whole else _held_out(source, data, wanted)


def _open_imagenet(data: Data, wanted: _Wanted) -> Source:
    root = existing_folder(data)
    is_train = wanted.split == "train"
    folder = root / data.folders[0 if is_train else 1]
    tar, extract = (
        (imagenet.TRAIN_TAR, imagenet.extract_train) if is_train else (imagenet.VAL_TAR, imagenet.extract_val)
    )
    if data.extract:
        imagenet.mat_reader()  # Not only after the hours that unpacking the training pictures takes.
        with wanted.world.main_first():
            if not folder.is_dir():
                extract(root, folder)
    if not folder.is_dir() and (root / tar).is_file():
        raise FileNotFoundError(f"{root} has {tar} and no folder {folder.name!r}: give extract true to unpack it")
    return _open_split(data, wanted)


def _open_cifar(data: Data, wanted: _Wanted) -> Source:
    cifar = {"cifar10": CIFAR10, "cifar100": CIFAR100}[str(data.dataset)]
    root = Path(data.data_dir).expanduser() if data.data_dir else cache_dir() / str(data.dataset)
    pictures_by_class, is_train = root / data.folders[0], wanted.split == "train"
    if data.dataset_download:
        # All processes come here whatever they find: the first one's download must not change who waits for whom.
        with wanted.world.main_first():
            if read_cifar(cifar, root, train=is_train) is None and not holds_classes(pictures_by_class):
                download(cifar, root)
    arrays = read_cifar(cifar, root, train=is_train)
    if arrays is None and holds_classes(pictures_by_class):
        has_val = data.val_split or holds_classes(root / data.folders[1])
        return _open_split(data if has_val else data.model_copy(update={"val_split": "test"}), wanted)
    if arrays is None:
        raise FileNotFoundError(
            f"no {cifar.title} in {root}: give data_dir (with {cifar.python_folder}, {cifar.binary_folders[0]} or "
            "train and test folders of pictures by class), or dataset_download true"
        )
    return ArraySource(*arrays, class_names=cifar.class_names, title=f"{cifar.title} {wanted.split}")


_OPENERS = {
    "shapes": _open_shapes,
    "folder": _open_folder,
    "list": _open_list,
    "wds": _open_shards,
    "imagenet": _open_imagenet,
    "cifar10": _open_cifar,
    "cifar100": _open_cifar,
}
