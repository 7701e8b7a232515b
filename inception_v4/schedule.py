"""Learning rate as a pure function of the optimizer step. Floats only: no torch, no state, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LearningRate:
    """`rate(step)` for step = 0, 1, ...: linear warm-up, then the chosen decay.

    Attributes:
        kind: constant, cosine, cosine_modelzoo, exponential, step or multi_step.
        lr, min_lr, warmup_lr: peak, end of the cosine, and value at the first warm-up step.
        steps_per_epoch, epochs: size of the run; epochs may be fractional elsewhere but not here.
        warmup_epochs: length of the warm-up, in epochs.
        decay_epochs: cosine: its length (None: all that is left after warm-up); exponential and step: the period.
        decay_rate: factor per period.
        milestones: epochs, counted after warm-up, at which multi_step multiplies by decay_rate.
        stair: hold the rate for a whole epoch (warm-up and cosine) or period (exponential).

    `cosine` is MindCV's: warm-up step i of W has warmup_lr + (lr - warmup_lr) i / W, so it ends one increment
    below lr, and the cosine restarts counting after it and ends just above min_lr. `cosine_modelzoo` is the
    MindSpore ModelZoo's: (i + 1) / W, so warm-up ends at lr.
    """

    kind: str
    lr: float
    steps_per_epoch: int
    epochs: int
    warmup_epochs: float = 0.0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    decay_epochs: float | None = None
    decay_rate: float = 0.94
    milestones: Sequence[float] = ()
    stair: bool = False

    @property
    def warmup_steps(self) -> int:
        return round(self.warmup_epochs * self.steps_per_epoch)

    def __call__(self, step: int) -> float:
        """Learning rate of optimizer step `step` (>= 0)."""
        if self.stair and self.kind != "exponential":
            step = step // self.steps_per_epoch * self.steps_per_epoch
        if step < self.warmup_steps:
            reached = step + 1 if self.kind == "cosine_modelzoo" else step
            return self.warmup_lr + (self.lr - self.warmup_lr) * reached / self.warmup_steps
        return self._decayed(step - self.warmup_steps)

    def _decayed(self, t: int) -> float:
        if self.kind == "constant":
            return self.lr
        if self.kind in ("cosine", "cosine_modelzoo"):
            return self._cosine(t)
        epochs = t / self.steps_per_epoch
        if self.kind == "multi_step":
            return self.lr * self.decay_rate ** sum(math.floor(epochs) >= m for m in self.milestones)
        period = self.decay_epochs or 2.0
        if self.kind == "step":
            return self.lr * self.decay_rate ** math.floor(math.floor(epochs) / period)
        if self.kind == "exponential":
            return self.lr * self.decay_rate ** (math.floor(epochs / period) if self.stair else epochs / period)
        raise ValueError(f"unknown scheduler {self.kind!r}")

    def _cosine(self, t: int) -> float:
        if self.decay_epochs is not None:
            length = round(self.decay_epochs * self.steps_per_epoch)
        else:
            length = self.epochs * self.steps_per_epoch - self.warmup_steps
        if t >= length:
            return self.min_lr
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * t / length))
