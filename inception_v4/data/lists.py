"""Lists of pictures: CSV, TSV, JSON lines and Parquet files with `path`, `label` and perhaps `split`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from inception_v4.data.folders import few, in_order, nearest

_PATHS, _LABELS, _SPLITS = ("path", "file_name"), ("label", "class"), ("split",)
"""Columns by their names; `file_name` is Hugging Face's."""


class ListedPicture(NamedTuple):
    """A picture: its path as it stands in the list, its class, and its part of the data ("" where not said)."""

    path: str
    label: str
    split: str


class PictureList:
    """A list of pictures, read and checked.

    Raises:
        FileNotFoundError, ValueError: the file, a column or a value is missing, or it cannot be read; names the row.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        if not file.is_file() or file.suffix.lower() not in _READERS:
            raise FileNotFoundError(f"data_dir {file} is no list: give a .csv, .tsv, .jsonl or .parquet file")
        try:
            self.rows = [self._row(number, fields) for number, fields in _READERS[file.suffix.lower()](file)]
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text: {error}") from None
        if not self.rows:
            raise ValueError(f"{file} has no rows: give lines of path,label below a header")
        self.splits = {row.split for row in self.rows} - {""}

    def _row(self, number: int, fields: Mapping[str, Any]) -> ListedPicture:
        path, label, split = (_column(fields, names) for names in (_PATHS, _LABELS, _SPLITS))
        if path in (None, "") or label in (None, ""):
            raise ValueError(
                f"{self.file} row {number} has no {'label' if path else 'path'}: columns are path,label,split"
            )
        if isinstance(label, (list, tuple, dict)):
            raise ValueError(f"{self.file} row {number}: label {label}: give one class for each picture")
        return ListedPicture(str(path), str(label).strip(), str(split or ""))

    def has(self, split: str, *, asked: bool) -> bool:
        """Whether rows are of `split`, or of one whose name is so near that it was meant (`rows_of` says so then)."""
        return split in self.splits or asked or nearest(split, self.splits) is not None

    def rows_of(self, split: str) -> list[ListedPicture]:
        """The rows of a split, or all of them where none says its split.

        Raises:
            ValueError: it has no rows, with the nearest name.
        """
        if not self.splits:
            return self.rows
        found = [row for row in self.rows if row.split == split]
        if not found:
            near = nearest(split, self.splits)
            hint = f"did you mean {near!r}?" if near else f"it has {few(self.splits)}"
            raise ValueError(f"{self.file} has no rows of split {split!r}: {hint}")
        return found

    def classes(self, order: str) -> tuple[str, ...]:
        """The names of all classes in the list: numbers by their value, other names as `order` says."""
        names = {row.label for row in self.rows}
        return in_order(names, "natural" if all(name.isdigit() for name in names) else order)


def _column(fields: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _separated(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        header = rows.fieldnames or []
        if not (set(header) & set(_PATHS) and set(header) & set(_LABELS)):
            raise ValueError(f"{file} begins with {','.join(header)!r}: give a header line with path,label[,split]")
        for row in rows:
            yield rows.line_num, row


def _json_lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file} row {number} is not valid JSON: {error}") from None
            if not isinstance(fields, dict):
                raise ValueError(f'{file} row {number}: give an object, as in {{"path": "a.jpg", "label": "cat"}}')
            yield number, fields


def _parquet(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{file} needs pyarrow: pip install 'inception-v4[parquet]'") from None
    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = [name for name in (*_PATHS, *_LABELS, *_SPLITS) if name in table.schema_arrow.names]
        rows = table.read(columns=columns).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {' '.join(str(error).split())[:120]}") from None
    yield from enumerate(rows, 1)


_READERS = {".csv": _separated, ".tsv": _separated, ".jsonl": _json_lines, ".parquet": _parquet}
