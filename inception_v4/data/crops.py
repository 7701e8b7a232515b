"""Where a picture is cut and how it is resized, uint8 to uint8. What is random is drawn from the generator given."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inception_v4.data.jpeg import Box
from inception_v4.preprocessing import Preprocessing

if TYPE_CHECKING:
    from inception_v4.settings.schema import Augmentation

_MODES = {"bicubic": "bicubic", "bilinear": "bilinear", "nearest": "nearest-exact"}
"""torch's words for filters; of the nearest ones that which takes Pillow's pixel."""
_ATTEMPTS = 10  # timm's and torchvision's
_LONGEST = 100
"""Times its width that a picture is resized as a whole: 35 MB at 299 px."""


def draw_box(rng: Random, height: int, width: int, how: Augmentation) -> Box:
    """RandomResizedCrop's box, distributed as timm's and torchvision's; the centre where none fits in ten tries."""
    for _ in range(_ATTEMPTS):
        w, h = draw_sides(rng, height * width, scale=how.scale, ratio=how.ratio)
        if 0 < w <= width and 0 < h <= height:
            return Box(below(rng, height - h + 1), below(rng, width - w + 1), h, w)
    h = min(height, max(1, round(width / how.ratio[0])))
    w = min(width, max(1, round(height * how.ratio[1])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def draw_sides(rng: Random, pixels: int, *, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, int]:
    """Two sides of a box with a share of `pixels` from `scale`; the first by the second is from `ratio`."""
    area = pixels * uniform(rng, *scale)
    aspect = math.exp(uniform(rng, math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def uniform(rng: Random, low: float, high: float) -> float:
    """A number from low to high."""
    return low + (high - low) * rng.random()


def below(rng: Random, count: int) -> int:
    """One of 0 ... count - 1. `Random.random` alone gives the same numbers in every version of Python."""
    return int(rng.random() * count)


def check_channels(count: int) -> None:
    """Raises ValueError where no picture has so many channels."""
    if count not in (1, 3):
        raise ValueError(
            f"pictures are read as RGB, or as grey for 1 channel, and the network takes {count}: "
            "give it tensors from Python (InceptionV4)"
        )


def with_channels(image: Tensor, count: int) -> Tensor:
    """[C, H, W] uint8 with `count` channels: colours as Pillow's grey (ITU-R 601), grey as three equal channels."""
    if len(image) == count:
        return image
    check_channels(count)
    if count == 3:
        return image.expand(3, -1, -1)
    return from_pillow(to_pillow(image).convert("L"))


def to_pillow(image: Tensor | Image.Image) -> Image.Image:
    """[1 or 3, H, W] uint8 as Pillow's."""
    if isinstance(image, Image.Image):
        return image
    if len(image) == 1:  # Pillow's grey pictures have no third dimension
        return Image.fromarray(image[0].contiguous().numpy())
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Tensor | Image.Image) -> Tensor:
    """A picture of Pillow's as [1 or 3, H, W] uint8; the values of a pixel are together in memory."""
    if isinstance(image, Tensor):
        return image
    values = torch.from_numpy(np.array(image))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def resize(image: Tensor, size: list[int], how: Augmentation | Preprocessing) -> Tensor:
    """uint8 [C, H, W] to a height and a width, or with one number to that shorter side.

    torchvision's resize to the last bit, without torchvision, which imports as slowly as torch. It works on a copy
    in which the values of a pixel are together: a third less time, and they stay so.
    """
    height, width = size if len(size) == 2 else _sides(image.shape[-2:], size[0])
    image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if (height, width) == image.shape[-2:]:
        return image
    smooth = how.interpolation != "nearest"
    options = {"align_corners": False, "antialias": how.antialias} if smooth else {}
    # Strides that no contiguous batch of one has: torch keeps a pixel's values together in the result too.
    batch = image.as_strided((1, *image.shape), (image.numel(), *image.stride()))
    bytewise = how.interpolation != "bilinear" or _resizes_bytes()
    resized = F.interpolate(
        batch if bytewise else batch.float(), size=[height, width], mode=_MODES[how.interpolation], **options
    )
    return (resized if bytewise else resized.round_().to(torch.uint8))[0]


def middle_of_strip(image: Tensor) -> Tensor:
    """Of a strip [C, H, W] longer than 100 times its width the middle of that length; other pictures as they are.

    A file of some hundred bytes may hold a strip that, resized by its shorter side, would fill the memory.
    """
    height, width = image.shape[-2:]
    most = _LONGEST * min(height, width)
    if max(height, width) <= most:
        return image
    h, w = min(height, most), min(width, most)
    return Box((height - h) // 2, (width - w) // 2, h, w).cut(image)


def _sides(sides: torch.Size, shorter: int) -> tuple[int, int]:
    """Height and width of the same shape whose shorter one is given."""
    height, width = sides
    if width <= height:
        return int(shorter * height / width), shorter
    return shorter, int(shorter * width / height)


def _resizes_bytes() -> bool:
    """Whether torch's bilinear filter for bytes is the fast one here."""
    arm = platform.machine() in ("aarch64", "arm64")
    return arm or torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side, crop the centre: [3, H, W] to [C, S, S] uint8, with a channel per value of `mean`.

    Equal to timm's (Pillow's) within one grey level (bicubic: two in a millionth of the values; nearest: the next
    pixel where two are equally near). Without antialiasing bilinear equals MindSpore's.
    """

    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        check_channels(len(self.preprocessing.mean))

    def __call__(self, image: Tensor) -> Tensor:
        how = self.preprocessing
        size = how.image_size
        image = middle_of_strip(with_channels(image, len(how.mean)))
        image = resize(image, [math.floor(size / how.crop_pct)], how)
        over = image.shape[-2] - size, image.shape[-1] - size
        # MindSpore rounds the offset down, torchvision half to even.
        top, left = (round(n / 2) if how.antialias else n // 2 for n in over)
        return Box(top, left, size, size).cut(image)


def pad_crop(image: Tensor, how: Augmentation, rng: Random) -> Tensor:
    """CIFAR's crop: 4 black pixels on each side, a crop of the original size anywhere, then resize to [C, S, S]."""
    box = Box(below(rng, 9), below(rng, 9), *image.shape[-2:])
    return resize(box.cut(F.pad(image, [4] * 4)), [how.image_size, how.image_size], how)
