"""Transforms of a picture in a worker (uint8 to uint8) and of a batch on the device (normalise, erase, mix).

What a worker does at random is drawn from one generator per sample.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from inception_v4.data.crops import (
    Box,
    EvalTransform,
    below,
    draw_box,
    draw_sides,
    from_pillow,
    pad_crop,
    resize,
    to_pillow,
    with_channels,
)
from inception_v4.settings.schema import Augmentation

Transform = Callable[[Tensor], Tensor]


class TrainTransform:
    """Random: a stored picture to [C, S, S] uint8 in two steps, so that only what is needed is decoded.

    `box` chooses the part of the picture, the call makes the input of it: `place` what stays the picture, moved and
    mirrored, `recolour` the rest. Erasing and mixing are `MixAndErase`'s.

    Raises:
        ValueError: `auto_augment` is not understood, or `mean` is not of 1 or 3 channels.
    """

    def __init__(self, how: Augmentation) -> None:
        self.how = how
        self._centre = EvalTransform(how.preprocessing())
        self._colours: Transform | None = None
        strengths = jitter_strengths(how.color_jitter)
        if how.auto_augment is not None:
            self._colours = policy(how.auto_augment, [round(255 * value) for value in how.mean])
        elif any(strengths):
            self._colours = v2.ColorJitter(*strengths)

    def box(self, height: int, width: int, rng: Random) -> Box:
        """The part of a picture of this size that the call expects."""
        if self.how.train_crop == "random_resized":
            return draw_box(rng, height, width, self.how)
        return Box(0, 0, height, width)

    def __call__(self, image: Tensor, rng: Random) -> Tensor:
        """[3, H, W], cut to the box, to [C, S, S]."""
        return self.recolour(self.place(image, rng), rng)

    def parts(self, image: Tensor, rngs: Sequence[Random]) -> list[tuple[Tensor, Tensor | None]]:
        """The input, or as many as there are generators, with the boxes to erase (None where nothing ever is).

        Of several the first one is clean: placed, with the generator of its box, and nothing else. The others are
        what becomes of it, each with a generator of its own.
        """
        placed, erases = self.place(image, rngs[0]), bool(self.how.re_prob)
        clean = (placed, torch.zeros(4, dtype=torch.int32) if erases else None)
        others = rngs[1:] if len(rngs) > 1 else rngs
        found = [(self.recolour(placed, rng), draw_erased_box(self.how, rng) if erases else None) for rng in others]
        return [clean, *found] if len(rngs) > 1 else found

    def place(self, image: Tensor, rng: Random) -> Tensor:
        """Its size and flips; the clean picture where a batch is split."""
        how = self.how
        image = with_channels(image, len(how.mean))
        if how.train_crop == "pad":
            image = pad_crop(image, how, rng)
        elif how.train_crop == "centre":
            image = self._centre(image)
        else:
            image = resize(image, [how.image_size, how.image_size], how)
        if rng.random() < how.hflip:
            image = F.horizontal_flip(image)
        if rng.random() < how.vflip:
            image = F.vertical_flip(image)
        return image

    def recolour(self, image: Tensor, rng: Random) -> Tensor:
        """The policy or the colour jitter: [C, S, S] uint8 to the same."""
        if self._colours is not None:
            # torchvision's transforms draw from torch's global generator.
            with seeded(rng.getrandbits(64)):
                image = self._colours(image)
        return image


def jitter_strengths(given: float | Sequence[float]) -> tuple[float, float, float, float]:
    """Of brightness, contrast, saturation and hue: one number is for the first three, several are one for each."""
    strengths = [given] * 3 if isinstance(given, (int, float)) else given
    brightness, contrast, saturation, hue = [*strengths, 0.0, 0.0, 0.0][:4]
    return brightness, contrast, saturation, hue


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator (CPU) seeded inside, untouched outside."""
    before = torch.get_rng_state()
    # torch.manual_seed would also seed, and thereby touch, the accelerators.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


_POLICY_NAMES = {
    "autoaug": "autoaug", "original": "autoaug",
    "rand": "randaug", "randaug": "randaug", "randaugment": "randaug",
    "trivialaugwide": "trivialaugwide", "trivialaugment": "trivialaugwide", "trivialaug": "trivialaugwide",
    "augmix": "augmix",
}  # fmt: skip
_POLICY_OPTIONS: dict[str, dict[str, tuple[float, float]]] = {  # name: (least, largest), of the type that it has
    "autoaug": {},
    "randaug": {"m": (0, 10), "n": (1, 14), "p": (0.0, 1.0), "mstd": (0.0, 100.0)},
    "trivialaugwide": {},
    "augmix": {"m": (1, 10), "w": (1, 100), "d": (1, 100)},
}
_WITHOUT_EFFECT = {"randaug": {"inc1"}, "augmix": {"mstd0", "mstd0.0", "b0"}}


