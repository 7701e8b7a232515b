"""One exact validation: every picture counted once, the same figures for any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inception_v4.accelerator.precision import Precision
from inception_v4.data.loader import on_device
from inception_v4.data.mixing import one_for_each
from inception_v4.distributed import World
from inception_v4.inference.metrics import class_scores, class_table, reliability
from inception_v4.inference.several_classes import SeveralClasses, best_of_its_own

_RANKED = 5
"""Classes of each picture that are kept."""


@dataclass
class Evaluation:
    """Exact figures over a data set; every picture counted once."""

    loss: float
    top1: float  # percent
    top5: float  # percent
    samples: int
    num_classes: int
    labels: Tensor  # int64 [N], in the order of the data
    indices: Tensor  # int64 [N], positions in the data
    top: Tensor  # int64 [N, k]: the most probable classes, k is 5 or fewer classes' number
    probabilities: Tensor  # float32 [N, k], of `top`
    losses: Tensor  # float32 [N]
    skipped: list[str]
    several: SeveralClasses | None = None  # where pictures may have several; `labels` are then the best of their own

    @property
    def predicted(self) -> Tensor:
        """The first class of each picture, int64 [N]."""
        return self.top[:, 0]

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that have pictures, in percent."""
        return mean(row.f1 for row in class_scores(self, None) if row.pictures)

    @property
    def merit(self) -> tuple[str, float]:
        """Name and value, in percent, of the figure that networks are compared by: top-1, or mAP of several classes."""
        return ("mAP", self.several.figures["map"]) if self.several else ("top-1", self.top1)

    def record(self, prefix: str = "") -> dict[str, Any]:
        """The figures as plain values, with a prefix before all but the number of pictures."""
        figures = {"loss": self.loss, "top1": self.top1, "top5": self.top5}
        figures |= self.several.figures if self.several else {"macro_f1": self.macro_f1}
        return {**{f"{prefix}{name}": value for name, value in figures.items()}, "samples": self.samples}

    def figures(self, names: tuple[str, ...] | None) -> dict[str, Any]:
        """All that is said of it, as plain values: percentages and counts, with a row for each class."""
        rows = self.several.rows(names) if self.several else class_table(self, names)
        return {**self.record(), "ece": reliability(self).ece, "per_class": rows}


@torch.inference_mode()
def evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[Any],
    *,
    prepare: Callable[[Tensor], Tensor],
    precision: Precision,
    world: World,
    batch_size: int,
) -> Evaluation:
    """Cross-entropy (no smoothing), top-1 and top-5 of `model` in evaluation mode.

    Where pictures may have several classes (labels are [B, K]): binary cross-entropy, the mean over the classes; top-1
    and top-5 are right where the first class, or one of the first five, is among a picture's own; probabilities are
    sigmoids.

    `prepare` makes the network's input of a batch's uint8 pictures.

    Each process sees its own pictures; the result is the same in all of them and for any number of them: a short
    last batch is filled up with zeros that are not counted (so that every picture meets the same kernels), and the
    losses are added exactly (`math.fsum`), in no particular order. On a CPU kernels also depend on the number of
    threads: the last bits of a loss are the same where that number is.
    """
    rows, answers, skipped, classes = [], [], [], 0
    for batch in on_device(batches, precision.accelerator):
        skipped += batch.skipped
        count = len(batch.labels)
        if count == 0:
            continue
        images = prepare(batch.images)
        if count < batch_size:
            images = torch.cat([images, images.new_zeros((batch_size - count, *images.shape[1:]))])
        with precision.autocast():
            logits = model(images)[:count].float()
        classes = logits.shape[1]
        targets = one_for_each(batch.labels, classes) if batch.labels.ndim == 2 else None
        if targets is not None:
            answers.append(torch.stack([logits, targets], 1))
        rows.append(_columns(logits, batch.labels, batch.indices, targets))
    mine = torch.cat(rows) if rows else torch.zeros((0, 3 + 2 * _RANKED), dtype=torch.int64)
    table = torch.cat(world.gather(mine))
    # A process without a single picture has not seen how many classes the network has, nor a picture.
    seen = torch.stack(world.gather(torch.tensor([classes, len(answers)])))
    classes = int(seen[:, 0].max())
    result = _summarise(table, classes, [name for part in world.gather_objects(skipped) for name in part])
    if bool(seen[:, 1].any()):
        own = torch.cat(answers) if answers else torch.zeros((0, 2, classes))
        said = torch.cat(world.gather(own))[table[:, 0].argsort()]
        result.several = SeveralClasses(said[:, 0], said[:, 1] > 0)
    return result


def _columns(logits: Tensor, labels: Tensor, indices: Tensor, targets: Tensor | None) -> Tensor:
    """Index, label, loss, first classes and their probabilities of each picture, int64 [B, 3 + 2 x 5].

    Float32 travels beside int64 as its bits. Of fewer classes than five the rest is 0.
    """
    ranked = logits.topk(min(_RANKED, logits.shape[1]), dim=1).indices
    if targets is None:
        losses, shares = F.cross_entropy(logits, labels, reduction="none"), logits.softmax(1)
    else:
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        labels, shares = best_of_its_own(logits, targets, ranked), logits.sigmoid()
    numbers = (losses[:, None], shares.gather(1, ranked))
    loss, probabilities = (values.contiguous().view(torch.int32).to(torch.int64) for values in numbers)
    fill = (0, _RANKED - ranked.shape[1])
    return torch.cat([indices[:, None], labels[:, None], loss, F.pad(ranked, fill), F.pad(probabilities, fill)], dim=1)


def _summarise(table: Tensor, classes: int, skipped: list[str]) -> Evaluation:
    samples = len(table)
    if samples == 0:
        raise ValueError("no picture could be read: nothing to validate")
    table = table[table[:, 0].argsort()]
    indices, labels = table[:, 0], table[:, 1]
    if len(indices.unique()) != samples:
        raise AssertionError("a picture was counted twice")
    losses = _floats(table[:, 2])
    top, probabilities = (part[:, : min(_RANKED, classes)] for part in table[:, 3:].split(_RANKED, dim=1))
    hits = top == labels[:, None]
    return Evaluation(
        loss=math.fsum(losses.double().tolist()) / samples,
        top1=100 * int(hits[:, 0].sum()) / samples,
        top5=100 * int(hits.any(dim=1).sum()) / samples,
        samples=samples,
        num_classes=max(classes, int(labels.max()) + 1),
        labels=labels,
        indices=indices,
        top=top,
        probabilities=_floats(probabilities),
        losses=losses,
        skipped=skipped,
    )


def _floats(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)
