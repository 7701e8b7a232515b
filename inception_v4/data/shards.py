"""Data sets in webdataset's form: tar files with `KEY.jpg` and `KEY.cls` (or `KEY.json`) for each picture."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from inception_v4.console import track
from inception_v4.data.folders import few, in_order
from inception_v4.data.packed import Contents, PackedSource
from inception_v4.data.suffixes import PICTURE_SUFFIXES
from inception_v4.data.tars import Member, tar_members
from inception_v4.files import build_once, cache_dir, parse_json
from inception_v4.settings.addresses import is_address
from inception_v4.storage.on_demand import OnDemand
from inception_v4.storage.remote import Place, RemoteFile

if TYPE_CHECKING:
    from inception_v4.settings.schema import Data

CLASS_NAMES = "class_names.json"
"""Beside the shards: names of the classes by their number, a JSON list."""

_SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "validation", "valid")}
_MOST_LABEL_BYTES = 1 << 16
_MOST_CLASSES = 1_000_000
"""Each number up to the highest gets a name."""


def contents_name(split: str) -> str:
    """Of the table of contents beside the shards of a split."""
    return f"{split}-contents.safetensors"


class ShardFolder:
    """The shards of a data set, here or at an address.

    Raises:
        FileNotFoundError, ValueError, StorageError: it is not there, or holds no shards.
    """

    def __init__(self, data: Data) -> None:
        if not data.data_dir:
            raise ValueError("dataset wds needs data_dir, the folder or address that holds the shards (.tar)")
        self.data, self.title = data, data.data_dir.rstrip("/")
        self._cache = Path(data.data_cache).expanduser() if data.data_cache else cache_dir()
        if is_address(data.data_dir):
            entries = Place(self.title).entries()
        else:
            self.root = Path(data.data_dir).expanduser()
            if not self.root.is_dir():
                raise FileNotFoundError(f"data_dir: there is no folder {self.root}: give the one that holds the shards")
            files = (path for path in sorted(self.root.rglob("*")) if path.is_file() and path.name[0] != ".")
            entries = [_local_file(path.relative_to(self.root), path.stat()) for path in files]
        self.entries = {entry.name: entry for entry in entries}
        if not any(name.endswith(".tar") for name in self.entries):
            packed = next((name for name in self.entries if re.search(r"\.(tar\.\w+|tgz|zip)$", name)), None)
            hint = f"{packed} is compressed: unpack it" if packed else "make some with inception-v4 pack"
            raise FileNotFoundError(f"{self.title} holds no shards (.tar): {hint}")

    def split(self, name: str) -> list[RemoteFile]:
        """The shards of a split: by a word of their paths, or a pattern; those of no split are for training."""
        tars = [entry for entry in self.entries.values() if entry.name.endswith(".tar")]
        if re.search(r"[*?\[]", name):
            return [entry for entry in tars if fnmatch(entry.name, name)]
        words = _SPLIT_WORDS.get(name, (name.lower(),))
        found = [entry for entry in tars if set(words) & _words(entry.name)]
        others = {word for several in _SPLIT_WORDS.values() for word in several} | {"test"}
        return found or [entry for entry in tars if name == "train" and not others & _words(entry.name)]

    def require(self, name: str) -> None:
        """Raises FileNotFoundError where a split has no shards."""
        if not self.split(name):
            tars = [name for name in self.entries if name.endswith(".tar")]
            raise FileNotFoundError(
                f"{self.title} holds no shards of {name!r}: it has {few(tars)}; train_split and val_split take a word "
                "of their names, or a pattern"
            )

    def require_same_classes(self, train: str, val: str) -> None:
        """Raises ValueError where the shards of two splits have different classes."""
        of_train, of_val = (Contents.read_class_names(self._table(name)) for name in (train, val))
        if of_train == of_val:
            return
        only = {train: set(of_train) - set(of_val), val: set(of_val) - set(of_train)}
        sides = [f"only in {side}: {few(names)}" for side, names in only.items() if names]
        reason = "; ".join(sides) or "the same names in another order"
        raise ValueError(f"{self.title}: the classes differ ({reason}): give {CLASS_NAMES}, or pack them again")

    def source(self, split: str) -> PackedSource:
        """The pictures of a split, which has shards. The table of contents is made where there is none.

        Raises:
            ValueError: shards or table are damaged or do not belong together, or labels are missing.
        """
        table = Contents.read(self._table(split))
        known = {entry.name: entry for entry in self.split(split)}
        for name, size in table.archives:
            if name not in known or known[name].size != size:
                found = f"has {known[name].size} bytes" if name in known else "is not there"
                raise ValueError(
                    f"{self.title}: {name} {found}, the table of contents says {size} bytes: fetch or pack it again, "
                    f"or delete {contents_name(split)}"
                )
        wanted = [known[name] for name, _ in table.archives]
        archives = self._on_demand(wanted) if is_address(self.title) else self.root
        return PackedSource(table, archives, title=self.title, max_pixels=self.data.max_pixels)

    def _table(self, split: str) -> Path:
        """The file of the table of contents: the one beside the shards, or one that is made once and kept."""
        given = self.entries.get(contents_name(split))
        if given is not None:
            return self._here(given)
        shards = self.split(split)
        made_of = (self.title, shards, self.data.class_order, self.entries.get(CLASS_NAMES))
        key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]

        def make(part: Path) -> None:
            found = scan(shards, self._here, self._class_names(), order=self.data.class_order)
            found.write(part / contents_name(split))

        return build_once(self._cache / "shards" / f"contents-{key}", make) / contents_name(split)

    def _class_names(self) -> list[str]:
        given = self.entries.get(CLASS_NAMES)
        if given is None:
            return []
        try:
            names = parse_json(self._here(given).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.title}/{CLASS_NAMES} is no JSON ({error}): give a list of names") from None
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"{self.title}/{CLASS_NAMES}: give a list of names")
        return names

    def _here(self, entry: RemoteFile) -> Path:
        if not is_address(self.title):
            return self.root / entry.name
        copies = self._on_demand([entry])
        os.close(copies.open(0))
        return copies.copy(0)

    def _on_demand(self, files: Sequence[RemoteFile]) -> OnDemand:
        limit = None if self.data.data_cache_gb is None else int(self.data.data_cache_gb * 1e9)
        return OnDemand(self.title, files, cache=self._cache, limit=limit)


def scan(
    shards: Sequence[RemoteFile], here: Callable[[RemoteFile], Path], class_names: Sequence[str], *, order: str
) -> Contents:
    """The table of contents of shards, from the headers and labels in them.

    Args:
        here: gives the local path of a shard.
        class_names: by number, where they are known.
        order: of classes that are known by their names alone, as `folders.in_order`.
    Raises:
        ValueError: a shard is damaged; a picture has no label, or one that is no class.
    """
    found = []
    for number, entry in enumerate(track(shards, "reading the tables of contents")):
        with open(path := here(entry), "rb") as file:
            for key, parts in _samples(path):
                suffix = _picture_suffix(parts)
                if suffix is None:
                    continue
                label = _label(f"{entry.name}/{key[:200]}", parts, lambda member: _text(file, member))
                found.append((number, parts[suffix].offset, parts[suffix].size, label, f"{key}.{suffix}"))
    if not found:
        raise ValueError(f"{', '.join(entry.name for entry in shards[:3])}: no pictures in these shards")
    names, labels = _numbered([row[3] for row in found], list(class_names), order)
    rows = [(*row[:3], label, row[4]) for row, label in zip(found, labels, strict=True)]
    return Contents.of([(entry.name, entry.size) for entry in shards], names, rows)


def _samples(archive: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key and members of each sample: those whose names are the same up to the first dot of the last part."""
    parts: dict[str, Member] = {}
    current = ""
    for member in tar_members(archive):
        folder, slash, last = member.name.rpartition("/")
        stem, _, suffix = last.partition(".")
        if not stem:
            continue
        key = f"{folder}{slash}{stem}"
        if key != current and parts:
            yield current, parts
            parts = {}
        current = key
        parts[suffix.lower()] = member
    if parts:
        yield current, parts


