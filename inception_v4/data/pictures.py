"""Picture files to tensors.

What every reader sees is [3, H, W] uint8 RGB: grey and CMYK pictures are converted, transparency is dropped, 16-bit
pictures keep their high bytes; of an animation the first frame is read. A picture is turned as its EXIF orientation
says unless `Decoding.exif_rotation` is off: then its pixels are those that Pillow gives, as timm reads them
(torchvision and MindSpore too), which is how published accuracies were measured. The orientation of a TIFF or HEIC
file is a part of the format and not a remark: Pillow and pillow-heif have always turned these.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from inception_v4.data.jpeg import (
    Box,
    Frame,
    IsUnusual,
    decode_part,
    decode_whole,
    decodes_row_by_row,
    fraction_for,
    fraction_within,
    frame_of,
    header_of,
)
from inception_v4.data.orientation import (
    UPRIGHT,
    orientation_of,
    orientation_of_opened,
    stored_box,
    upright,
    upright_size,
)
from inception_v4.data.suffixes import HEIF_REMEDY, is_heif, remedy
from inception_v4.preprocessing import MAX_PIXELS

_JPEG = b"\xff\xd8\xff"
_FORMATS = ("JPEG", "PNG", "HEIF", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "AVIF", "JPEG2000")
"""Of Pillow's; its JPEG reader has MPO too. Others it opens with programs (Ghostscript) that no picture needs."""
_LIMIT = Lock()
_SKIP = "or leave such pictures out with --on-corrupt skip"

ChooseBox = Callable[[int, int], Box]
"""From an upright picture's height and width the part of it that is wanted."""


class CorruptImage(ValueError):
    """A picture that cannot be decoded; the message names it, and what to do. `fault` is the message without that."""

    def __init__(self, fault: str, remedy: str = "") -> None:
        super().__init__(f"{fault}: {remedy}" if remedy else fault)
        self.fault = fault


@dataclass(frozen=True)
class Decoding:
    """How a file becomes pixels.

    Attributes:
        exif_rotation: turn a picture as its EXIF orientation says.
        max_pixels: most pixels of a picture in memory. A JPEG file that has more is decoded at 1/2, 1/4 or 1/8 of its
            size; whatever still has more is an error, before memory is taken for it.
    """

    exif_rotation: bool = True
    max_pixels: int = MAX_PIXELS


USUAL = Decoding()


def read_picture(path: str | Path, how: Decoding = USUAL) -> Tensor:
    """The picture in a file, [3, H, W] uint8.

    Raises:
        CorruptImage: it cannot be decoded, or ends early, or has too many pixels.
        OSError: the file cannot be read.
    """
    return decode_picture(Path(path).read_bytes(), str(path), how)


def decode_box(data: bytes, name: str, choose: ChooseBox, how: Decoding = USUAL, *, least: int | None = None) -> Tensor:
    """The part of the picture in `data` that `choose` wants, [3, h, w] uint8: the same pixels in less time.

    Args:
        least: where the part has at least twice as many pixels on each side, it may come at a half (a quarter, an
            eighth) of its size, decoded so; None: never.
    Raises:
        CorruptImage: as `decode_picture`.
    """
    # Broken files, and kinds that are rare, take the long way and get its verdict.
    with suppress(IsUnusual):
        frame = frame_of(data)
        required = _required_fraction(data, frame, how)
        orientation = _orientation(data, frame, how)
        box = choose(*upright_size(frame.height, frame.width, orientation))
        box = stored_box(box, frame.height, frame.width, orientation)
        part = decode_part(data, frame, box, fraction=max(required, fraction_for(box, least)))
        return upright(torch.from_numpy(part).permute(2, 0, 1), orientation)
    image = decode_picture(data, name, how)
    return choose(*image.shape[1:]).cut(image)


def _required_fraction(data: bytes, frame: Frame, how: Decoding) -> int:
    """At which a picture keeps within the limit; raises IsUnusual where it cannot."""
    fraction = fraction_within(frame.height, frame.width, how.max_pixels)
    if fraction == 1 or (fraction is not None and decodes_row_by_row(data, frame)):
        return fraction
    raise IsUnusual("too many pixels")


