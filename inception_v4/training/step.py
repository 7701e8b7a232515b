"""One epoch of training: forward, loss, backward, update. Knows tensors and batches; no files, no settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from inception_v4.accelerator.precision import Precision
from inception_v4.data.loader import on_device
from inception_v4.data.mixing import MixAndErase
from inception_v4.data.normalise import Normalise
from inception_v4.training.optim import Ema, NoEma, clip_gradients, set_learning_rate
from inception_v4.training.schedule import Course, LearningRate
from inception_v4.training.teacher import NoTeacher, Teacher


class DivergedError(RuntimeError):
    """The loss or a weight is no longer a finite number."""


@dataclass
class Learner:
    """Everything that an optimizer step reads or changes."""

    model: nn.Module  # the network itself: canonical names
    compute: nn.Module  # what is called: the network, compiled or wrapped for several processes
    optimizer: torch.optim.Optimizer
    scaler: Any
    rate: LearningRate
    criterion: Callable[[Tensor, Tensor], Tensor]
    normalise: Normalise
    mix: MixAndErase
    precision: Precision
    course: Course
    ema: Ema | NoEma = field(default_factory=NoEma)
    teacher: Teacher | NoTeacher = field(default_factory=NoTeacher)
    clip_grad: float | None = None
    seed: int = 0
    rank: int = 0
    processes: int = 1
    lr: float = 0.0  # of the last step

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.course.step

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network and, where it is kept, its average: by the prefix of their figures in a record."""
        return {"": self.model} | ({} if self.ema.module is None else {"ema_": self.ema.module})


def make_criterion(
    loss: str, label_smoothing: float, class_weights: Tensor | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean loss over a batch of logits [B, K] and targets int64 [B] or float [B, K].

    A class's weight multiplies its part of the loss of a picture, on mixed and smoothed targets too. The mean is over
    the pictures and not over their weights, so that batches of any composition add up to one larger batch.

    Smoothing spreads `label_smoothing` evenly over all K classes, on mixed targets too (as MindCV does).
    """
    if loss == "ce" and class_weights is not None:
        weigh = partial(F.cross_entropy, weight=class_weights, label_smoothing=label_smoothing, reduction="none")
        return lambda logits, targets: weigh(logits, targets).mean()
    if loss == "ce":
        return lambda logits, targets: F.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    def binary(logits: Tensor, targets: Tensor) -> Tensor:
        classes = logits.shape[1]
        soft = F.one_hot(targets, classes).to(logits.dtype) if targets.ndim == 1 else targets
        smoothed = soft * (1 - label_smoothing) + label_smoothing / classes
        return F.binary_cross_entropy_with_logits(logits, smoothed, weight=class_weights)

    return binary


JENSEN_SHANNON = 12
"""Weight of the divergence beside the cross-entropy: AugMix's, timm's and MindCV's."""


def split_criterion(clean: Callable[[Tensor, Tensor], Tensor], splits: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Loss of a batch of `splits` parts of the same pictures, logits [splits x B, K] and targets [splits x B].

    `clean` of the first part, and 12 times the Jensen-Shannon divergence of all parts' probabilities (Hendrycks et
    al. 2020, "AugMix"; timm's JsdCrossEntropy). Both are means over pictures.
    """

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        parts = logits.chunk(splits)
        probabilities = logits.softmax(1).chunk(splits)
        mixture = torch.stack(probabilities).mean(0).clamp(1e-7, 1).log()
        divergences = [F.kl_div(mixture, part, reduction="batchmean") for part in probabilities]
        return clean(parts[0], targets[: len(parts[0])]) + JENSEN_SHANNON * torch.stack(divergences).mean()

    return criterion


def mix_seeds(*parts: int) -> int:
    """One 63-bit seed from several numbers of at least 0; other numbers give an unrelated one."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def train_one_epoch(
    learner: Learner, batches: Iterable[Any], *, epoch: int, after_step: Callable[[Tensor, int], bool]
) -> bool:
    """Optimizer steps over `batches`, some of them per step; a shorter last group is averaged rightly.

    `after_step(loss, images)` gets the step's mean loss (on the device, not synchronised) and its number of images
    in this process; when it returns True the epoch ends early.

    Returns:
        Whether the epoch ran to its end.
    """
    learner.compute.train()
    stream = on_device(batches, learner.precision.accelerator)
    while group := list(islice(stream, learner.course.accum_steps)):
        loss = optimizer_step(learner, group, epoch=epoch)
        if after_step(loss, sum(len(batch.labels) for batch in group)):
            return False
    return True


def optimizer_step(learner: Learner, group: list[Any], *, epoch: int) -> Tensor:
    """One update from the gradients of a group of batches; returns the mean loss, on the device."""
    accelerator = learner.precision.accelerator
    # Dropout and mixing of step s are a function of (seed, rank, s): a resumed run repeats them.
    accelerator.seed(mix_seeds(learner.seed, learner.rank, learner.step))
    learner.lr = learner.rate(learner.course.moment)
    set_learning_rate(learner.optimizer, learner.lr)
    shares = _shares(learner, group)
    total = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(group):
        seed = mix_seeds(learner.seed, learner.rank, learner.step, number, epoch)
        # Only the last batch's backward pass exchanges gradients.
        compute = learner.compute
        waits: AbstractContextManager[None] = nullcontext()
        if number < len(group) - 1 and isinstance(compute, DistributedDataParallel):
            waits = compute.no_sync()
        with waits:
            inputs, targets = learner.mix(learner.normalise(batch.images), batch, seed)
            with learner.precision.autocast():
                logits = learner.compute(inputs)
            loss = learner.criterion(logits.float(), targets)
            loss = learner.teacher.guide(loss, logits.float(), inputs, learner.precision) * shares[number]
            learner.scaler.scale(loss).backward()
        total += loss.detach()
    learner.scaler.unscale_(learner.optimizer)
    clip_gradients(learner.model.parameters(), learner.clip_grad)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad()  # to None, but for fused optimizers, which own the memory of the gradients
    learner.ema.update(learner.model)
    learner.course.advance(len(group))
    return total


def _shares(learner: Learner, group: list[Any]) -> list[float]:
    """What the mean over each batch's pictures weighs in the mean over those of the step."""
    if learner.processes > 1:
        return learner.course.shares(len(group), learner.rank, learner.processes)
    images = sum(len(batch.labels) for batch in group)
    return [len(batch.labels) / images for batch in group]


@torch.no_grad()
def require_finite(loss: Tensor | float, model: nn.Module, *, step: int) -> None:
    """Raise `DivergedError` when the loss or any parameter is NaN or infinite."""
    value = float(loss)
    if not math.isfinite(value):
        what = f"the loss is {value}"
    else:
        norms = torch.stack(torch._foreach_norm(list(model.parameters()), float("inf")))
        if bool(torch.isfinite(norms).all()):
            return
        what = "a weight is not finite"
    raise DivergedError(
        f"{what} at step {step}: lower --lr, add --warmup-epochs or --clip-grad, or use --amp off or bf16; "
        "the last checkpoint is from before"
    )
