"""Pictures of geometric shapes, drawn here: a data set for a first result without a download.

Every picture shows one shape in any colour, size, place and rotation on a busy background with small
distractors. A picture is a pure function of its kind, its seed and its size.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from inception_v4.console import progress

Point = tuple[float, float]
Outline = list[Point]
Colour = tuple[int, int, int]

SHAPES_VERSION = 2
"""Part of the name of a generated folder: to be raised when the same seed draws another picture."""
_SUPERSAMPLING = 4
_DARK, _BETWEEN, _LIGHT = (0, 90), (60, 140), (150, 255)
"""Grey levels of a channel: of the ground, of lines and spots, of the shape. Hues are free: only the outline tells."""


def _arc(start: float, end: float, radius: float = 1.0, centre: Point = (0.0, 0.0)) -> Outline:
    """Points on a circle from `start` to `end` degrees, 5 degrees apart."""
    steps = round((end - start) / 5)
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _star(tips: int, inner: float) -> Outline:
    """`inner` is the radius of the corners between the tips, which are at radius 1."""
    angles = [math.pi * i / tips - math.pi / 2 for i in range(2 * tips)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, (1.0, inner) * tips, strict=True)]


def _regular(corners: int) -> Outline:
    return _star(corners, 1.0)[::2]


def _box(left: float, top: float, right: float, bottom: float) -> Outline:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _heart() -> Outline:
    angles = [math.radians(5 * i) for i in range(72)]
    heights = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    return [(math.sin(a) ** 3, -height / 16) for a, height in zip(angles, heights, strict=True)]


def _squeeze(outline: Outline, factor: float) -> Outline:
    return [(x, y * factor) for x, y in outline]


_SHAPES: dict[str, tuple[list[Outline], list[Outline]]] = {  # kind: (filled parts, holes) in [-1, 1]
    "circle": ([_arc(0, 360)], []),
    "square": ([_box(-0.8, -0.8, 0.8, 0.8)], []),
    "triangle": ([_regular(3)], []),
    "star": ([_star(5, 0.4)], []),
    "cross": ([_box(-1, -0.32, 1, 0.32), _box(-0.32, -1, 0.32, 1)], []),
    "ring": ([_arc(0, 360)], [_arc(0, 360, 0.55)]),
    "heart": ([_heart()], []),
    "crescent": ([_arc(0, 360)], [_arc(0, 360, 0.85, (0.5, 0.0))]),
    "hexagon": ([_regular(6)], []),
    "arrow": ([[(0, -1), (0.75, -0.1), (-0.75, -0.1)], _box(-0.28, -0.1, 0.28, 1)], []),
    "semicircle": ([_arc(0, 180, 1.0, (0.0, -0.4))], []),
    "rectangle": ([_box(-1, -0.45, 1, 0.45)], []),
    "ellipse": ([_squeeze(_arc(0, 360), 0.5)], []),
    "rhombus": ([_squeeze(_regular(4), 0.5)], []),
    "frame": ([_box(-0.8, -0.8, 0.8, 0.8)], [_box(-0.45, -0.45, 0.45, 0.45)]),
    "chevron": ([[(0, -0.7), (0.9, 0.2), (0.9, 0.8), (0, -0.1), (-0.9, 0.8), (-0.9, 0.2)]], []),
    "pentagon": ([_regular(5)], []),
    "trapezoid": ([[(-0.4, -0.6), (0.4, -0.6), (1, 0.6), (-1, 0.6)]], []),
    "parallelogram": ([[(-0.4, -0.5), (1, -0.5), (0.4, 0.5), (-1, 0.5)]], []),
    "kite": ([[(0, -1), (0.6, -0.45), (0, 1), (-0.6, -0.45)]], []),
    "three_star": ([_star(3, 0.25)], []),
    "four_star": ([_star(4, 0.35)], []),
    "burst": ([_star(12, 0.7)], []),
    "eye": ([_squeeze(_arc(0, 360), 0.6)], [_arc(0, 360, 0.35)]),
    "letter_l": ([_box(-0.65, -1, -0.15, 1), _box(-0.65, 0.5, 0.65, 1)], []),
    "letter_t": ([_box(-0.9, -0.9, 0.9, -0.4), _box(-0.25, -0.9, 0.25, 1)], []),
    "letter_u": ([_box(-0.8, -0.8, 0.8, 0.8)], [_box(-0.35, -0.85, 0.35, 0.35)]),
    "letter_h": ([_box(-0.8, -0.9, -0.35, 0.9), _box(-0.4, -0.22, 0.4, 0.22), _box(0.35, -0.9, 0.8, 0.9)], []),
    "letter_e": ([_box(-0.7, -0.9, 0.7, 0.9)], [_box(-0.25, -0.5, 0.75, -0.2), _box(-0.25, 0.2, 0.75, 0.5)]),
    "drop": ([[(0, -1), *_arc(-30, 210, 0.6, (0.0, 0.4))]], []),
    "quarter": ([[(-0.5, -0.5), *_arc(0, 90, 1.4, (-0.5, -0.5))]], []),
    "pie": ([[(0, 0), *_arc(35, 325)]], []),
}

KINDS: tuple[str, ...] = tuple(_SHAPES)
"""Kinds that can be drawn; a data set of n classes has the first n."""


def draw_shape(kind: str, seed: int, size: int = 96) -> Image.Image:
    """A new picture, [size, size] RGB; no seed gives a picture of a generated data set.

    Raises:
        ValueError: `kind` is not one of `KINDS`.
    """
    if kind not in _SHAPES:
        raise ValueError(f"shape {kind!r} is unknown: choose from {', '.join(KINDS)}")
    return _draw(kind, f"new/{kind}/{seed}", size)


def generate(folder: Path, *, train: int, val: int, classes: int, size: int) -> None:
    """Writes `train` and `val` JPEG pictures into `folder/{train,val}/<kind>/`, the same bytes every time.

    Raises:
        ValueError: more classes than kinds, or fewer pictures than classes.
    """
    check_request(train=train, val=val, classes=classes)
    with progress("drawing pictures", train + val) as count_on:
        for split, total in (("train", train), ("val", val)):
            for label, kind in enumerate(KINDS[:classes]):
                target = folder / split / kind
                target.mkdir(parents=True, exist_ok=True)
                for i in range(label, total, classes):
                    number = i // classes
                    _draw(kind, f"{split}/{kind}/{number}", size).save(target / f"{kind}_{number:06d}.jpg", quality=92)
                    count_on()


def check_request(*, train: int, val: int, classes: int) -> None:
    """Raises ValueError where `generate` cannot make such a data set."""
    if not 2 <= classes <= len(KINDS):
        raise ValueError(f"shapes_classes {classes} must be between 2 and {len(KINDS)}, the kinds that can be drawn")
    for name, total in (("shapes_train", train), ("shapes_val", val)):
        if total < classes:
            raise ValueError(f"{name} {total} is less than one picture for each of the {classes} classes: raise it")


def _draw(kind: str, key: str, size: int) -> Image.Image:
    """A light shape near the middle, a little tilted, on a dark ground with lines and spots between the two."""
    rng = random.Random(f"{SHAPES_VERSION}/{key}")
    base = _colour(rng, *_DARK)
    canvas = _gradient(rng, size, _near(rng, base, 30), _near(rng, base, 30))
    _distractors(rng, canvas)
    radius = size * rng.uniform(0.3, 0.42)
    centre = (size * rng.uniform(0.44, 0.56), size * rng.uniform(0.44, 0.56))
    mask = _mask(kind, size, radius, centre, angle=math.radians(rng.uniform(-15, 15)))
    near = _colour(rng, *_LIGHT)
    canvas.paste(_gradient(rng, size, near, _near(rng, near, 40)), mask=mask)
    return _noisy(canvas, rng)


def _mask(kind: str, size: int, radius: float, centre: Point, *, angle: float) -> Image.Image:
    """Coverage of each pixel by the shape, [size, size] L."""
    big = size * _SUPERSAMPLING
    mask = Image.new("L", (big, big))
    draw = ImageDraw.Draw(mask)
    cos, sin = radius * math.cos(angle), radius * math.sin(angle)
    filled, holes = _SHAPES[kind]
    for outlines, value in ((filled, 255), (holes, 0)):
        for outline in outlines:
            points = [(centre[0] + cos * x - sin * y, centre[1] + sin * x + cos * y) for x, y in outline]
            draw.polygon([(x * _SUPERSAMPLING, y * _SUPERSAMPLING) for x, y in points], fill=value)
    return mask.resize((size, size), Image.Resampling.BOX)


def _distractors(rng: random.Random, canvas: Image.Image) -> None:
    """Thin lines and small spots, drawn below the shape."""
    size = canvas.width
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(2, 5)):
        ends = [rng.uniform(0, size) for _ in range(4)]
        draw.line(ends, fill=_colour(rng, *_BETWEEN), width=max(1, round(size / 90)))
    for _ in range(rng.randint(3, 8)):
        x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0.015, 0.05) * size
        corners = [(x + r * math.cos(a), y + r * math.sin(a)) for a in (rng.uniform(0, 2 * math.pi) for _ in range(3))]
        draw.polygon(corners, fill=_colour(rng, *_BETWEEN))


def _noisy(canvas: Image.Image, rng: random.Random) -> Image.Image:
    noise = np.random.Generator(np.random.PCG64(rng.getrandbits(64)))
    sigma = rng.uniform(2, 12)
    pixels = np.asarray(canvas, dtype=np.float32)
    pixels = pixels + sigma * noise.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _gradient(rng: random.Random, size: int, first: Colour, last: Colour) -> Image.Image:
    angle = rng.uniform(0, 2 * math.pi)
    steps = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = np.clip(0.5 + steps[None, :] * math.cos(angle) + steps[:, None] * math.sin(angle), 0, 1)[..., None]
    blend = (1 - ramp) * np.array(first, np.float32) + ramp * np.array(last, np.float32)
    return Image.fromarray(blend.round().astype(np.uint8))


def _colour(rng: random.Random, low: int, high: int) -> Colour:
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def _near(rng: random.Random, colour: Colour, spread: int) -> Colour:
    red, green, blue = (min(255, max(0, channel + rng.randint(-spread, spread))) for channel in colour)
    return red, green, blue
