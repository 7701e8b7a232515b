"""Figures of a benchmark as tables for people: on a terminal, in Markdown, and the verdict on a loader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEADER = ("contestant", "precision", "ms", "spread %", "images/s", "x first", "first result s", "TFLOP/s",
          "memory MB", "of it tensors", "difference")  # fmt: skip


def tables(rows: Sequence[dict[str, Any]]) -> list[tuple[Sequence[str], list[Sequence[str]]]]:
    """A table for each group: header and cells."""
    groups: dict[tuple[Any, ...], list[Sequence[str]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["batch_size"], row["image_size"]), []).append(_cells(row))
    return [
        _without_empty_columns((f"{task}, batch {size}, {side} px", *HEADER[1:]), cells)
        for (task, size, side), cells in groups.items()
    ]


def _without_empty_columns(
    header: Sequence[str], rows: list[Sequence[str]]
) -> tuple[Sequence[str], list[Sequence[str]]]:
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return [header[column] for column in kept], [[row[column] for column in kept] for row in rows]


def _cells(row: dict[str, Any]) -> Sequence[str]:
    if row["error"]:
        return (row["form"], row["precision"], row["error"], *[""] * (len(HEADER) - 3))
    spread = 100 * (row["high"] - row["low"]) / row["ms"]
    return (
        row["form"], row["precision"], f"{row['ms']:.1f}", f"{spread:.1f}", f"{row['images_per_second']:.2f}",
        _or_blank(row["ratio"], "{:.2f}"), f"{row['first_seconds']:.1f}", f"{row['tflops']:.2f}",
        _or_blank(row["memory"] and row["memory"] / 1e6, "{:.0f}"),
        _or_blank(row["tensors"] and row["tensors"] / 1e6, "{:.0f}"), _or_blank(row["difference"], "{:.0e}"),
    )  # fmt: skip


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def to_markdown(environment: dict[str, Any], shown: Sequence[tuple[Sequence[str], list[Sequence[str]]]]) -> str:
    """The environment and tables, for a document. Of a table with a precision, that column is text too."""
    known = {name: value for name, value in environment.items() if value is not None}
    text = "; ".join(f"{name}: {value}" for name, value in known.items()) + "\n"
    for header, rows in shown:
        words = 2 if "precision" in header else 1
        lines = [header, ["---"] * words + ["--:"] * (len(header) - words), *rows]
        text += "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text


LOADER_HEADER = ("loader", "recipe", "images/s", "least", "most", "x first peer")


def loader_cells(row: dict[str, Any]) -> Sequence[str]:
    figures = (row["images_per_second"], row["least"], row["most"])
    return (row["loader"], row["recipe"], *(f"{value:.0f}" for value in figures), _or_blank(row.get("ratio"), "{:.2f}"))


def loader_verdict(given: float, needed: float, precision: str, workers: int) -> str:
    text = f"one device trains {needed:.0f} images/s in {precision}, and {workers} workers load {given:.0f} images/s: "
    if given >= needed:
        return text + "the loader keeps up"
    count = max(1, workers)  # without workers the main process loads as one of them would
    return text + f"the device waits; --workers {-int(-count * needed // given)} on as many CPUs would keep up"
