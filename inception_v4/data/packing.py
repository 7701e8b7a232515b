"""Any data set as shards in webdataset's form, with a table of contents. Pictures keep their bytes."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inception_v4.console import progress, say
from inception_v4.data.imagenet import TRAIN_TAR, mat_reader, train_contents, val_contents
from inception_v4.data.labelled import Source
from inception_v4.data.packed import Contents, PackedSource, json_bytes
from inception_v4.data.shards import CLASS_NAMES, contents_name
from inception_v4.data.sources import open_source
from inception_v4.data.suffixes import PICTURE_SUFFIXES
from inception_v4.data.tars import Member, tar_members
from inception_v4.distributed import World
from inception_v4.files import atomic_write, megabytes, require_room
from inception_v4.settings.addresses import is_address
from inception_v4.storage.remote import Place

if TYPE_CHECKING:
    from inception_v4.settings.schema import Data

_BLOCK = tarfile.BLOCKSIZE


class Destination:
    """Where shards go: a local folder, or an address."""

    def __init__(self, target: str) -> None:
        self.target = target.rstrip("/")
        self._place = Place(self.target) if is_address(target) else None
        self._folder = Path(tempfile.gettempdir()) if self._place else Path(target).expanduser()

    def present(self) -> dict[str, int]:
        """Sizes of the files that are there, by name."""
        if self._place is not None:
            return {entry.name: entry.size for entry in self._place.entries()}
        if not self._folder.is_dir():
            return {}
        return {path.name: path.stat().st_size for path in self._folder.iterdir() if not path.name.startswith(".")}

    def require_room(self, needed: int) -> None:
        if self._place is None:
            require_room(self._folder, needed, "the shards")

    def finished(self, name: str, source: Source, pictures: np.ndarray) -> list[Member] | None:
        """The pictures of a shard that an interrupted call left here, if it has these; None: it is to be written."""
        path = self._folder / name
        if self._place is not None or not path.is_file():
            return None
        members = [member for member in tar_members(path) if is_picture(member.name)]
        sizes = [source.bytes_of(int(picture)) for picture in pictures]
        return members if [member.size for member in members] == sizes else None

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """A path to write a file at, which is there under its name when it is whole."""
        if self._place is None:
            with atomic_write(self._folder / name) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / name
            self._place.put(Path(folder) / name, name)


def open_for_packing(data: Data, seed: int) -> Iterator[tuple[str, Source]]:
    """The training and the validation pictures, one after the other; of ImageNet also from its tar files.

    Raises:
        FileNotFoundError, ValueError: as `sources.open_source`; pictures have several classes.
    """
    root = Path(str(data.data_dir)).expanduser()
    archived = (
        data.dataset in (None, "imagenet") and not (root / data.folders[0]).is_dir() and (root / TRAIN_TAR).is_file()
    )
    if archived:
        mat_reader()  # not only after the hour that the training pictures take
    for split, contents in (("train", train_contents), ("val", val_contents)):
        if archived:
            yield split, PackedSource(contents(root), root, title=str(root), max_pixels=data.max_pixels)
        else:
            source = open_source(data, split, world=World(), seed=seed, several=True)
            _require_one_class(source, str(data.data_dir))
            yield split, source


def _require_one_class(source: Source, title: str) -> None:
    """Raises ValueError where pictures have several classes: a shard's label is one number."""
    several = next((labels for labels in source.label_sets or [] if len(labels) > 1), None)
    if source.label_sets is not None:
        example = "" if several is None else f", as {' and '.join(repr(source.class_names[k]) for k in several[:2])}"
        raise ValueError(
            f"{title}: some pictures have several classes{example}: shards hold one for each picture; train from "
            "the list itself (--loss bce), or give every picture one class"
        )


class ShardPlan(NamedTuple):
    """What goes where: pictures of each shard, in order."""

    names: list[str]
    pictures: list[np.ndarray]
    size: int


def plan_shards(source: Source, split: str, *, shard_bytes: int, seed: int | None) -> ShardPlan:
    """Pictures in a random order of the seed (None: as they are), in shards of about so many bytes."""
    order = np.arange(len(source))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    sizes = np.array([source.bytes_of(int(picture)) + 5 * _BLOCK for picture in order])
    shard = (np.cumsum(sizes) - sizes) // shard_bytes
    pictures = [order[shard == number] for number in np.unique(shard)]
    names = [f"{split}-{number:06d}.tar" for number in range(len(pictures))]
    return ShardPlan(names, pictures, int(sizes.sum()))


def pack(source: Source, split: str, to: Destination, *, shard_bytes: int, seed: int | None) -> int:
    """Write the shards of a split and their table of contents; returns how many shards.

    Shards that an interrupted call finished are kept where they are what this one would write.

    Raises:
        ValueError: there are shards of another plan already. DiskFull, StorageError: as writing goes.
    """
    plan = plan_shards(source, split, shard_bytes=shard_bytes, seed=seed)
    present = to.present()
    foreign = sorted(name for name in present if name.startswith(f"{split}-") and name.endswith(".tar"))
    if contents_name(split) in present or set(foreign) - set(plan.names):
        raise ValueError(f"{to.target} holds shards of {split!r} already: remove them, or name another folder")
    to.require_room(plan.size - sum(present[name] for name in foreign))
    rows: list[tuple[int, int, int, int, str]] = []
    archives = []
    say(f"packing {len(source)} pictures of {split!r} ({megabytes(plan.size)}) into {len(plan.names)} shards")
    with progress(f"packing {split}", len(source)) as count_on:
        for number, (name, pictures) in enumerate(zip(plan.names, plan.pictures, strict=True)):
            members = to.finished(name, source, pictures)
            if members is None:
                with to.file(name) as path:
                    members = write_shard(path, source, pictures, first=len(rows))
                    present[name] = path.stat().st_size
            count_on(len(pictures))
            archives.append((name, present[name]))
            labels = [source.labels[picture] for picture in pictures]
            rows += [(number, m.offset, m.size, label, m.name) for m, label in zip(members, labels, strict=True)]
    with to.file(CLASS_NAMES) as path:
        path.write_bytes(json_bytes(source.class_names, indent=0) + b"\n")
    with to.file(contents_name(split)) as path:  # last: where it is, all is there
        Contents.of(archives, source.class_names, rows).write(path)
    return len(plan.names)


def write_shard(path: Path, source: Source, pictures: np.ndarray, *, first: int) -> list[Member]:
    """One archive; returns its pictures, in order. `first` is the number of the first one in its split."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, picture in enumerate(map(int, pictures), first):
            name = os.path.basename(source.name(picture))
            about = {
                "label": source.labels[picture],
                "class_name": source.class_names[source.labels[picture]],
                "file": name,
            }
            key = f"{number:08d}"
            _add(tar, f"{key}.{_suffix(name)}", source.content(picture))
            _add(tar, f"{key}.cls", str(source.labels[picture]).encode())
            _add(tar, f"{key}.json", json_bytes(about))
    return [member for member in tar_members(path) if is_picture(member.name)]


def is_picture(member: str) -> bool:
    return os.path.splitext(member)[1] in PICTURE_SUFFIXES


def _suffix(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return suffix[1:] if suffix in PICTURE_SUFFIXES else "png"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # Nothing of the machine or the hour: the same pictures give the same bytes.
    header = tarfile.TarInfo(name)
    header.size = len(content)
    tar.addfile(header, io.BytesIO(content))
