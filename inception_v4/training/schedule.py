"""Learning rate as a pure function of the optimizer step. Floats only: no torch, no state, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inception_v4.settings.schema import Schedule


@dataclass(frozen=True)
class Steps:
    """Length of a run in optimizer steps."""

    per_epoch: int
    total: int

    @classmethod
    def of(cls, schedule: Schedule, batches: int, accum_steps: int) -> Steps:
        """For epochs of `batches`, of which `accum_steps` (or the rest) make a step."""
        per_epoch = -(-batches // accum_steps)
        planned = schedule.epochs * per_epoch
        return cls(per_epoch, min(planned, schedule.max_steps or planned))


@dataclass(frozen=True)
class LearningRate:
    """`rate(step)` for step = 0, 1, ...: linear warm-up, then the chosen decay.

    Attributes:
        kind: constant, cosine, cosine_modelzoo, exponential, step, multi_step, polynomial, one_cycle or cyclic.
        lr, min_lr, warmup_lr: peak, end of the cosine, and value at the first warm-up step.
        steps_per_epoch, epochs: size of the run; epochs may be fractional elsewhere but not here.
        warmup_epochs: length of the warm-up, in epochs.
        decay_epochs: cosine: its length (None: all that is left after warm-up); exponential and step: the period.
        decay_rate: factor per period; polynomial: the power.
        milestones: epochs, counted after warm-up, at which multi_step multiplies by decay_rate.
        stair: hold the rate for a whole epoch, or period (exponential).
        num_cycles, cycle_decay: cosine: how often it starts again, and the factor of lr each time; cyclic: how
            often the rate rises and falls.

    `cosine` is MindCV's: warm-up step i of W has warmup_lr + (lr - warmup_lr) i / W, so it ends one increment
    below lr, and the cosine restarts counting after it and ends just above min_lr. `cosine_modelzoo` is the
    MindSpore ModelZoo's: (i + 1) / W, so warm-up ends at lr. `one_cycle` rises from lr / 25 over the first 0.3
    of the steps and falls to min_lr, in cosines; `cyclic` is a triangle between min_lr and lr. Both are MindCV's
    (and PyTorch's) and take no warm-up.
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
    num_cycles: int = 1
    cycle_decay: float = 1.0

    @classmethod
    def from_settings(cls, schedule: Schedule, lr: float, steps: Steps, *, base: float) -> LearningRate:
        """The rate that the settings ask for; its peak is `lr`, and the others follow from `base`, their own one."""
        scale = lr / base
        return cls(
            schedule.scheduler,
            lr,
            steps.per_epoch,
            schedule.epochs,
            warmup_epochs=schedule.warmup_epochs,
            warmup_lr=schedule.warmup_lr * scale,
            min_lr=schedule.min_lr * scale,
            decay_epochs=schedule.decay_epochs,
            decay_rate=schedule.decay_rate,
            milestones=schedule.milestones,
            stair=schedule.lr_epoch_stair,
            num_cycles=schedule.num_cycles,
            cycle_decay=schedule.cycle_decay,
        )

    @property
    def warmup_steps(self) -> int:
        return round(self.warmup_epochs * self.steps_per_epoch)

    @property
    def decay_steps(self) -> int:
        """All that is left after the warm-up."""
        return self.epochs * self.steps_per_epoch - self.warmup_steps

    def __call__(self, step: int) -> float:
        """Learning rate of optimizer step `step` (>= 0)."""
        held = step // self.steps_per_epoch * self.steps_per_epoch if self.stair else step
        if held < self.warmup_steps:
            reached = held + 1 if self.kind == "cosine_modelzoo" else held
            return self.warmup_lr + (self.lr - self.warmup_lr) * reached / self.warmup_steps
        # The exponential's stairs are its periods, which need not begin with an epoch.
        return self._decayed((step if self.kind == "exponential" else held) - self.warmup_steps)

    def _decayed(self, t: int) -> float:
        decays = {
            "cosine": self._cosine, "cosine_modelzoo": self._cosine, "exponential": self._exponential,
            "step": self._step, "multi_step": self._multi_step, "polynomial": self._polynomial,
            "one_cycle": self._one_cycle, "cyclic": self._cyclic, "constant": lambda t: self.lr,
        }  # fmt: skip
        if self.kind not in decays:
            raise ValueError(f"unknown scheduler {self.kind!r}: choose one of {', '.join(sorted(decays))}")
        return decays[self.kind](t)

    def _cosine(self, t: int) -> float:
        length = self.decay_steps // self.num_cycles
        if self.decay_epochs is not None:
            length = round(self.decay_epochs * self.steps_per_epoch)
        # More cycles than steps, or a period below one step: every step starts a cycle.
        length = max(length, 1)
        cycle, t = divmod(t, length)
        if cycle >= self.num_cycles:
            return self.min_lr
        return _half_cosine(self.lr * self.cycle_decay**cycle, self.min_lr, t / length)

    def _exponential(self, t: int) -> float:
        periods = t / self.steps_per_epoch / (self.decay_epochs or 2.0)
        return self.lr * self.decay_rate ** (math.floor(periods) if self.stair else periods)

    def _step(self, t: int) -> float:
        epoch = t // self.steps_per_epoch
        return self.lr * self.decay_rate ** math.floor(epoch / (self.decay_epochs or 2.0))

    def _multi_step(self, t: int) -> float:
        epoch = t // self.steps_per_epoch
        return self.lr * self.decay_rate ** sum(epoch >= milestone for milestone in self.milestones)

    def _polynomial(self, t: int) -> float:
        return self.lr * (1 - min(t / max(self.decay_steps, 1), 1)) ** self.decay_rate

    def _one_cycle(self, t: int) -> float:
        top, end = 0.3 * self.decay_steps - 1, self.decay_steps - 1
        if t <= top:
            return _half_cosine(self.lr / 25, self.lr, t / top)
        return _half_cosine(self.lr, self.min_lr, min((t - top) / (end - top), 1))

    def _cyclic(self, t: int) -> float:
        side = max(int(self.decay_steps / self.num_cycles / 2), 1)
        height = 1 - abs(t / side % 2 - 1)
        return self.min_lr + (self.lr - self.min_lr) * height


def _half_cosine(start: float, end: float, part: float) -> float:
    """From `start` (part 0) to `end` (part 1)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * part))