class AugmentPolicy:
    """A policy of torchvision's on [C, H, W] uint8; most of its operations run on Pillow pictures."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def __call__(self, image: Tensor) -> Tensor:
        return from_pillow(self.policy(image))


class _OnPillow:
    """On Pillow pictures, with kernels that take half the time of those for tensors and give timm's pixels.

    Bit for bit the same in less time: shifts by whole pixels need no filter (a fifteenth), and what changes bytes one
    by one runs on tensors (a tenth).
    """

    def _apply_image_or_video_transform(
        self, image: Any, transform_id: str, magnitude: float, interpolation: Any, fill: Any
    ) -> Any:
        if transform_id != "Identity":
            image = from_pillow(image) if transform_id in _OF_BYTES else to_pillow(image)
        if transform_id == "Solarize":  # A tensor's threshold is rounded to float32: a whole number stays what it is.
            magnitude = math.ceil(255 * magnitude) / 255
        if transform_id.startswith("Translate"):
            interpolation = InterpolationMode.NEAREST
        found: Any = super()
        return found._apply_image_or_video_transform(image, transform_id, magnitude, interpolation, fill)


_OF_BYTES = {"Invert", "Posterize", "Solarize"}


class _RandAugment(_OnPillow, v2.RandAugment):
    """torchvision's, with two things of timm's: operations that are left out at random, and strengths that vary.

    Args:
        probability: of each of the operations that were chosen.
        deviation: standard deviation of the magnitude, which stays within its scale.
    """

    def __init__(self, operations: int, magnitude: int, *, probability: float, deviation: float, **shared: Any) -> None:
        # 11 bins: magnitude 10 is the last one, as on the scale of 10 that timm and MindCV use.
        super().__init__(operations, magnitude, num_magnitude_bins=11, **shared)
        self.probability, self.deviation = probability, deviation

    def _apply_image_or_video_transform(
        self, image: Any, transform_id: str, magnitude: float, interpolation: Any, fill: Any
    ) -> Any:
        if self.probability < 1 and torch.rand(()).item() >= self.probability:
            return image
        if self.deviation:
            magnitude = self._varied(transform_id, magnitude, *F.get_size(image))
        return super()._apply_image_or_video_transform(image, transform_id, magnitude, interpolation, fill)

    def _varied(self, transform_id: str, magnitude: float, height: int, width: int) -> float:
        """The strength of an operation that would have `magnitude`, on its side of zero, at a level drawn anew."""
        of_size, _ = self._AUGMENTATION_SPACE[transform_id]
        strengths = of_size(self.num_magnitude_bins, height, width)
        if strengths is None:  # it has one strength only
            return magnitude
        last = len(strengths) - 1
        level = min(max(self.magnitude + self.deviation * torch.randn(()).item(), 0.0), last)
        below_it = min(int(level), last - 1)
        value = torch.lerp(strengths[below_it].double(), strengths[below_it + 1].double(), level - below_it)
        return math.copysign(value.item(), magnitude)


class _TrivialAugmentWide(_OnPillow, v2.TrivialAugmentWide):
    """torchvision's."""


class _AutoAugment(_OnPillow, v2.AutoAugment):
    """torchvision's."""


class _AugMix(_OnPillow, v2.AugMix):
    """torchvision's, which mixes tensors [1, C, H, W]."""

    def _apply_image_or_video_transform(self, image: Tensor, *how: Any, **named: Any) -> Tensor:
        return from_pillow(super()._apply_image_or_video_transform(image.view(image.shape[-3:]), *how, **named))


def policy(text: str, fill: list[int]) -> AugmentPolicy:
    """The policy that `text` names, in timm's and MindCV's spelling; `fill` is the colour of uncovered corners.

    `autoaug`; `randaug-mM-nN-pP-mstdS` (magnitude M of 10, default 9; N operations, default 2, each applied with
    probability P, default 1, stronger with M, which varies by a standard deviation of S, default 0);
    `trivialaugwide`; `augmix-mM-wW-dD` (severity 3, width 3, depth 1 to 3 at random). Options that would mean
    something else than in timm (`t1`, ...) are errors.
    """
    name, *parts = text.strip().lower().split("-")
    kind = _POLICY_NAMES.get(name)
    if kind is None:
        raise ValueError(
            f"auto_augment {text!r} is unknown: choose autoaug, randaug[-mM-nN-pP-mstdS], "
            "trivialaugwide or augmix[-mM-wW-dD]"
        )
    options = _policy_options(text, kind, parts)
    shared: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR, "fill": fill}
    if kind == "autoaug":
        return AugmentPolicy(_AutoAugment(**shared))
    if kind == "trivialaugwide":
        return AugmentPolicy(_TrivialAugmentWide(**shared))
    if kind == "randaug":
        shared |= {"probability": options.get("p", 1.0), "deviation": options.get("mstd", 0.0)}
        return AugmentPolicy(_RandAugment(options.get("n", 2), options.get("m", 9), **shared))
    return AugmentPolicy(_AugMix(options.get("m", 3), options.get("w", 3), options.get("d", -1), **shared))


def _policy_options(text: str, kind: str, parts: list[str]) -> dict[str, Any]:
    allowed = _POLICY_OPTIONS[kind]
    options: dict[str, Any] = {}
    for part in parts:
        if part in _WITHOUT_EFFECT.get(kind, ()):
            continue
        match = re.fullmatch(r"([a-z]+)(\d+(\.\d+)?)", part)
        limits = allowed.get(match[1]) if match else None
        if match is None or limits is None or (match[3] and isinstance(limits[0], int)):
            known = ", ".join(f"{name}{low:g}..{high:g}" for name, (low, high) in allowed.items()) or "no options"
            raise ValueError(f"auto_augment {text!r}: option {part!r} is not supported; {kind} takes {known}")
        low, high = limits
        value = type(low)(match[2])
        if not low <= value <= high:
            raise ValueError(f"auto_augment {text!r}: {part!r} must be between {low:g} and {high:g}")
        options[match[1]] = value
    return options


def draw_erased_box(how: Augmentation, rng: Random) -> Tensor:
    """Random erasing's box [top, left, bottom, right], int32; all 0 for none."""
    size = how.image_size
    if rng.random() < how.re_prob:
        for _ in range(how.re_max_attempts):
            height, width = draw_sides(rng, size * size, scale=how.re_scale, ratio=how.re_ratio)
            if 0 < height < size and 0 < width < size:
                top, left = below(rng, size - height + 1), below(rng, size - width + 1)
                return torch.tensor([top, left, top + height, left + width], dtype=torch.int32)
    return torch.zeros(4, dtype=torch.int32)
