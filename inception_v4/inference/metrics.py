"""Figures of single classes."""

from __future__ import annotations

from torch import Tensor


def class_table(confused: Tensor, names: tuple[str, ...] | None) -> list[dict[str, object]]:
    """Rows of the per-class table from `confused` [K, 3]: samples, top-1 hits, top-5 hits of each class."""
    rows = []
    for index, (total, first, fifth) in enumerate(confused.tolist()):
        if total:
            name = names[index] if names and index < len(names) else str(index)
            rows.append(
                {"class": name, "samples": total, "top1": 100 * first / total, "top5": 100 * fifth / total}
            )  # fmt: skip
    return rows
