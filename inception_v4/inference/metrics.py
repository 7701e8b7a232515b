"""Figures of single classes, and of how sure a network is, from what it said of labelled pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

BINS = 15
"""Of confidence, equally wide (Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599)."""


class Answers(Protocol):
    """What a network of K classes said of N labelled pictures: an `Evaluation`, or `Predictions` read from a file."""

    @property
    def num_classes(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """int64 [N]"""

    @property
    def top(self) -> Tensor:
        """The most probable classes, int64 [N, k]."""

    @property
    def predicted(self) -> Tensor:
        """The first of these, int64 [N]."""

    @property
    def probabilities(self) -> Tensor:
        """Of `top`, [N, k]."""


@dataclass(frozen=True)
class ClassScore:
    """One class, figures in percent.

    Attributes:
        name: its number where it has none.
        recall, top5: None where no picture is of it; precision: None where nothing was taken for it.
        f1: 0 where nothing of it was found.
    """

    name: str
    pictures: int
    precision: float | None
    recall: float | None
    f1: float
    top5: float | None


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in `BINS` bins.

    Attributes:
        confidence, accuracy: mean of each bin, float64, NaN in empty ones; counts: pictures in it, int64.
        ece: expected calibration error in percent: how far the first class's probability is from how often it is
            right, the mean over the bins, each weighed by its pictures.
    """

    confidence: Tensor
    accuracy: Tensor
    counts: Tensor
    ece: float


def confusion(answers: Answers) -> Tensor:
    """Pictures by label (rows) and first class (columns), int64 [K, K]."""
    classes = answers.num_classes
    return torch.bincount(answers.labels * classes + answers.predicted, minlength=classes**2).view(classes, classes)


def class_scores(answers: Answers, names: tuple[str, ...] | None) -> list[ClassScore]:
    """Of every class that has pictures or that something was taken for, in the order of the classes."""
    size, hits = answers.num_classes, answers.top == answers.labels[:, None]
    counted = (answers.labels, answers.predicted, answers.labels[hits[:, 0]], answers.labels[hits.any(1)])
    actual, called, first, fifth = (torch.bincount(part, minlength=size).tolist() for part in counted)
    return [
        ClassScore(
            names[k] if names and k < len(names) else str(k), actual[k], _percent(first[k], called[k]),
            _percent(first[k], actual[k]), 200 * first[k] / (actual[k] + called[k]), _percent(fifth[k], actual[k]),
        )
        for k in range(size)
        if actual[k] or called[k]
    ]  # fmt: skip


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def class_table(answers: Answers, names: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """Rows of the per-class table, of the classes that have pictures, in percent; top1 is also the recall."""
    return [
        {
            "class": row.name, "samples": row.pictures, "top1": row.recall, "top5": row.top5,
            "precision": row.precision, "f1": row.f1,
        }
        for row in class_scores(answers, names)
        if row.pictures
    ]  # fmt: skip


def reliability(answers: Answers) -> Reliability:
    """Whether 80 % sure means right 8 times in 10; the bins are (0, 1/15], (1/15, 2/15], ..."""
    sure = answers.probabilities[:, 0].double()
    right = (answers.predicted == answers.labels).double()
    bins = (sure * BINS).ceil().long().clamp(1, BINS) - 1
    counts = torch.bincount(bins, minlength=BINS)
    confidence, accuracy, gap = (
        torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, values) for values in (sure, right, right - sure)
    )
    return Reliability(confidence / counts, accuracy / counts, counts, 100 * float(gap.abs().sum()) / len(sure))
