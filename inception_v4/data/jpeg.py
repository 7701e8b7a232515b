"""A part of a JPEG file, without decoding what lies below it, and large ones at a fraction of their size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import simplejpeg
from torch import Tensor

_START = b"\xff\xd8\xff"
_END = b"\xff\xd9"
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_PROGRESSIVE = 0xC2
_SCAN = 0xDA
_APP1 = 0xE1  # EXIF, XMP
_BELOW = 2  # rows whose colours reach up into the row above them, at most
FRACTIONS = (1, 2, 4, 8)
"""Of the size, which the inverse DCT can produce directly."""


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
    """What the frame header says, and where remarks on the picture are.

    Attributes:
        offset: of the height in the file, two bytes.
        height, width: in pixels, as they are stored.
        components: 1 for grey, 3 for colours, 4 for CMYK.
        remarks: (start, end) of the contents of the APP1 segments before the header.
    """

    offset: int
    height: int
    width: int
    components: int
    remarks: tuple[tuple[int, int], ...] = ()


def frame_of(data: bytes) -> Frame:
    """The frame header of a whole file of grey or three-colour pixels; raises IsUnusual."""
    frame = header_of(data)
    # A file that ends early would be decoded with a grey rest, and nothing said.
    if not data.endswith(_END) or frame.components not in (1, 3):
        raise IsUnusual("no end, or CMYK")
    return frame


def header_of(data: bytes) -> Frame:
    """The frame header of any JPEG file; raises IsUnusual where it is not where it usually is."""
    if not data.startswith(_START):
        raise IsUnusual("no start")
    at = 2
    remarks: list[tuple[int, int]] = []
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = _number(data, at + 5), _number(data, at + 7)
            if not height or not width:
                raise IsUnusual("no size")
            return Frame(at + 5, height, width, data[at + 9], tuple(remarks))
        if marker == _SCAN:
            break
        end = at + 2 + _number(data, at + 2)
        if marker == _APP1:
            remarks.append((at + 4, end))
        at = end
    raise IsUnusual("no frame header")


def decodes_row_by_row(data: bytes, frame: Frame) -> bool:
    """Whether a decoder can produce rows as it reads; otherwise it keeps all coefficients, six bytes per pixel."""
    at = frame.offset - 5
    if data[at + 1] == _PROGRESSIVE:
        return False
    while at + 5 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == _SCAN:
            return data[at + 4] == frame.components
        at += 2 + _number(data, at + 2)
    return False


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def fraction_for(box: Box, least: int | None) -> int:
    """2, 4 or 8 where `box` has so many times `least` pixels or more on each side, else 1; None: 1."""
    if least is None:
        return 1
    return next(n for n in reversed(FRACTIONS) if n == 1 or min(box.height, box.width) >= n * least)


def fraction_within(height: int, width: int, max_pixels: int) -> int | None:
    """The least of `FRACTIONS` at which a picture has at most `max_pixels`; None: it has more at each of them."""
    return next((n for n in FRACTIONS if -(-height // n) * -(-width // n) <= max_pixels), None)


def decode_whole(data: bytes) -> np.ndarray:
    """The pixels of a whole picture, [H, W, 3] uint8, bit-identical to Pillow's and faster.

    Raises:
        IsUnusual: it cannot be decoded without a warning.
    """
    try:
        return simplejpeg.decode_jpeg(data, strict=True)
    except ValueError as error:
        raise IsUnusual(str(error)) from error


def decode_part(data: bytes, frame: Frame, box: Box, *, fraction: int = 1) -> np.ndarray:
    """The pixels of `box`, [h, w, 3] uint8, bit-identical to those of the whole picture where they are not reduced.

    With a `fraction` of 2, 4 or 8 it comes at a half, a quarter or an eighth of its size, its edges moved by at most
    half a pixel of that.

    Raises:
        IsUnusual: it cannot be decoded.
    """
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
    return pixels[_nearest(box.top, box.height, fraction), _nearest(box.left, box.width, fraction)]


def _nearest(start: int, length: int, fraction: int) -> slice:
    """The rows or columns next to a side of a box: n or more where the side has n times `fraction`, one at least."""
    first, end = ((2 * edge + fraction) // (2 * fraction) for edge in (start, start + length))
    return slice(min(first, end - 1) if end else 0, max(end, 1))
