"""One exact validation: every picture counted once, the same figures for any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inception_v4.accelerator.precision import Precision
from inception_v4.data.loader import on_device
from inception_v4.distributed import World

_RANKED = 5
"""Classes of each picture that are kept."""


@dataclass
class Evaluation:
    """Exact figures over a data set; every picture counted once."""

    loss: float
    top1: float  # percent
    top5: float  # percent
    samples: int
    per_class: Tensor  # int64 [K, 3]: samples, top-1 hits, top-5 hits
    labels: Tensor  # int64 [N], in the order of the data
    indices: Tensor  # int64 [N], positions in the data
    top: Tensor  # int64 [N, k]: the most probable classes, k is 5 or fewer classes' number
    probabilities: Tensor  # float32 [N, k], of `top`
    losses: Tensor  # float32 [N]
    skipped: list[str]

    @property
    def predicted(self) -> Tensor:
        """The first class of each picture, int64 [N]."""
        return self.top[:, 0]

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
    prepare: Callable[[Tensor], Tensor],
    precision: Precision,
    world: World,
    batch_size: int,
) -> Evaluation:
    """Cross-entropy (no smoothing), top-1 and top-5 of `model` in evaluation mode.

    `prepare` makes the network's input of a batch's uint8 pictures.

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
        images = prepare(batch.images)
        if count < batch_size:
            images = torch.cat([images, images.new_zeros((batch_size - count, *images.shape[1:]))])
        with precision.autocast():
            logits = model(images)[:count].float()
        classes = logits.shape[1]
        rows.append(_columns(logits, batch.labels, batch.indices))
    mine = torch.cat(rows) if rows else torch.zeros((0, 3 + 2 * _RANKED), dtype=torch.int64)
    table = torch.cat(world.gather(mine))
    # A process without a single picture has not seen how many classes the network has.
    classes = max(int(c) for c in world.gather(torch.tensor([classes])))
    return _summarise(table, classes, [name for part in world.gather_objects(skipped) for name in part])


def _columns(logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
    """Index, label, loss, first classes and their probabilities of each picture, int64 [B, 3 + 2 x 5].

    Float32 travels beside int64 as its bits. Of fewer classes than five the rest is 0.
    """
    ranked = logits.topk(min(_RANKED, logits.shape[1]), dim=1).indices
    numbers = [F.cross_entropy(logits, labels, reduction="none")[:, None], logits.softmax(1).gather(1, ranked)]
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
    first, fifth = hits[:, 0].to(torch.int64), hits.any(dim=1).to(torch.int64)
    per_class = torch.zeros((max(classes, int(labels.max()) + 1), 3), dtype=torch.int64)
    per_class.index_add_(0, labels, torch.stack([torch.ones_like(first), first, fifth], dim=1))
    return Evaluation(
        loss=math.fsum(losses.double().tolist()) / samples,
        top1=100 * int(first.sum()) / samples,
        top5=100 * int(fifth.sum()) / samples,
        samples=samples,
        per_class=per_class,
        labels=labels,
        indices=indices,
        top=top,
        probabilities=_floats(probabilities),
        losses=losses,
        skipped=skipped,
    )


def _floats(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)
