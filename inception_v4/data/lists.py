"""Lists of pictures: CSV, TSV, JSON lines and Parquet files with `path`, `label` and perhaps `split`.

Where pictures may have several classes, a cell of CSV or TSV has them with `|` between, as in "cat|dog" (spreadsheets
put commas and semicolons between cells), and JSON lines and Parquet have a list.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from inception_v4.data.folders import few, in_order, nearest
from inception_v4.files import parse_json

_PATHS, _LABELS, _SPLITS = ("path", "file_name"), ("label", "class"), ("split",)
"""Columns by their names; `file_name` is Hugging Face's."""
BETWEEN = "|"
"""Stands between the classes of a picture in a cell of text."""
_TEXT = (".csv", ".tsv")


class ListedPicture(NamedTuple):
    """A picture: its path as it stands in the list, its classes, and its part of the data ("" where not said)."""

    path: str
    labels: tuple[str, ...]
    split: str


class PictureList:
    """A list of pictures, read and checked.

    Args:
        several: whether pictures may have several classes; without, each has one, with whatever is in its name.

    Attributes:
        several: whether a picture has.
        remarks: lines for people.

    Raises:
        FileNotFoundError, ValueError: the file, a column or a value is missing, or it cannot be read; names the row.
    """

    def __init__(self, file: Path, *, several: bool = False) -> None:
        self.file, self._split_labels = file, several
        if not file.is_file() or file.suffix.lower() not in _READERS:
            raise FileNotFoundError(f"data_dir {file} is no list: give a .csv, .tsv, .jsonl or .parquet file")
        try:
            self.rows = [self._row(number, fields) for number, fields in _READERS[file.suffix.lower()](file)]
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text: {error}") from None
        except csv.Error as error:
            raise ValueError(f"{file} cannot be read as a table: {error}") from None
        if not self.rows:
            raise ValueError(f"{file} has no rows: give lines of path,label below a header")
        self.splits = {row.split for row in self.rows} - {""}
        self.several = any(len(row.labels) > 1 for row in self.rows)
        self.remarks = () if several else self._single_remarks()

    def _row(self, number: int, fields: Mapping[str, Any]) -> ListedPicture:
        path, label, split = (_column(fields, names) for names in (_PATHS, _LABELS, _SPLITS))
        if path in (None, "") or label in (None, ""):
            raise ValueError(
                f"{self.file} row {number} has no {'label' if path else 'path'}: columns are path,label,split"
            )
        return ListedPicture(str(path), self._labels(number, label), str(split or ""))

    def _labels(self, number: int, label: Any) -> tuple[str, ...]:
        if isinstance(label, dict) or (isinstance(label, (list, tuple)) and not self._split_labels):
            raise ValueError(
                f"{self.file} row {number}: label {str(label)[:80]}: give one class for each picture, or "
                "--loss bce for several"
            )
        if not self._split_labels:
            return (str(label).strip(),)
        in_text = isinstance(label, str) and self.file.suffix.lower() in _TEXT
        values = label.split(BETWEEN) if in_text else label if isinstance(label, (list, tuple)) else [label]
        names = tuple(dict.fromkeys("" if name is None else str(name).strip() for name in values))
        if not names or "" in names:
            example = f"cat{BETWEEN}dog" if in_text else '["cat", "dog"]'
            raise ValueError(
                f"{self.file} row {number}: label {repr(label)[:80]} has an empty class: give every picture at "
                f"least one, as in {example}, and a class of their own to pictures of none"
            )
        return names

    def _single_remarks(self) -> tuple[str, ...]:
        joined = next((row.labels[0] for row in self.rows if BETWEEN in row.labels[0]), None)
        if joined is None or self.file.suffix.lower() not in _TEXT:
            return ()
        remedy = f"for several with {BETWEEN} between: --loss bce"
        return (f"{self.file}: {joined!r} is taken as the name of one class ({remedy})",)

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
        names = {name for row in self.rows for name in row.labels}
        return in_order(names, "natural" if all(name.isdigit() for name in names) else order)


def _column(fields: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _separated(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        header = rows.fieldnames or []
        if not (set(header) & set(_PATHS) and set(header) & set(_LABELS)):
            raise ValueError(
                f"{file} begins with {','.join(header)[:200]!r}: give a header line with path,label[,split]"
            )
        for row in rows:
            yield rows.line_num, row


def _json_lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = parse_json(line)
            except ValueError as error:
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
