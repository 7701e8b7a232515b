"""Picture files to tensors.

What every reader sees is [3, H, W] uint8 RGB, the pixels as they are stored: grey and CMYK pictures are
converted, transparency is dropped, 16-bit pictures keep their high bytes, and an EXIF rotation is not applied
(timm, torchvision and MindSpore do not either, and published accuracies are measured so). Of an animation the
first frame is read.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from inception_v4.data.jpeg import Box, IsUnusual, decode_part, frame_of

_JPEG = b"\xff\xd8\xff"

ChooseBox = Callable[[int, int], Box]
"""From a picture's height and width the part of it that is wanted."""


class CorruptImage(ValueError):
    """A picture that cannot be decoded; the message names it."""


def read_picture(path: str | Path) -> Tensor:
    """The picture in a file, [3, H, W] uint8.

    Raises:
        CorruptImage: it cannot be decoded, or ends early.
        OSError: the file cannot be read.
    """
    return decode_picture(Path(path).read_bytes(), str(path))


def decode_box(data: bytes, name: str, choose: ChooseBox, *, least: int | None = None) -> Tensor:
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
        box = choose(frame.height, frame.width)
        return torch.from_numpy(decode_part(data, frame, box, least=least)).permute(2, 0, 1)
    image = decode_picture(data, name)
    return choose(*image.shape[1:]).cut(image)


def decode_picture(data: bytes, name: str) -> Tensor:
    """The picture in `data`, [3, H, W] uint8; `name` is for the error message."""
    # The suffix says little: ImageNet has a PNG and CMYK pictures under .JPEG.
    if data.startswith(_JPEG):
        # What this decoder refuses is left to Pillow: it reads rare encodings and says what is wrong with broken ones.
        with suppress(RuntimeError):
            return _decode_jpeg(data)
    try:
        return _decode_with_pillow(data)
    except Exception as error:
        # Pillow's plugins raise whatever they trip over on damaged data (OSError, ValueError, struct.error, ...).
        raise CorruptImage(
            f"cannot decode {name} ({_reason(data, error)}): "
            "replace or delete it, or leave such pictures out with --on-corrupt skip"
        ) from error


def _decode_jpeg(data: bytes) -> Tensor:
    """Bit-identical to Pillow and faster."""
    with warnings.catch_warnings():
        # torchvision 0.29 says that a later release leaves its decoders to torchcodec.
        warnings.simplefilter("ignore", DeprecationWarning)
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture format that can be read"
    return " ".join(str(error).split()) or type(error).__name__


def _decode_with_pillow(data: bytes) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Remarks on metadata, transparency and size do not concern the pixels.
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
                grey = np.asarray(image).astype(np.int64) >> 8
                image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
            pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)