def _orientation(data: bytes, frame: Frame, how: Decoding) -> int:
    if not (how.exif_rotation and frame.remarks):
        return UPRIGHT
    return orientation_of([data[start:end] for start, end in frame.remarks])


def decode_picture(data: bytes, name: str, how: Decoding = USUAL) -> Tensor:
    """The picture in `data`, [3, H, W] uint8; `name` is for the error message."""
    # The suffix says little: ImageNet has a PNG and CMYK pictures under .JPEG.
    if data.startswith(_JPEG):
        # What this decoder refuses is left to Pillow: it reads rare encodings and says what is wrong with broken ones.
        with suppress(IsUnusual):
            frame = frame_of(data)
            if frame.height * frame.width <= how.max_pixels:
                return upright(torch.from_numpy(decode_whole(data)).permute(2, 0, 1), _orientation(data, frame, how))
    try:
        return _decode_with_pillow(data, how)
    except Exception as error:
        # Pillow's plugins raise whatever they trip over on damaged data (OSError, ValueError, struct.error, ...).
        raise CorruptImage(f"cannot decode {name} ({_reason(data, error)})", _remedy(data, name, error)) from error


class _Refused(ValueError):
    """A picture that Pillow reads and that is not taken, and what to do about it."""

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(fault)
        self.remedy = remedy


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, ModuleNotFoundError):
        return "HEIC, for which pillow-heif is needed"
    if isinstance(error, UnidentifiedImageError):
        return "HEIC that pillow-heif cannot read" if is_heif(data) else "not a picture format that can be read"
    return " ".join(str(error).split()) or type(error).__name__


def _remedy(data: bytes, name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return HEIF_REMEDY
    if isinstance(error, _Refused):
        return f"{error.remedy}, {_SKIP}"
    special = remedy(name) if isinstance(error, UnidentifiedImageError) and not is_heif(data) else None
    return f"{special}, {_SKIP}" if special else f"replace or delete it, {_SKIP}"


def _decode_with_pillow(data: bytes, how: Decoding) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Remarks on metadata, transparency and size do not concern the pixels.
        with opened(data) as image:
            _keep_within(image, data, how.max_pixels)
            image.load()
            # Only now: a PNG may have its EXIF after its pixels, and a TIFF has been turned by then.
            turned = orientation_of_opened(image) if how.exif_rotation else UPRIGHT
            pixels = np.array(_eight_bits(image).convert("RGB"))
    return upright(torch.from_numpy(pixels).permute(2, 0, 1), turned)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey, which Pillow's own conversion would clip at 255, by its high bytes; others as they are.

    Raises _Refused for floating point numbers: nothing says which of them is white.
    """
    if image.mode == "F":
        raise _Refused("its grey values are floating point numbers", "save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The picture in `data` as Pillow opens it, of whatever size: its pixels are not decoded yet."""
    if is_heif(data):
        import pillow_heif

        pillow_heif.register_heif_opener()
    # Pillow's own limit is one for the whole process, and lower than ours.
    with _LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = _identified(data)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        yield image


def _identified(data: bytes) -> Image.Image:
    """Opened as one of the formats that are read; raises UnidentifiedImageError where it is none that Pillow knows."""
    # The plugins of all formats take longer to import than most pictures to decode.
    Image.preinit()
    with suppress(UnidentifiedImageError):
        return Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
    Image.init()
    return Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])


def _keep_within(image: Image.Image, data: bytes, limit: int) -> None:
    """Has a picture above the limit decoded at a fraction of its size; raises _Refused where that cannot be."""
    width, height = image.size
    fraction = fraction_within(height, width, limit)
    if fraction == 1:
        return
    if fraction is None or not (isinstance(image, JpegImageFile) and decodes_row_by_row(data, header_of(data))):
        fault = f"{width} x {height} pixels are more than max_pixels {limit}"
        raise _Refused(fault, "make it smaller, raise max_pixels")
    image.draft(None, (width // fraction, height // fraction))
