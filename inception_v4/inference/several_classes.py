"""Figures of pictures that may have several classes each: average precision and F1, by class and over all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import nan
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

THRESHOLD = 0.5
"""Least probability of a class that is taken to be on a picture."""


@dataclass(frozen=True)
class SeveralClasses:
    """What a network said of each class on each picture, and what is right.

    Attributes:
        logits: float32 [N, K]; their sigmoid are the probabilities, of which many are 1 or 0 after rounding.
        targets: bool [N, K].
    """

    logits: Tensor
    targets: Tensor

    @cached_property
    def _counts(self) -> tuple[list[int], list[int], list[int]]:
        """Of each class: pictures, pictures that it was taken to be on, and of these the right ones."""
        taken = self.logits.sigmoid() >= THRESHOLD
        parts = (self.targets, taken, self.targets & taken)
        pictures, named, right = (part.sum(0).tolist() for part in parts)
        return pictures, named, right

    def rows(self, names: tuple[str, ...] | None) -> list[dict[str, Any]]:
        """A row for each class that has pictures, in percent; precision is None where nothing was taken for it."""
        return [
            {
                "class": names[k] if names and k < len(names) else str(k),
                "samples": pictures,
                "ap": 100 * average_precision(self.logits[:, k], self.targets[:, k]),
                "recall": 100 * right / pictures,
                "precision": 100 * right / named if named else None,
                "f1": 200 * right / (pictures + named),
            }
            for k, (pictures, named, right) in enumerate(zip(*self._counts, strict=True))
            if pictures
        ]

    @cached_property
    def figures(self) -> dict[str, float]:
        """In percent: mean average precision and mean F1 of the classes that have pictures, and F1 of all counts."""
        rows = self.rows(None)
        pictures, named, right = map(sum, self._counts)
        return {
            "map": fmean(row["ap"] for row in rows),
            "macro_f1": fmean(row["f1"] for row in rows),
            "micro_f1": 200 * right / (pictures + named),
        }


def average_precision(scores: Tensor, targets: Tensor) -> float:
    """Precision at each rise of recall, weighed by that rise, from the highest score down; NaN without a target.

    Pictures of one score are taken together (scikit-learn's `average_precision_score`: a step function, without the
    interpolation of Pascal VOC).

    Args:
        scores, targets: [N], numbers and bool.
    """
    ranked = np.argsort(-scores.numpy(), kind="stable")
    values, hits = scores.numpy()[ranked], np.cumsum(targets.numpy()[ranked])
    if not len(hits) or not hits[-1]:
        return nan
    last = np.flatnonzero(np.append(np.diff(values) != 0, True))
    recall = np.concatenate([[0.0], hits[last] / hits[-1]])
    return float(np.sum(np.diff(recall) * hits[last] / (last + 1)))


def best_of_its_own(logits: Tensor, targets: Tensor, ranked: Tensor) -> Tensor:
    """The class of each picture, of several the one that the network ranks first, int64 [B].

    Args:
        logits, targets: [B, K].
        ranked: the first few classes, int64 [B, k]; where some classes have the same output they decide.
    """
    among = targets.gather(1, ranked) > 0
    found = ranked.gather(1, among.int().argmax(1, keepdim=True))[:, 0]
    return torch.where(among.any(1), found, torch.where(targets > 0, logits, -torch.inf).argmax(1))
