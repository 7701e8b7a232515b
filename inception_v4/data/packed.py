"""Pictures inside tar files: any of them is read by itself, from where a table of contents says that it begins."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from inception_v4.data.labelled import Source
from inception_v4.data.pictures import ChooseBox, CorruptImage, Decoding, decode_box, decode_picture
from inception_v4.files import atomic_write, parse_json
from inception_v4.preprocessing import MAX_PIXELS
from inception_v4.storage.on_demand import Ahead, OnDemand

FORMAT = "inception-v4 shards 1"
"""The only key of the file's metadata: several would be written in an order of chance."""
_OPEN_AT_ONCE = 64
_COPIES_OPEN_AT_ONCE = 8
"""Few: opening a copy again marks it as in use, so that the least recently wanted ones are the first to be removed."""
_COLUMNS = {"shard": np.int32, "offset": np.int64, "size": np.int64, "label": np.int32}


@dataclass(frozen=True)
class Contents:
    """A table of contents of archives.

    Attributes:
        archives: name and size in bytes of each.
        shard: number of the archive that each picture is in; offset, size: where in it; label: its class; [length].
        names: of the pictures, unique in their archive.
    """

    archives: tuple[tuple[str, int], ...]
    class_names: tuple[str, ...]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    names: np.ndarray

    @staticmethod
    def of(archives: Sequence[tuple[str, int]], class_names: Sequence[str], rows: Sequence[Any]) -> Contents:
        """From rows of (archive's number, offset, size, label, name)."""
        columns = list(zip(*rows, strict=True)) or [()] * 5
        arrays = {name: np.array(column, _COLUMNS[name]) for name, column in zip(_COLUMNS, columns, strict=False)}
        names = np.array([os.fsencode(name) for name in columns[4]])
        return Contents(tuple(archives), tuple(class_names), **arrays, names=names)

    def write(self, file: Path) -> None:
        names = np.frombuffer(self.names.tobytes(), np.uint8).reshape(len(self.names), -1)
        about = json_bytes({"archives": self.archives, "class_names": self.class_names}).decode()
        with atomic_write(file) as temporary:
            columns = {name: getattr(self, name) for name in _COLUMNS}
            temporary.write_bytes(save(columns | {"names": names}, {FORMAT: about}))

    @staticmethod
    def read_class_names(file: Path) -> tuple[str, ...]:
        """The classes alone, from the file's head; raises ValueError as `read` does."""
        with _opened_table(file) as (about, _):
            return tuple(map(str, about["class_names"]))

    @classmethod
    def read(cls, file: Path) -> Contents:
        """Raises ValueError where the file is no table of contents, or does not agree with itself."""
        with _opened_table(file) as (about, opened):
            columns = {n: opened.get_tensor(n).astype(dtype, casting="safe") for n, dtype in _COLUMNS.items()}
            archives = tuple((str(name), int(size)) for name, size in about["archives"])
            names = _joined(opened.get_tensor("names"))
            table = cls(archives, tuple(map(str, about["class_names"])), **columns, names=names)
            table._check()
            return table

    def _check(self) -> None:
        columns = (self.shard, self.offset, self.size, self.label, self.names)
        if len({len(column) for column in columns}) != 1 or any(column.ndim != 1 for column in columns):
            raise ValueError("its columns are of different lengths")
        if not len(self.shard):
            return
        for name, _ in self.archives:
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"archive {name!r} is outside its folder")
        if self.shard.min() < 0 or self.shard.max() >= len(self.archives):
            raise ValueError("a picture is in an archive that is not there")
        if self.label.min() < 0 or self.label.max() >= len(self.class_names):
            raise ValueError("a picture is of a class that is not there")
        ends = np.array([size for _, size in self.archives], np.int64)[self.shard]
        # No sum of two columns: it could be beyond int64 and come out below zero.
        beyond = (self.offset > ends) | (self.size > ends - self.offset)
        if self.offset.min() < 0 or self.size.min() < 0 or beyond.any():
            raise ValueError("a picture is beyond the end of its archive")


def json_bytes(value: Any, *, indent: int | None = None) -> bytes:
    """JSON in UTF-8. Of file names that are none it has the bytes as escapes, which come back as Python has them."""
    return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace")


