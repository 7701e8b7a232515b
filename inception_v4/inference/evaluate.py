"""One epoch of training and one exact validation. Knows tensors and batches; no files, no configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from inception_v4.accelerator import Accelerator
from inception_v4.data.augment import DeviceTransform
from inception_v4.distributed import World
from inception_v4.inference.metrics import topk_hits
from inception_v4.training.optim import Ema, NoEma, clip_gradients, set_learning_rate
from inception_v4.training.schedule import LearningRate


class DivergedError(RuntimeError):
    """The loss or a weight is no longer a finite number."""


@dataclass
class Precision:
    """Where and in what number type a network is computed."""

    accelerator: Accelerator
    amp_dtype: torch.dtype | None = None

    def autocast(self) -> Any:
        return self.accelerator.autocast(self.amp_dtype)


@dataclass
class Learner:
    """Everything that an optimizer step reads or changes."""

    model: nn.Module  # the network itself: canonical names
    compute: nn.Module  # what is called: the network, compiled or wrapped for several processes
    optimizer: torch.optim.Optimizer
    scaler: Any
    rate: LearningRate
    criterion: Callable[[Tensor, Tensor], Tensor]
    transform: DeviceTransform
    precision: Precision
    ema: Ema | NoEma = field(default_factory=NoEma)
    accum_steps: int = 1
    clip_grad: float | None = None
    seed: int = 0
    rank: int = 0
    step: int = 0  # optimizer steps done

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network and, where it is kept, its average: by the prefix of their figures in a record."""
        return {"": self.model} | ({} if self.ema.module is None else {"ema_": self.ema.module})


