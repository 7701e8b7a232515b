"""Labelled pictures in a fixed order: in files, in memory, and parts of others."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inception_v4.data.crops import to_pillow
from inception_v4.data.pictures import ChooseBox, Decoding, decode_box, read_picture


class Source(ABC):
    """Labelled pictures in a fixed order."""

    class_names: tuple[str, ...]
    labels: list[int]
    remarks: tuple[str, ...] = ()
    """Lines for people: what was found beside the pictures and left aside."""
    label_sets: list[tuple[int, ...]] | None = None
    """All classes of each picture, where pictures may have several; `labels` then has the rarest of them."""
    shards: np.ndarray | None = None
    """Number of the archive that each picture is in, [length], where those of one are best read together."""

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> list[int]:
        """Pictures of each class."""
        labels = self.labels if self.label_sets is None else [k for several in self.label_sets for k in several]
        return np.bincount(labels, minlength=len(self.class_names)).tolist()

    def target(self, index: int) -> int | Tensor:
        """The class of picture `index`; where pictures may have several, uint8 [K] with 1 for each of its own."""
        if self.label_sets is None:
            return self.labels[index]
        own = torch.tensor(self.label_sets[index])
        return torch.zeros(len(self.class_names), dtype=torch.uint8).index_fill_(0, own, 1)

    @abstractmethod
    def load(self, index: int, *, exif_rotation: bool = True) -> Tensor:
        """Picture `index`, [3, H, W] uint8; raises CorruptImage."""

    def load_box(
        self, index: int, choose: ChooseBox, *, least: int | None = None, exif_rotation: bool = True
    ) -> Tensor:
        """The part of picture `index` that `choose` wants; `least` as in `pictures.decode_box`."""
        image = self.load(index, exif_rotation=exif_rotation)
        return choose(*image.shape[1:]).cut(image)

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call picture `index` in a message."""

    def read_ahead(self, order: np.ndarray) -> Callable[[int], None]:
        """Begin to fetch what pictures in this order need, where they are elsewhere.

        Returns:
            a function to be told how many of them have been asked for.
        """
        return nothing_to_fetch

    def own_content(self, index: int) -> bytes | None:
        """The bytes that picture `index` is decoded from; None where it is numbers in memory."""
        return None

    def content(self, index: int) -> bytes:
        """Picture `index` as a file: its own bytes, or PNG where there are none."""
        if (own := self.own_content(index)) is not None:
            return own
        file = io.BytesIO()
        to_pillow(self.load(index, exif_rotation=False)).save(file, "PNG")
        return file.getvalue()

    def bytes_of(self, index: int) -> int:
        """Size of `content(index)`; near it where that has to be made first."""
        return self.load(index, exif_rotation=False).numel()


def nothing_to_fetch(asked: int) -> None: ...


class FileSource(Source):
    """Pictures in files.

    Args:
        root: what relative `files` are relative to.
        max_pixels: as in `pictures.Decoding`.
    """

    def __init__(
        self, root: Path, files: Sequence[str], labels: list[int], *, class_names: tuple[str, ...], max_pixels: int
    ) -> None:
        self.root, self.labels, self.class_names = root, labels, class_names
        self._max_pixels = max_pixels
        # One block of bytes: a list of a million strings would be copied into every worker by its reference counts.
        self._files = np.array([os.fsencode(file) for file in files])

    def load(self, index: int, *, exif_rotation: bool = True) -> Tensor:
        return read_picture(self.name(index), Decoding(exif_rotation, self._max_pixels))

    def load_box(
        self, index: int, choose: ChooseBox, *, least: int | None = None, exif_rotation: bool = True
    ) -> Tensor:
        name = self.name(index)
        with open(name, "rb") as file:
            return decode_box(file.read(), name, choose, Decoding(exif_rotation, self._max_pixels), least=least)

    def own_content(self, index: int) -> bytes | None:
        return Path(self.name(index)).read_bytes()

    def bytes_of(self, index: int) -> int:
        return os.path.getsize(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self._files[index])))


class ArraySource(Source):
    """Pictures [N, H, W, 3] uint8 in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, class_names: tuple[str, ...], title: str) -> None:
        self.class_names = class_names
        self.labels = labels.tolist()
        self._images = torch.from_numpy(images)
        self._title = title

    def load(self, index: int, *, exif_rotation: bool = True) -> Tensor:
        return self._images[index].permute(2, 0, 1)

    def name(self, index: int) -> str:
        return f"{self._title} picture {index}"


class Subset(Source):
    """The pictures of `source` at `indices`."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.class_names = source.class_names
        self.labels = [source.labels[i] for i in indices]
        self.label_sets = source.label_sets and [source.label_sets[i] for i in indices]
        self.remarks = source.remarks
        self._source = source
        self._indices = np.asarray(indices, dtype=np.int64)
        self.shards = None if source.shards is None else source.shards[self._indices]

    def load(self, index: int, *, exif_rotation: bool = True) -> Tensor:
        return self._source.load(int(self._indices[index]), exif_rotation=exif_rotation)

    def load_box(
        self, index: int, choose: ChooseBox, *, least: int | None = None, exif_rotation: bool = True
    ) -> Tensor:
        return self._source.load_box(int(self._indices[index]), choose, least=least, exif_rotation=exif_rotation)

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def own_content(self, index: int) -> bytes | None:
        return self._source.own_content(int(self._indices[index]))

    def read_ahead(self, order: np.ndarray) -> Callable[[int], None]:
        return self._source.read_ahead(self._indices[order])

    def bytes_of(self, index: int) -> int:
        return self._source.bytes_of(int(self._indices[index]))