@contextmanager
def _opened_table(file: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """What its head says, and the open file; whatever is wrong with it is one line."""
    try:
        with safe_open(file, "numpy") as opened:
            yield parse_json((opened.metadata() or {})[FORMAT]), opened
    except (SafetensorError, ValueError, TypeError, KeyError, OSError, OverflowError) as error:
        raise ValueError(f"{file} is no table of contents of shards ({error}): pack them again, or delete it") from None


def _joined(names: np.ndarray) -> np.ndarray:
    if names.dtype != np.uint8 or names.ndim != 2:
        raise ValueError("its names are no bytes")
    return np.frombuffer(names.tobytes(), f"S{max(1, names.shape[1])}") if len(names) else np.array([], "S1")


class PackedSource(Source):
    """Pictures in archives.

    Args:
        archives: their folder, or their copies on demand, in the order of the table.
        max_pixels: as in `pictures.Decoding`.
    """

    def __init__(
        self, contents: Contents, archives: Path | OnDemand, *, title: str, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.class_names, self.labels = contents.class_names, contents.label.tolist()
        self.shards = contents.shard
        self._contents, self._title, self._max_pixels = contents, title, max_pixels
        self._archives = archives
        self._open: OrderedDict[int, int] = OrderedDict()
        self._ahead: Ahead | None = None
        self._reading = threading.Lock()

    def load(self, index: int, *, exif_rotation: bool = True) -> Tensor:
        return decode_picture(self.own_content(index), self.name(index), Decoding(exif_rotation, self._max_pixels))

    def load_box(
        self, index: int, choose: ChooseBox, *, least: int | None = None, exif_rotation: bool = True
    ) -> Tensor:
        how = Decoding(exif_rotation, self._max_pixels)
        return decode_box(self.own_content(index), self.name(index), choose, how, least=least)

    def name(self, index: int) -> str:
        table = self._contents
        return f"{self._title}/{table.archives[table.shard[index]][0]}/{os.fsdecode(bytes(table.names[index]))}"

    def own_content(self, index: int) -> bytes:
        size, offset = int(self._contents.size[index]), int(self._contents.offset[index])
        with self._reading:  # another thread could close the descriptor for one that it needs
            data = os.pread(self._descriptor(int(self._contents.shard[index])), size, offset)
        if len(data) < size:
            raise CorruptImage(f"cannot read {self.name(index)}: the archive ends before it: fetch or pack it again")
        return data

    def bytes_of(self, index: int) -> int:
        """Size of picture `index` as a file."""
        return int(self._contents.size[index])

    def read_ahead(self, order: np.ndarray) -> Callable[[int], None]:
        if not isinstance(self._archives, OnDemand):
            return super().read_ahead(order)
        archives, first = np.unique(self._contents.shard[order], return_index=True)
        wanted = sorted(zip(first.tolist(), archives.tolist(), strict=True))
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = Ahead(self._archives, wanted)
        return self._ahead.reach

    def _descriptor(self, number: int) -> int:
        if number not in self._open:
            opened = self._opened(number)
            self._close_others()
            self._open[number] = opened
        self._open.move_to_end(number)
        return self._open[number]

    def _opened(self, number: int) -> int:
        if isinstance(self._archives, OnDemand):
            return self._archives.open(number)
        return os.open(self._archives / self._contents.archives[number][0], os.O_RDONLY)

    def _close_others(self) -> None:
        """Makes room for one more descriptor, and closes copies that have been removed: these still take disk."""
        on_demand = isinstance(self._archives, OnDemand)
        removed = [n for n, opened in self._open.items() if on_demand and os.fstat(opened).st_nlink == 0]
        for number in removed:
            os.close(self._open.pop(number))
        while len(self._open) >= (_COPIES_OPEN_AT_ONCE if on_demand else _OPEN_AT_ONCE):
            os.close(self._open.popitem(last=False)[1])

    def __getstate__(self) -> dict[str, Any]:
        # Descriptors, threads and their locks are of one process.
        return {k: v for k, v in self.__dict__.items() if k != "_reading"} | {"_open": OrderedDict(), "_ahead": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_reading": threading.Lock()}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)
