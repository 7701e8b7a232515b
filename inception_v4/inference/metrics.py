"""Figures of single classes, and of how sure a network is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from inception_v4.inference.evaluate import Evaluation

_BINS = 15


def confusion(result: Evaluation) -> Tensor:
    """Pictures by label (rows) and first class (columns), int64 [K, K]."""
    classes = len(result.per_class)
    return torch.bincount(result.labels * classes + result.predicted, minlength=classes**2).view(classes, classes)


def class_table(result: Evaluation, names: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """Rows of the per-class table, of the classes that have pictures, in percent.

    top1 is also the recall. Precision is None for a class that nothing was taken for; f1 is 0 for it.
    """
    matrix = confusion(result)
    taken = matrix.sum(0).tolist()
    rows = []
    for index, (total, first, fifth) in enumerate(result.per_class.tolist()):
        if total:
            rows.append(
                {
                    "class": names[index] if names and index < len(names) else str(index),
                    "samples": total,
                    "top1": 100 * first / total,
                    "top5": 100 * fifth / total,
                    "precision": 100 * first / taken[index] if taken[index] else None,
                    "f1": 200 * first / (total + taken[index]),
                }
            )
    return rows


def calibration_error(result: Evaluation) -> float:
    """Expected calibration error in percent: how far the first class's probability is from how often it is right.

    15 bins of equal width, (0, 1/15], ..., each weighed by its pictures (Guo et al. 2017, "On Calibration of Modern
    Neural Networks").
    """
    sure = result.probabilities[:, 0].double()
    right = (result.predicted == result.labels).double()
    bins = (sure * _BINS).ceil().long().clamp(1, _BINS) - 1
    gap = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bins, right - sure)
    return 100 * float(gap.abs().sum()) / result.samples


def figures(result: Evaluation, names: tuple[str, ...] | None) -> dict[str, Any]:
    """The result as plain values: percentages and counts.

    macro_f1 is the mean over the classes that have pictures.
    """
    rows = class_table(result, names)
    return {
        **result.record(),
        "macro_f1": sum(row["f1"] for row in rows) / len(rows),
        "ece": calibration_error(result),
        "per_class": rows,
    }
