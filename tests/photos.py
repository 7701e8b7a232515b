"""Pictures for tests: JPEG files like photographs, and class folders of drawings. All of them are made here."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from inception_v4.data.shapes import draw_shape

_SUBSAMPLINGS = (0, 0, 0, 2, 0, 1)
"""As photographs of ImageNet have them: most with colours at full size, some at half in both directions or in one."""
_OPTIONS: tuple[dict[str, object], ...] = (
    {}, {}, {"progressive": True}, {}, {"optimize": True}, {"restart_marker_rows": 2},
)  # fmt: skip


def photos(count: int) -> tuple[bytes, ...]:
    """The first `count` of a fixed series of JPEG files, of many sizes, as cameras and web sites write them.

    Every twelfth is grey and every twentieth CMYK.
    """
    return tuple(_photo(number) for number in range(count))


@cache
def _photo(number: int) -> bytes:
    rng = np.random.default_rng([7, number])
    width, height = ((500, 375), (375, 500), (500, 333), None)[number % 4] or rng.integers(110, 620, 2).tolist()
    image = _scene(rng, width, height)
    mode = "L" if number % 12 == 5 else "CMYK" if number % 20 == 11 else "RGB"
    sampling = {"subsampling": _SUBSAMPLINGS[number % 6]} if mode == "RGB" else {}
    quality = int(rng.integers(70, 97))
    return encoded(image.convert(mode), quality=quality, **sampling, **_OPTIONS[number // 2 % 6])


def _scene(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Light that falls off, things in front of each other, textures at every scale, and a sensor's noise."""
    rough, smooth = (_texture(rng, width, height, roughness) for roughness in (1.0, 1.6))
    image = Image.fromarray(_levels(_coloured(rng, smooth)))
    for _ in range(int(rng.integers(8, 20))):
        side = int(min(width, height) * rng.uniform(0.08, 0.4) * rng.uniform(0.5, 2))
        place = (int(rng.uniform(-side / 2, width - side / 2)), int(rng.uniform(-side / 2, height - side / 2)))
        top, left = (int(rng.integers(max(1, length - side))) for length in (height, width))
        surface = (rough, smooth)[int(rng.integers(2))][:, top : top + side, left : left + side]
        thing = Image.fromarray(_levels(_coloured(rng, surface)))
        image.paste(thing, place, mask=_outline(rng, side).crop((0, 0, *thing.size)))
    image = image.filter(ImageFilter.GaussianBlur(0.7))  # a lens
    noise = rng.normal(0, rng.uniform(1, 5), (height, width, 3))
    return Image.fromarray(_levels(np.asarray(image, dtype=np.float64) + noise))


def _texture(rng: np.random.Generator, width: int, height: int, roughness: float) -> np.ndarray:
    """Three fields whose amplitudes fall with frequency as those of natural scenes do, [3, height, width]."""
    high, wide = -(-height // 64) * 64, -(-width // 64) * 64  # sizes that are quick to transform
    frequency = np.hypot(np.fft.fftfreq(high)[:, None], np.fft.rfftfreq(wide)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(3, high, wide))) * frequency**-roughness
    fields = np.fft.irfft2(spectrum, s=(high, wide))[:, :height, :width]
    return fields / fields.std((1, 2), keepdims=True)


def _coloured(rng: np.random.Generator, fields: np.ndarray) -> np.ndarray:
    """A colour whose brightness follows the first field and its hue, less, the others; [height, width, 3]."""
    hue = rng.normal(0, 12, (3, 1, 1)) * fields[1] + rng.normal(0, 6, (3, 1, 1)) * fields[2]
    return (rng.uniform(40, 215, (3, 1, 1)) + 35 * fields[0] + hue).transpose(1, 2, 0)


def _outline(rng: np.random.Generator, side: int) -> Image.Image:
    """A thing's mask: round, or with corners."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.choice([3, 4, 5, 40]))))
    reach = side / 2 * rng.uniform(0.8, 1.0, len(angles))
    corners = side / 2 + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in corners], fill=255)
    return mask


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, fmt: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def class_folders(root: Path, classes: dict[str, int], *, size: int = 48) -> Path:
    """`root/<class>/<i>.jpg` with drawn pictures, all different and not square; returns `root`."""
    for k, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = draw_shape("star", 1000 * k + i, size).crop((0, 0, size - i % 7, size - i % 5))
            (root / name / f"{i:03d}.jpg").write_bytes(encoded(image))
    return root
