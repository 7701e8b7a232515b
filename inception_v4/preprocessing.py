"""What a picture goes through before the network sees it, as plain data.

The same record travels in the metadata of a weights file, in an exported model and in the JSON beside a
MindSpore checkpoint, so that whoever holds the weights also knows how to feed them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

INCEPTION_MEAN = INCEPTION_STD = (0.5, 0.5, 0.5)
"""Maps pixels to [-1, 1]: TF-Slim's, Cadene's and timm's weights."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""MindCV's and the ModelZoo's weights."""

MIN_IMAGE_SIZE = 75
"""Smallest input side, in pixels, that leaves a 1x1 map after the last reduction."""


class Stem(NamedTuple):
    """How the network begins, and what it does at borders; no parameter changes its name or shape.

    Attributes:
        stride: of the first convolution.
        padding: of the seven convolutions and four pools that the paper leaves without: "valid", or "same".
        smallest: input side in pixels that leaves a place in the last map.
    """

    stride: int
    padding: str
    smallest: int


STEMS = {
    "standard": Stem(2, "valid", MIN_IMAGE_SIZE),
    "stride1": Stem(1, "valid", 39),
    "padded": Stem(2, "same", 16),
}
"""The paper's, and two for small pictures. With stride 1 n pixels have the maps of 2 n - 3. With padding
32 pixels pass at two fifths of what 75 cost."""


SMALLEST = min(stem.smallest for stem in STEMS.values())


def check_size(image_size: int, stem: str) -> None:
    """Raises ValueError where the network with that stem needs larger pictures."""
    smallest = STEMS[stem].smallest
    if image_size < smallest:
        others = [f"{name} from {row.smallest}" for name, row in STEMS.items() if row.smallest <= image_size]
        remedy = f", or another stem ({', '.join(others)})" if others else ""
        raise ValueError(
            f"image_size {image_size} is too small: Inception-v4 needs at least {smallest} pixels"
            f"{'' if stem == 'standard' else f' with stem {stem}'}{remedy}"
        )


MAX_PIXELS = 300_000_000
"""Most pixels of a picture in memory unless said otherwise: 0.9 GB."""

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation preprocessing: resize, centre crop, normalise.

    Attributes:
        image_size: side of the square network input, in pixels.
        mean, std: per channel, on the 0-1 scale.
        crop_pct: the shorter side is resized to `floor(image_size / crop_pct)` before the centre crop.
        interpolation: one of `INTERPOLATIONS`.
        antialias: False reproduces MindSpore's resize, which has no antialiasing.
        exif_rotation: a picture is turned as its EXIF orientation says before anything else. Published weights (timm's,
            Cadene's, MindCV's, the ModelZoo's) have it on too: they were trained on pictures that mostly lie in their
            files as they were seen, so a photo is named best when it is upright. Their published accuracies were
            measured with it off.
    """

    image_size: int = 299
    mean: tuple[float, ...] = INCEPTION_MEAN
    std: tuple[float, ...] = INCEPTION_STD
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    antialias: bool = True
    exif_rotation: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if self.image_size < SMALLEST:
            raise ValueError(f"image_size {self.image_size} is too small: no stem takes less than {SMALLEST} pixels")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one per channel")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be positive")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct {self.crop_pct} must be in (0, 1]")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}")

    def __str__(self) -> str:
        """One line for people."""
        antialias = "" if self.antialias else " without antialiasing"
        return (
            f"{self.image_size} px, {self.interpolation}{antialias}, crop {self.crop_pct}, "
            f"mean {self.mean}, std {self.std}{'' if self.exif_rotation else ', EXIF rotation ignored'}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The record from JSON; unknown keys are ignored so that newer files stay readable."""
        return cls(**{k: v for k, v in dated(values).items() if k in cls.__dataclass_fields__ and v is not None})

    def replace(self, **changes: Any) -> Preprocessing:
        """A copy with the given fields changed; None means "keep"."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})


def dated(values: dict[str, Any]) -> dict[str, Any]:
    """A record with what went without saying when it was written.

    Only this project's records have `antialias`. One without `exif_rotation` is of a time when pictures were read as
    they are stored: its network was trained on them and its accuracy measured with them so, and is met again only so.
    """
    return values | {"exif_rotation": False} if "antialias" in values and "exif_rotation" not in values else values
