"""Several views of one picture, whose probabilities are averaged: the papers' crops, and mirroring."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from inception_v4.data.crops import EvalTransform, check_channels, middle_of_strip, resize, with_channels
from inception_v4.data.jpeg import Box
from inception_v4.preprocessing import Preprocessing

CROPS = (1, 10, 12, 144)
"""Numbers of crops that there are rules for, mirrored ones included."""

_REFERENCE = 224
_SCALES = (256, 288, 320, 352)
"""Shorter sides for an input of `_REFERENCE` pixels (GoogLeNet); the first is also Krizhevsky's."""


class Crop(NamedTuple):
    """A square of a picture resized to `height` x `width`; itself resized where it is not of the input's size."""

    height: int
    width: int
    box: Box


@dataclass(frozen=True)
class Views:
    """What the network sees of one picture.

    Attributes:
        crops: one of `CROPS`; 1 is the centre crop of `EvalTransform`.
        flip: each crop and its mirror image. More crops than one have them anyhow.

    Raises:
        ValueError: another number of crops, or `flip` where the crops have it.
    """

    crops: int = 1
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crops not in CROPS:
            raise ValueError(f"crops {self.crops}: give one of {', '.join(map(str, CROPS))}")
        if self.crops > 1 and self.flip:
            raise ValueError(f"flip: the {self.crops} crops are half of them mirrored already: leave --flip out")

    def __len__(self) -> int:
        return self.crops * (1 + self.flip)

    def __str__(self) -> str:
        return ", each with its mirror image" if self.flip else f", {self.crops} crops of each" * (self.crops > 1)

    @property
    def mirrored(self) -> bool:
        """Whether the mirror image of every crop is seen too."""
        return self.flip or self.crops > 1


ONE = Views()
"""The centre crop alone."""


def crop_boxes(crops: int, height: int, width: int, image_size: int) -> list[Crop]:
    """The crops of a picture without their mirror images, in a fixed order. Positions and sizes are rounded down.

    10: the corners and the centre of the centre square (Krizhevsky, Sutskever, Hinton 2012, section 4.1: 224 of 256
    pixels; their square is cut from the picture with its shorter side at 256).
    144: at four sizes (shorter side 256, 288, 320 and 352 of 224) three squares (left, centre, right; top, centre,
    bottom of an upright picture), and of each the four corners, the centre, and the whole square resized (Szegedy et
    al. 2015, "Going Deeper with Convolutions", section 7, which "Inception-v4" follows for its Table 4).
    12: the six of the centre square at the first size. The papers that report 12 crops ("Rethinking the Inception
    Architecture", "Inception-v4") do not say which; it is the twelfth part of the 144 that has one size and one square.

    All sizes are in proportion to the input: at 299 pixels the shorter side is 341, 384, 427 and 469, the first of
    which is also that of a single crop with crop_pct 0.875.

    Args:
        crops: 10, 12 or 144.
        height, width: of the picture.
        image_size: side of the network's input.
    """
    found = []
    for scale in _SCALES if crops == 144 else _SCALES[:1]:
        shorter = image_size * scale // _REFERENCE
        high, wide = (max(shorter, side * shorter // min(height, width)) for side in (height, width))
        tops_and_lefts = [((high - shorter) * k // 2, (wide - shorter) * k // 2) for k in (0, 1, 2)]
        for top, left in tops_and_lefts if crops == 144 else tops_and_lefts[1:2]:
            square = Box(top, left, shorter, shorter)
            found += [Crop(high, wide, box) for box in _of_square(square, image_size, whole=crops != 10)]
    return found


def _of_square(square: Box, side: int, *, whole: bool) -> list[Box]:
    """Boxes of `side` pixels in the corners (by rows) and the centre of a square, and the square itself."""
    far, middle = square.height - side, (square.height - side) // 2
    places = ((0, 0), (0, far), (far, 0), (far, far), (middle, middle))
    boxes = [Box(square.top + down, square.left + right, side, side) for down, right in places]
    return [*boxes, square] if whole else boxes


@dataclass(frozen=True)
class CropsTransform:
    """The crops of a picture: [3, H, W] to [V, C, S, S] uint8, without mirror images: the device has them for less."""

    preprocessing: Preprocessing
    crops: int

    def __post_init__(self) -> None:
        check_channels(len(self.preprocessing.mean))

    def __call__(self, image: Tensor) -> Tensor:
        how = self.preprocessing
        image, side = middle_of_strip(with_channels(image, len(how.mean))), how.image_size
        height, width = image.shape[-2:]
        views = []
        for size, crops in groupby(crop_boxes(self.crops, height, width, side), key=lambda crop: crop[:2]):
            resized = resize(image, list(size), how)
            squares = [crop.box.cut(resized) for crop in crops]
            views += [view if view.shape[-1] == side else resize(view, [side, side], how) for view in squares]
        return torch.stack([view.permute(1, 2, 0) for view in views]).permute(0, 3, 1, 2)


def eval_transform(preprocessing: Preprocessing, views: Views = ONE) -> EvalTransform | CropsTransform:
    """Deterministic: [3, H, W] to [C, S, S] uint8, or [V, C, S, S] where `views` has more crops than one.

    Raises:
        ValueError: `mean` is not of 1 or 3 channels.
    """
    return EvalTransform(preprocessing) if views.crops == 1 else CropsTransform(preprocessing, views.crops)
