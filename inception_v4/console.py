"""Lines, tables and progress for the person at the console."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and messages go to stderr: stdout is left to results (`--json`)."""


_WIDE = 110
"""Columns of a terminal that hold figures and a bar."""
_ESTIMATED_OVER = 600.0
"""Seconds: a batch or a contestant may take minutes, and a rate needs two of them."""


_shown: list[Progress] = []


def say(message: str) -> None:
    """A line for the person at the console."""
    console.print(message, markup=False, emoji=False)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, tab-separated values elsewhere."""
    if not sys.stdout.isatty():
        print("\n".join("\t".join(row) for row in [header, *rows]))
        return
    table = Table(*header)
    for row in rows:
        table.add_row(*map(Text, row))  # names may hold what would be markup
    Console().print(table)


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal while the block runs, nothing elsewhere; gives a function that counts on by `count`.

    Args:
        total: None where the work cannot tell how far it is: the bar then shows that it goes on, and for how long.
    """
    if not console.is_terminal:
        yield lambda count=1: None
        return
    if _shown:  # A terminal has one display: a block inside another one adds its bar there for a while.
        task = _shown[-1].add_task(description, total=total)
        try:
            yield lambda count=1: _shown[-1].advance(task, count)
        finally:
            _shown[-1].remove_task(task)
        return
    with progress_bar() as display:
        _shown.append(display)
        try:
            outer = display.add_task(description, total=total)
            yield lambda count=1: display.advance(outer, count)
        finally:
            _shown.remove(display)


def track(items: Any, description: str, total: int | None = None) -> Any:
    """`items` with a progress bar on a terminal, untouched elsewhere."""
    with progress(description, len(items) if total is None else total) as count_on:
        for item in items:
            yield item
            count_on()


def progress_bar(*, long_text: bool = False) -> Progress:
    """Of this project's look, not started.

    Args:
        long_text: the description has many figures: on a narrow terminal it stands without the bar, and the figures
            of the end are not cut off.
    """
    text, *rest = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    if long_text and console.width < _WIDE:
        text = TextColumn("{task.description}", table_column=Column())
        rest = [
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        ]
    return Progress(text, *rest, console=console, speed_estimate_period=_ESTIMATED_OVER)
