"""A part of a JPEG file, without decoding what lies below it, and large ones at a fraction of their size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import simplejpeg
from torch import Tensor

_START = b"\xff\xd8\xff"
_END = b"\xff\xd9"
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_SCAN = 0xDA
_BELOW = 2  # rows whose colours reach up into the row above them, at most
_FRACTIONS = (8, 4, 2)  # of the size, which the inverse DCT can produce directly


class IsUnusual(ValueError):
    """Not a whole JPEG file of grey or three-colour pixels."""


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: Tensor) -> Tensor:
        """This part of [..., H, W], not copied."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]


class Frame(NamedTuple):
    """What the frame header says.

    Attributes:
        offset: of the height in the file, two bytes.
        height, width: in pixels.
    """

    offset: int
    height: int
    width: int


def frame_of(data: bytes) -> Frame:
    """The frame header; raises IsUnusual."""
    # A file that ends early would be decoded with a grey rest, and nothing said.
    if not data.startswith(_START) or not data.endswith(_END):
        raise IsUnusual("no start or no end")
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = _number(data, at + 5), _number(data, at + 7)
            if not height or not width or data[at + 9] not in (1, 3):
                raise IsUnusual("no size, or CMYK")
            return Frame(at + 5, height, width)
        if marker == _SCAN:
            break
        at += 2 + _number(data, at + 2)
    raise IsUnusual("no frame header")


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def decode_part(data: bytes, frame: Frame, box: Box, *, least: int | None) -> np.ndarray:
    """The pixels of `box`, [h, w, 3] uint8, bit-identical to those of the whole picture where they are not reduced.

    With `least` a box with at least twice (4, 8 times) as many pixels on each side comes at a half (1/4, 1/8) of its
    size, its edges moved by at most half a pixel of that.

    Raises:
        IsUnusual: it cannot be decoded.
    """
    fraction = 1
    if least is not None:
        fraction = next((n for n in _FRACTIONS if min(box.height, box.width) >= n * least), 1)
    # For the decoder the picture ends below the box; what follows in the file is passed over.
    rows = min(frame.height, box.top + box.height + _BELOW)
    expected = -(-rows // fraction), -(-frame.width // fraction), 3
    shorter = data[: frame.offset] + rows.to_bytes(2, "big") + data[frame.offset + 2 :]
    try:
        pixels = simplejpeg.decode_jpeg(
            shorter, min_height=expected[0], min_width=expected[1], min_factor=fraction, strict=False
        )
    except ValueError as error:
        raise IsUnusual(str(error)) from error
    if pixels.shape != expected:
        raise IsUnusual(f"decoded to {pixels.shape} instead of {expected}")
    # Rounded edges keep at least `least` pixels between them, since the box has `fraction` times as many.
    top, bottom = _nearest(box.top, fraction), _nearest(box.top + box.height, fraction)
    left, right = _nearest(box.left, fraction), _nearest(box.left + box.width, fraction)
    return pixels[top:bottom, left:right]


def _nearest(edge: int, fraction: int) -> int:
    return (2 * edge + fraction) // (2 * fraction)
