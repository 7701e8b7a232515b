"""How far a run is and how far it goes, and its learning rate as a pure function of that. Numbers only: no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from inception_v4.settings.schema import Schedule


@dataclass
class Course:
    """How far a run goes and how far it has come, in samples of an epoch: batches of any size go on from there.

    Attributes:
        samples: of an epoch.
        batch: samples of a batch over all processes.
        accum_steps: batches of an optimizer step; the last step of an epoch may have fewer.
        drop_last: whether the incomplete last batch of an epoch is left out.
        epochs, max_steps: the run ends with whichever comes first.
        epoch, done: epochs done, and samples of the next one that are done.
        step: optimizer steps done, of whatever size they were; by default those of `epoch` whole epochs.
    """

    samples: int
    batch: int
    accum_steps: int = 1
    drop_last: bool = True
    epochs: int = 1
    max_steps: int | None = None
    epoch: int = 0
    done: int = 0
    step: int = -1

    def __post_init__(self) -> None:
        if self.step < 0:
            self.step = self.epoch * self.per_epoch

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of a whole epoch."""
        return self._steps(self.samples)

    @property
    def rest(self) -> int:
        """Optimizer steps to the end of the epoch; 0 where a larger batch than before finds no whole one left."""
        return self._steps(self.samples - self.done)

    @property
    def total(self) -> int:
        """Optimizer steps at the end of the run."""
        whole_epochs = self.epochs - self.epoch - bool(self.done)
        planned = self.step + whole_epochs * self.per_epoch + (self.rest if self.done else 0)
        return min(planned, self.max_steps or planned)

    @property
    def finished(self) -> bool:
        return self.epoch >= self.epochs or (self.max_steps is not None and self.step >= self.max_steps)

    @property
    def moment(self) -> float:
        """Where the schedule is: optimizer steps done, had all of them been as large as those to come."""
        return self.epoch * self.per_epoch + self.done / (self.batch * self.accum_steps)

    def advance(self, batches: int) -> None:
        """A step of so many batches is done."""
        self.step += 1
        self.done = min(self.done + batches * self.batch, self.samples)
        if not self.rest:
            self.end_epoch()

    def end_epoch(self) -> None:
        """Go on with the first sample of the next epoch."""
        self.epoch, self.done = self.epoch + 1, 0

    def shares(self, batches: int, rank: int, world: int) -> list[float]:
        """What the mean over this process's pictures of each of the next batches weighs in its step.

        The mean over `world` processes of these weighted means is the mean over all pictures of the step: the last
        batch of an epoch may be short, and of unequal parts. Where a process has no part of it, and repeats a picture,
        that weighs nothing.
        """
        starts = (self.done + number * self.batch for number in range(batches))
        sizes = [min(self.batch, self.samples - start) for start in starts]
        return [len(range(rank, size, world)) * world / sum(sizes) for size in sizes]

    def tails(self) -> Iterator[int]:
        """Samples from here to the end of the epoch, and of a whole one, where the run gets to such an end."""
        planned = self.total - self.step
        if planned >= self.rest:
            yield self.samples - self.done
        if planned >= self.rest + self.per_epoch:
            yield self.samples

    def _steps(self, samples: int) -> int:
        batches = samples // self.batch if self.drop_last else -(-samples // self.batch)
        return -(-batches // self.accum_steps)


@dataclass(frozen=True)
class LearningRate:
    """`rate(step)` for step = 0, 1, ... or in between: linear warm-up, then the chosen decay.

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
    def from_settings(cls, schedule: Schedule, lr: float, steps_per_epoch: int, *, base: float) -> LearningRate:
        """The rate that the settings ask for; its peak is `lr`, and the others follow from `base`, their own one."""
        scale = lr / base
        return cls(
            schedule.scheduler,
            lr,
            steps_per_epoch,
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

    def __call__(self, step: float) -> float:
        """Learning rate of optimizer step `step` (>= 0; of `Course.moment`, which is whole in an undisturbed run)."""
        held = step // self.steps_per_epoch * self.steps_per_epoch if self.stair else step
        if held < self.warmup_steps:
            reached = held + 1 if self.kind == "cosine_modelzoo" else held
            return self.warmup_lr + (self.lr - self.warmup_lr) * reached / self.warmup_steps
        # The exponential's stairs are its periods, which need not begin with an epoch.
        return self._decayed((step if self.kind == "exponential" else held) - self.warmup_steps)

    def _decayed(self, t: float) -> float:
        decays = {
            "cosine": self._cosine, "cosine_modelzoo": self._cosine, "exponential": self._exponential,
            "step": self._step, "multi_step": self._multi_step, "polynomial": self._polynomial,
            "one_cycle": self._one_cycle, "cyclic": self._cyclic, "constant": lambda t: self.lr,
        }  # fmt: skip
        if self.kind not in decays:
            raise ValueError(f"unknown scheduler {self.kind!r}: choose one of {', '.join(sorted(decays))}")
        return decays[self.kind](t)

    def _cosine(self, t: float) -> float:
        length = self.decay_steps // self.num_cycles
        if self.decay_epochs is not None:
            length = round(self.decay_epochs * self.steps_per_epoch)
        # More cycles than steps, or a period below one step: every step starts a cycle.
        length = max(length, 1)
        cycle, t = divmod(t, length)
        if cycle >= self.num_cycles:
            return self.min_lr
        return _half_cosine(self.lr * self.cycle_decay**cycle, self.min_lr, t / length)

    def _exponential(self, t: float) -> float:
        periods = t / self.steps_per_epoch / (self.decay_epochs or 2.0)
        return self.lr * self.decay_rate ** (math.floor(periods) if self.stair else periods)

    def _step(self, t: float) -> float:
        epoch = t // self.steps_per_epoch
        return self.lr * self.decay_rate ** math.floor(epoch / (self.decay_epochs or 2.0))

    def _multi_step(self, t: float) -> float:
        epoch = t // self.steps_per_epoch
        return self.lr * self.decay_rate ** sum(epoch >= milestone for milestone in self.milestones)

    def _polynomial(self, t: float) -> float:
        return self.lr * (1 - min(t / max(self.decay_steps, 1), 1)) ** self.decay_rate

    def _one_cycle(self, t: float) -> float:
        top, end = 0.3 * self.decay_steps - 1, self.decay_steps - 1
        if t <= top:
            return _half_cosine(self.lr / 25, self.lr, t / top)
        return _half_cosine(self.lr, self.min_lr, min((t - top) / (end - top), 1))

    def _cyclic(self, t: float) -> float:
        side = max(int(self.decay_steps / self.num_cycles / 2), 1)
        height = 1 - abs(t / side % 2 - 1)
        return self.min_lr + (self.lr - self.min_lr) * height


def _half_cosine(start: float, end: float, part: float) -> float:
    """From `start` (part 0) to `end` (part 1)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * part))
