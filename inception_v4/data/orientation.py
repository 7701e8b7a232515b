"""Which way up a picture is: EXIF's eight orientations, of pixels and of boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from PIL import Image
from PIL.ExifTags import Base
from torch import Tensor

from inception_v4.data.jpeg import Box

UPRIGHT = 1

_MIRRORED_ROWS = (2, 3, 6, 7)
"""Left and right change places, after rows and columns have where they do."""
_MIRRORED_COLUMNS = (3, 4, 7, 8)
_TRANSPOSED = (5, 6, 7, 8)
"""Rows become columns: a picture that is stored 400 x 300 is 300 x 400."""

_EXIF = b"Exif\0\0"
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def upright(image: Tensor, orientation: int) -> Tensor:
    """[..., H, W] as it was seen, from the pixels as they are stored."""
    if orientation in _TRANSPOSED:
        image = image.transpose(-1, -2)
    axes = [axis for axis, turned in ((-1, _MIRRORED_ROWS), (-2, _MIRRORED_COLUMNS)) if orientation in turned]
    return image.flip(axes) if axes else image


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width of the upright picture, from those of the stored one."""
    return (width, height) if orientation in _TRANSPOSED else (height, width)


def stored_box(box: Box, height: int, width: int, orientation: int) -> Box:
    """Where `box` of the upright picture lies in the stored one, which is `height` x `width`."""
    tall, wide = upright_size(height, width, orientation)
    top, left = box.top, box.left
    if orientation in _MIRRORED_ROWS:
        left = wide - left - box.width
    if orientation in _MIRRORED_COLUMNS:
        top = tall - top - box.height
    return Box(left, top, box.width, box.height) if orientation in _TRANSPOSED else Box(top, left, *box[2:])


def orientation_of(segments: Sequence[bytes]) -> int:
    """1 to 8 from the contents of a JPEG's APP1 segments: EXIF's or, where that has none, XMP's, as Pillow finds it."""
    exif = b"".join(segment.removeprefix(_EXIF) for segment in segments if segment.startswith(_EXIF))
    found = _from_exif(exif) if exif else None
    if found is None:
        match = next(filter(None, (_XMP.search(s) for s in segments if not s.startswith(_EXIF))), None)
        found = int(match[1]) if match else UPRIGHT
    return _known(found)


def orientation_of_opened(image: Image.Image) -> int:
    """1 to 8 of a picture that Pillow has opened."""
    try:
        return _known(image.getexif().get(Base.Orientation))
    except Exception:  # as in _from_exif
        return UPRIGHT


def _from_exif(data: bytes) -> object:
    tags = Image.Exif()
    try:
        tags.load(_EXIF + data)
        return tags.get(Base.Orientation)
    except Exception:  # Pillow raises whatever it trips over; the pixels do not suffer from damaged remarks
        return UPRIGHT


def _known(value: object) -> int:
    """An orientation as a file gives it; anything but 1 to 8 says nothing."""
    return value if isinstance(value, int) and UPRIGHT <= value <= 8 else UPRIGHT
