"""Figures of stored answers: per class, confusion, calibration, and the pictures worth looking at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inception_v4.pages.run_record import Answers

BINS = 15
"""Of the reliability diagram, equally wide (Guo et al., arXiv 1706.04599)."""


@dataclass(frozen=True)
class ClassScore:
    """One class, figures in percent; None where nothing was called so, or nothing was so."""

    name: str
    pictures: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy.

    Attributes:
        confidence, accuracy: mean of each bin, NaN in empty ones; counts: pictures in it.
        ece: expected calibration error in percent: the mean gap, weighted by counts.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray
    ece: float


def class_scores(answers: Answers) -> list[ClassScore]:
    """Of every class that was met or named, worst F1 first."""
    size = len(answers.classes)
    right = answers.predicted == answers.labels
    hits = np.bincount(answers.labels[right], minlength=size)
    actual = np.bincount(answers.labels, minlength=size)
    called = np.bincount(answers.predicted, minlength=size)
    rows = [
        ClassScore(
            name, int(actual[k]), _percent(hits[k], called[k]), _percent(hits[k], actual[k]),
            _percent(2 * hits[k], actual[k] + called[k]),
        )
        for k, name in enumerate(answers.classes)
        if actual[k] or called[k]
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row.f1 or 0.0)


def _percent(part: float, whole: float) -> float | None:
    return 100 * float(part) / float(whole) if whole else None


def confused_counts(answers: Answers) -> np.ndarray:
    """Pictures by label (row) and first answer (column), int64 [K, K]."""
    size = len(answers.classes)
    return np.bincount(answers.labels * size + answers.predicted, minlength=size * size).reshape(size, size)


def most_confused(counts: np.ndarray, limit: int) -> list[int]:
    """At most `limit` classes, those that take part in most mistakes, in their own order."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    involved = wrong.sum(0) + wrong.sum(1)
    present = np.flatnonzero(counts.sum(0) + counts.sum(1))
    order = present[np.argsort(-involved[present], kind="stable")]
    return sorted(order[:limit].tolist())


def reliability(answers: Answers) -> Reliability:
    """Whether 80 % sure means right 8 times in 10."""
    right = (answers.predicted == answers.labels).astype(float)
    place = np.clip((answers.confidence * BINS).astype(int), 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, answers.confidence, BINS) / counts
        accuracy = np.bincount(place, right, BINS) / counts
    gaps = np.abs(np.nan_to_num(confidence) - np.nan_to_num(accuracy))
    return Reliability(confidence, accuracy, counts, 100 * float((gaps * counts).sum() / counts.sum()))


def confident_mistakes(answers: Answers, limit: int) -> list[int]:
    """Pictures that were named wrong, the surest first."""
    wrong = np.flatnonzero(answers.predicted != answers.labels)
    return wrong[np.argsort(-answers.confidence[wrong], kind="stable")][:limit].tolist()


def unsure_hits(answers: Answers, limit: int) -> list[int]:
    """Pictures that were named right, the least sure first."""
    right = np.flatnonzero(answers.predicted == answers.labels)
    return right[np.argsort(answers.confidence[right], kind="stable")][:limit].tolist()


def shares_right(answers: Answers) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    hits = answers.ranked == answers.labels[:, None]
    return 100 * float(hits[:, 0].mean()), 100 * float(hits.any(1).mean())
