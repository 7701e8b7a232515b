"""What is wrong with the pictures of a run: broken ones, and the same picture twice, above all in train and val."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from inception_v4.console import progress
from inception_v4.data.pictures import CorruptImage, opened
from inception_v4.data.sources import Source, open_source
from inception_v4.distributed import World
from inception_v4.settings.schema import Data

MOST = 200_000
"""Pictures that are looked through; of more, only the counts are given."""
_THREADS = 8  # they wait for a disk, and hashing lets other threads run
_SPLITS = ("train", "val")

Picture = tuple[str, int]
"""A split, and the number of a picture in it."""


@dataclass
class DataReport:
    """What was found.

    Attributes:
        classes: names.
        counts: pictures of each class, by split.
        broken: (picture, reason).
        leaked: groups of the same picture that reach from train to val, by name.
        repeated: groups of the same picture within one split.
        contradictory: groups of the same picture in different classes.
        remark: why something was not looked at; empty where all was.
    """

    classes: tuple[str, ...] = ()
    counts: dict[str, list[int]] = field(default_factory=dict)
    broken: list[tuple[str, str]] = field(default_factory=list)
    leaked: list[list[str]] = field(default_factory=list)
    repeated: list[list[str]] = field(default_factory=list)
    contradictory: list[list[str]] = field(default_factory=list)
    remark: str = ""

    @property
    def leaked_val(self) -> int:
        """Validation pictures that the training has seen."""
        return sum(sum(name.startswith("val: ") for name in group) for group in self.leaked)


def inspect_data(data: Data, seed: int, *, several: bool = False) -> DataReport:
    """Look through the pictures of a run, which may have `several` classes each. Where they are gone, it says so."""
    try:
        sources = {split: open_source(data, split, world=World(), seed=seed, several=several) for split in _SPLITS}
    except (OSError, ValueError) as error:
        return DataReport(remark=f"the data could not be opened: {' '.join(str(error).split())}")
    report = DataReport(sources["train"].class_names)
    for split, source in sources.items():
        report.counts[split] = source.counts()
    total = sum(map(len, sources.values()))
    if total > MOST:
        report.remark = f"{total} pictures are more than {MOST}: broken and repeated ones were not looked for"
        return report
    _look_through(sources, report)
    return report


def _look_through(sources: dict[str, Source], report: DataReport) -> None:
    pictures = [(split, index) for split, source in sources.items() for index in range(len(source))]
    same: dict[bytes, list[Picture]] = defaultdict(list)
    with progress("looking through pictures", len(pictures)) as count_on, ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda picture: _examine(sources[picture[0]], picture[1]), pictures, chunksize=64)
        for picture, (digest, reason) in zip(pictures, found, strict=True):
            count_on()
            if reason:
                report.broken.append((f"{picture[0]}: {sources[picture[0]].name(picture[1])}", reason))
            if digest:
                same[digest].append(picture)
    for group in same.values():
        if len(group) == 1:
            continue
        names = [f"{split}: {sources[split].name(index)}" for split, index in group]
        if len({split for split, _ in group}) > 1:
            report.leaked.append(names)
        else:
            report.repeated.append(names)
        if len({_classes(sources[split], index) for split, index in group}) > 1:
            report.contradictory.append(names)


def _classes(source: Source, index: int) -> frozenset[int]:
    return frozenset([source.labels[index]] if source.label_sets is None else source.label_sets[index])


def _examine(source: Source, index: int) -> tuple[bytes | None, str]:
    """A hash of the picture, and what is wrong with it: its own bytes', or where it has none its pixels'."""
    try:
        data = source.own_content(index)
    except (OSError, CorruptImage) as error:
        return None, getattr(error, "strerror", None) or str(error)
    if data is None:
        return hashlib.blake2b(source.load(index).numpy().tobytes(), digest_size=16).digest(), ""
    return hashlib.blake2b(data, digest_size=16).digest(), next(_faults(data), "")


def _faults(data: bytes) -> Iterator[str]:
    """What is wrong with a picture's file as far as its frame tells, without decoding it."""
    if not data:
        yield "the file is empty"
    elif data.startswith(b"\xff\xd8\xff"):
        if data.rfind(b"\xff\xd9", -4096) < 0:
            yield "the file ends early"
    elif not data[4:12].startswith(b"ftyp"):  # HEIF needs a plugin
        try:
            with opened(data) as image:
                image.verify()
        except Exception as error:  # Pillow's plugins raise whatever they trip over
            yield " ".join(str(error).split()) or type(error).__name__
