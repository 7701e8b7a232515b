"""A confusion matrix as a table or a picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inception_v4.files import atomic_write

_NUMBERED, _NAMED = 25, 60
"""Most classes of a picture that has counts in its cells, and names beside them."""


def check_confusion(path: Path) -> None:
    """Raises ValueError for a suffix of no such file."""
    if path.suffix not in _WRITERS:
        raise ValueError(f"confusion {path}: give a file that ends in {' or '.join(_WRITERS)}")


def write_confusion(path: Path, matrix: Tensor, names: tuple[str, ...] | None) -> None:
    """Write the matrix, whole or not at all.

    Args:
        path: .csv with all classes and a row for each label; .png with those that occur, by share of the label.
        matrix: int64 [K, K], labels down, first classes across.
    """
    check_confusion(path)
    shown = tuple(names or ())[: len(matrix)]
    with atomic_write(path) as temporary:
        _WRITERS[path.suffix](temporary, matrix, [*shown, *map(str, range(len(shown), len(matrix)))])


def _write_csv(path: Path, matrix: Tensor, names: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", *names])
        writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))


def _draw(path: Path, matrix: Tensor, names: list[str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    occurring = torch.nonzero(matrix.sum(0) + matrix.sum(1))[:, 0]
    matrix, names = matrix[occurring][:, occurring], [names[k] for k in occurring.tolist()]
    count = len(names)
    side = min(4 + 0.4 * count, 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = 100 * matrix / matrix.sum(1, keepdim=True).clamp_min(1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the label's pictures", shrink=0.8)
    right = int(matrix.diagonal().sum())
    axes.set_title(f"{right} of {int(matrix.sum())} pictures right")
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if count > _NAMED:
        axes.set_xticks([])
        axes.set_yticks([])
    else:
        axes.set_xticks(range(count), names, rotation=90, parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
    if count <= _NUMBERED:
        _number(axes, matrix, shares)
    figure.savefig(path, format="png", dpi=110)


def _number(axes: Any, matrix: Tensor, shares: Tensor) -> None:
    for row, column in torch.nonzero(matrix).tolist():
        dark = shares[row, column] > 50
        axes.text(
            column, row, str(int(matrix[row, column])), ha="center", va="center", color="white" if dark else "black"
        )


_WRITERS = {".csv": _write_csv, ".png": _draw}
