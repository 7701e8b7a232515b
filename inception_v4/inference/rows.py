"""Predictions as text, one picture at a time: CSV, JSON, JSON lines, tables. What is written is never held back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TextIO

from inception_v4.console import print_table
from inception_v4.inference.predict import Prediction, UnreadPicture
from inception_v4.weights.class_names import describe_class

Result = Prediction | UnreadPicture

_TABLE = 20  # pictures: a table's columns are as wide as its widest rows, so it has to end some time
_HEADER = ("picture", "class", "%")
_NONE = "-"
"""Stands for the class of a picture on which none is probable enough."""


class RowFormat(NamedTuple):
    """What stands before the first picture's text, between two and after the last, and how a picture becomes text."""

    opening: str
    between: str
    closing: str
    text: Callable[[Result], str]


class TextRows:
    """Writes each picture's text to `out` at once. With an error before the first nothing is written."""

    def __init__(self, form: RowFormat, out: TextIO) -> None:
        self._form, self._out, self._open = form, out, False

    def __enter__(self) -> TextRows:
        return self

    def write(self, result: Result) -> None:
        before = self._form.between if self._open else self._form.opening
        self._open = True
        self._out.write(before + self._form.text(result))
        self._out.flush()

    def __exit__(self, error: Any, *_: Any) -> None:
        if self._open or error is None:
            self._out.write(("" if self._open else self._form.opening) + self._form.closing)
            self._out.flush()


class TableRows:
    """Tables of some pictures each on the terminal."""

    def __init__(self) -> None:
        self._results: list[Result] = []

    def __enter__(self) -> TableRows:
        return self

    def write(self, result: Result) -> None:
        self._results.append(result)
        if len(self._results) == _TABLE:
            self._print()

    def __exit__(self, *_: Any) -> None:
        if self._results:
            self._print()

    def _print(self) -> None:
        results, self._results = self._results, []
        print_table(_HEADER, [row for result in results for row in table_rows(result)])


def table_rows(result: Result) -> list[tuple[str, str, str]]:
    """Rows (picture, class, percent) of a table; the picture is named once."""
    if isinstance(result, UnreadPicture):
        return [(result.picture, f"error: {result.error}", "")]
    if not result.classes:
        return [(result.picture, _NONE, "")]
    ranked = zip(result.classes, result.probabilities, strict=True)
    return [
        (result.picture if rank == 0 else "", _titled(name), f"{100 * p:.2f}") for rank, (name, p) in enumerate(ranked)
    ]


def _titled(name: str) -> str:
    words = describe_class(name)
    return name if words == name else f"{words} ({name})"


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _csv_rows(result: Result) -> str:
    """One row per picture and rank; one without a class where none is probable enough."""
    if isinstance(result, UnreadPicture) or not result.classes:
        return _csv([[result.picture, "", "", "", "", getattr(result, "error", "")]])
    ranked = enumerate(zip(result.classes, result.probabilities, strict=True), start=1)
    return _csv([[result.picture, rank, name, describe_class(name), f"{p:.6f}", ""] for rank, (name, p) in ranked])


def _tab_separated(rows: Sequence[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


ROW_FORMATS = {
    "csv": RowFormat(_csv([["picture", "rank", "class", "description", "probability", "error"]]), "", "", _csv_rows),
    "json": RowFormat("[", ", ", "]\n", lambda result: json.dumps(result.to_dict())),
    "jsonl": RowFormat("", "", "", lambda result: json.dumps(result.to_dict()) + "\n"),
    "table": RowFormat(_tab_separated([_HEADER]), "", "", lambda result: _tab_separated(table_rows(result))),
}
