"""Lines, tables and progress for the person at the console."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and messages go to stderr: stdout is left to results (`--json`)."""


def say(message: str) -> None:
    """A line for the person at the console."""
    console.print(message, markup=False)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, tab-separated values elsewhere."""
    if not sys.stdout.isatty():
        print("\n".join("\t".join(row) for row in [header, *rows]))
        return
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def track(items: Any, description: str, total: int | None = None) -> Any:
    """`items` with a progress bar on a terminal, untouched elsewhere."""
    if not console.is_terminal:
        yield from items
        return
    with progress_bar() as progress:
        yield from progress.track(items, total=total, description=description)


def progress_bar() -> Progress:
    """Of this project's look, not started."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
