"""Random erasing, mixup and cutmix of a normalised batch, on its device. They never make the host wait for it."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inception_v4.settings.schema import Augmentation


class LabelledImages(Protocol):
    """What is needed of a batch: labels [B] int64 or uint8 [B, K], boxes to erase [B, 4] int32 or None."""

    labels: Tensor
    erase: Tensor | None


class MixAndErase:
    """Erases and mixes a batch.

    Args:
        how: what to do, and how often.
        num_classes: width of mixed targets.
    """

    def __init__(self, how: Augmentation, *, num_classes: int) -> None:
        self._how, self._num_classes = how, num_classes

    def __call__(self, images: Tensor, batch: LabelledImages, seed: int) -> tuple[Tensor, Tensor]:
        """Images [B, C, S, S] float32, and labels [B] int64 or, mixed or of several classes, targets [B, K] float32.

        `images` are those of `batch`, normalised, and may be changed in place; their memory format stays. `seed`
        decides about the mixing. Targets are not smoothed: that is the loss's part on either kind.
        """
        how = self._how
        layout = torch.contiguous_format if images.is_contiguous() else torch.channels_last
        if batch.erase is not None:
            images = _erase(images, batch.erase, how.re_value, seed)
        targets = batch.labels
        if targets.ndim == 2:
            targets = one_for_each(targets, self._num_classes)
        if how.mixup or how.cutmix:
            if targets.ndim == 1:
                targets = torch.zeros(len(images), self._num_classes, device=images.device)
                targets.scatter_(1, batch.labels[:, None], 1.0)
            images, targets = _mix(images, targets, how, seed)
        return images.contiguous(memory_format=layout), targets


def one_for_each(labels: Tensor, classes: int) -> Tensor:
    """Targets [B, `classes`] float32 of labels uint8 [B, K]; outputs that the data has no class for get 0."""
    return F.pad(labels.float(), (0, classes - labels.shape[1]))


def _erase(images: Tensor, boxes: Tensor, value: float | str, seed: int) -> Tensor:
    """`boxes` [B, 4] of `images` filled with `value`, or with standard normal noise."""
    if isinstance(value, str):
        generator = torch.Generator(images.device).manual_seed(seed)
        filling = torch.randn(images.shape, generator=generator, device=images.device)
    else:
        filling = torch.full((), value, device=images.device).expand_as(images)
    if not boxes.is_cpu:
        return torch.where(_inside(boxes, *images.shape[2:]), filling, images)
    # Here the boxes are known: to decide about every pixel takes a millisecond a picture.
    for image, new, (top, left, bottom, right) in zip(images, filling, boxes.tolist(), strict=True):
        image[:, top:bottom, left:right] = new[:, top:bottom, left:right]
    return images


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels are in the box of each picture: bool [B, 1, `height`, `width`]."""
    top, left, bottom, right = boxes.to(torch.int64)[:, :, None, None, None].unbind(1)  # each [B, 1, 1, 1]
    rows = torch.arange(height, device=boxes.device)[:, None]
    columns = torch.arange(width, device=boxes.device)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def _mix(images: Tensor, targets: Tensor, how: Augmentation, seed: int) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix of each picture with the one `shift` places further on.

    One lambda, box and shift per batch, drawn on the host: a rotation pairs at random, since the order of a batch
    is random, and needs nothing copied to the device.
    """
    rng = np.random.default_rng(seed)
    if len(images) < 2 or rng.random() >= how.cutmix_prob:
        return images, targets
    shift = int(rng.integers(1, len(images)))
    if how.cutmix and (not how.mixup or rng.random() < 0.5):
        top, left, bottom, right = _cutmix_box(rng, how.cutmix, images.shape[2], images.shape[3])
        share = (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
        images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].roll(shift, 0)
    else:
        share = rng.beta(how.mixup, how.mixup)
        images = torch.lerp(images, images.roll(shift, 0), share)
    return images, torch.lerp(targets, targets.roll(shift, 0), share)


def _cutmix_box(rng: np.random.Generator, alpha: float, height: int, width: int) -> tuple[int, int, int, int]:
    """A box of the picture's aspect around a uniform centre, cut off at the border: top, left, bottom, right."""
    side = math.sqrt(1 - rng.beta(alpha, alpha))
    y, x = int(rng.integers(height)), int(rng.integers(width))
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    return (
        max(0, y - half_height), max(0, x - half_width), min(height, y + half_height), min(width, x + half_width)
    )  # fmt: skip