def _picture_suffix(parts: Mapping[str, Member]) -> str | None:
    """Which member of a sample is its picture: `jpg` before `depth.png`, which is alone in some data sets."""
    whole = (suffix for suffix in parts if f".{suffix}" in PICTURE_SUFFIXES)
    last = (suffix for suffix in parts if f".{suffix.rpartition('.')[2]}" in PICTURE_SUFFIXES)
    return next(chain(whole, last), None)


def _text(file: IO[bytes], member: Member) -> str:
    return os.pread(file.fileno(), min(member.size, _MOST_LABEL_BYTES), member.offset).decode("utf-8", "replace")


def _label(name: str, parts: Mapping[str, Member], text: Callable[[Member], str]) -> int | str:
    """A class by its number or its name."""
    value: Any = text(parts["cls"]).strip() if "cls" in parts else None
    if value is None and "json" in parts:
        try:
            fields = parse_json(text(parts["json"]))
        except ValueError as error:
            raise ValueError(f"{name}.json is no JSON: {error}") from None
        known = ("label", "cls", "class", "class_name")
        value = next((fields[k] for k in known if k in fields), None) if isinstance(fields, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise ValueError(
            f"{name} has no label: a .cls with the class's number or name, or a .json with label is needed"
        )
    if isinstance(value, str) and not value.isdecimal():
        return value
    # A number of many digits is not even converted.
    number = int(value) if isinstance(value, int) or len(value) < 10 else _MOST_CLASSES
    if not 0 <= number < _MOST_CLASSES:
        raise ValueError(f"{name} has the label {str(value)[:20]}: classes have numbers from 0 to {_MOST_CLASSES - 1}")
    return number


def _numbered(labels: Sequence[int | str], names: list[str], order: str) -> tuple[tuple[str, ...], list[int]]:
    """Names of the classes, and the labels as their numbers."""
    texts = {label for label in labels if isinstance(label, str)}
    if not texts:
        most = max(int(label) for label in labels)
        if names and most >= len(names):
            raise ValueError(f"a picture is of class {most}, {CLASS_NAMES} has {len(names)} names")
        return tuple(names or map(str, range(most + 1))), [int(label) for label in labels]
    if len(texts) < len(set(labels)):
        raise ValueError(f"some labels are numbers and some are names, as {min(texts)[:80]!r}: give one kind")
    if names and texts - set(names):
        raise ValueError(f"class {min(texts - set(names))[:80]!r} is not in {CLASS_NAMES}")
    classes = tuple(names) or in_order(texts, order)
    place = {name: number for number, name in enumerate(classes)}
    return classes, [place[str(label)] for label in labels]


def _local_file(name: Path, state: os.stat_result) -> RemoteFile:
    return RemoteFile(name.as_posix(), state.st_size, str(state.st_mtime_ns))


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))