def make_criterion(loss: str, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean loss over a batch of logits [B, K] and targets int64 [B] or float [B, K].

    Smoothing spreads `label_smoothing` evenly over all K classes, on mixed targets too (as MindCV does).
    """
    if loss == "ce":
        return lambda logits, targets: F.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    def binary(logits: Tensor, targets: Tensor) -> Tensor:
        classes = logits.shape[1]
        soft = F.one_hot(targets, classes).to(logits.dtype) if targets.ndim == 1 else targets
        return F.binary_cross_entropy_with_logits(logits, soft * (1 - label_smoothing) + label_smoothing / classes)

    return binary


def mix_seeds(*parts: int) -> int:
    """One 63-bit seed from several small integers; distinct inputs give unrelated seeds (splitmix64)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


def on_device(batches: Iterable[Any], accelerator: Accelerator) -> Iterator[Any]:
    """The batches on the device, each copied on a side stream while the one before is being computed."""
    copier = accelerator.copy_stream()
    ahead = None
    for batch in batches:
        with copier:
            upcoming = batch.to(accelerator.device, non_blocking=True)
        if ahead is not None:
            yield copier.ready(ahead)
        ahead = upcoming
    if ahead is not None:
        yield copier.ready(ahead)


def train_one_epoch(
    learner: Learner, batches: Iterable[Any], *, epoch: int, after_step: Callable[[Tensor, int], bool]
) -> bool:
    """Optimizer steps over `batches`, `accum_steps` of them per step; a shorter last group is averaged rightly.

    `after_step(loss, images)` gets the step's mean loss (on the device, not synchronised) and its number of images
    in this process; when it returns True the epoch ends early.

    Returns:
        Whether the epoch ran to its end.
    """
    learner.compute.train()
    stream = on_device(batches, learner.precision.accelerator)
    while group := list(islice(stream, learner.accum_steps)):
        loss = optimizer_step(learner, group, epoch=epoch)
        if after_step(loss, sum(len(batch.labels) for batch in group)):
            return False
    return True


def optimizer_step(learner: Learner, group: list[Any], *, epoch: int) -> Tensor:
    """One update from the gradients of a group of batches; returns the mean loss, on the device."""
    accelerator = learner.precision.accelerator
    # Dropout and mixing of step s are a function of (seed, rank, s): a resumed run repeats them.
    accelerator.seed(mix_seeds(learner.seed, learner.rank, learner.step))
    set_learning_rate(learner.optimizer, learner.rate(learner.step))
    images = sum(len(batch.labels) for batch in group)
    total = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(group):
        seed = mix_seeds(learner.seed, learner.rank, learner.step, number, epoch)
        # Only the last batch's backward pass exchanges gradients.
        compute = learner.compute
        waits: AbstractContextManager[None] = nullcontext()
        if number < len(group) - 1 and isinstance(compute, DistributedDataParallel):
            waits = compute.no_sync()
        with waits:
            inputs, targets = learner.transform.train(batch, seed)
            with learner.precision.autocast():
                logits = learner.compute(inputs)
            loss = learner.criterion(logits.float(), targets) * (len(batch.labels) / images)
            learner.scaler.scale(loss).backward()
        total += loss.detach()
    learner.scaler.unscale_(learner.optimizer)
    clip_gradients(learner.model.parameters(), learner.clip_grad)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad()  # to None, but for fused optimizers, which own the memory of the gradients
    learner.ema.update(learner.model)
    learner.step += 1
    return total


@dataclass
class Evaluation:
    """Exact figures over a data set; every picture counted once."""

    loss: float
    top1: float  # percent
    top5: float  # percent
    samples: int
    per_class: Tensor  # int64 [K, 3]: samples, top-1 hits, top-5 hits
    predicted: Tensor  # int64 [N], in the order of the data
    labels: Tensor  # int64 [N]
    skipped: list[str]

    def record(self, prefix: str = "") -> dict[str, Any]:
        return {
            f"{prefix}loss": self.loss, f"{prefix}top1": self.top1, f"{prefix}top5": self.top5,
            "samples": self.samples,
        }  # fmt: skip


@torch.inference_mode()
def evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[Any],
    *,
    transform: DeviceTransform,
    precision: Precision,
    world: World,
    batch_size: int,
) -> Evaluation:
    """Cross-entropy (no smoothing), top-1 and top-5 of `model` in evaluation mode.

    Each process sees its own pictures; the result is the same in all of them and for any number of them: a short
    last batch is filled up with zeros that are not counted (so that every picture meets the same kernels), and the
    losses are added exactly (`math.fsum`), in no particular order. On a CPU kernels also depend on the number of
    threads: the last bits of a loss are the same where that number is.
    """
    rows, skipped, classes = [], [], 0
    for batch in on_device(batches, precision.accelerator):
        skipped += batch.skipped
        count = len(batch.labels)
        if count == 0:
            continue
        images = transform.eval(batch.images)
        if count < batch_size:
            images = torch.cat([images, images.new_zeros((batch_size - count, *images.shape[1:]))])
        with precision.autocast():
            logits = model(images)[:count].float()
        classes = logits.shape[1]
        first, fifth = topk_hits(logits, batch.labels)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        columns = (batch.indices, batch.labels, logits.argmax(1), first, fifth)
        # One float32 column beside int64 ones: its bits travel as an integer.
        bits = losses.view(torch.int32)
        rows.append(torch.stack([*(c.to(torch.int64) for c in columns), bits.to(torch.int64)], dim=1))
    mine = torch.cat(rows) if rows else torch.zeros((0, 6), dtype=torch.int64)
    table = torch.cat(world.gather(mine))
    # A process without a single picture has not seen how many classes the network has.
    classes = max(int(c) for c in world.gather(torch.tensor([classes])))
    return _summarise(table, classes, [name for part in world.gather_objects(skipped) for name in part])


def _summarise(table: Tensor, classes: int, skipped: list[str]) -> Evaluation:
    indices, labels, predicted, first, fifth, bits = table[table[:, 0].argsort()].unbind(1)
    samples = len(table)
    if samples == 0:
        raise ValueError("no picture could be read: nothing to validate")
    if len(indices.unique()) != samples:
        raise AssertionError("a picture was counted twice")
    losses = bits.to(torch.int32).view(torch.float32).double()
    per_class = torch.zeros((max(classes, int(labels.max()) + 1), 3), dtype=torch.int64)
    per_class.index_add_(0, labels, torch.stack([torch.ones_like(first), first, fifth], dim=1))
    return Evaluation(
        loss=math.fsum(losses.tolist()) / samples,
        top1=100 * int(first.sum()) / samples,
        top5=100 * int(fifth.sum()) / samples,
        samples=samples,
        per_class=per_class,
        predicted=predicted,
        labels=labels,
        skipped=skipped,
    )


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
