"""Settings of the input: its size, its augmentation and its normalisation."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from inception_v4.preprocessing import INCEPTION_MEAN, INCEPTION_STD, SMALLEST, Preprocessing
from inception_v4.settings.schema.forms import Fraction, PerChannel, Positive, Range, Section, Strengths

PREPROCESSING_FIELDS = ("image_size", "mean", "std", "crop_pct", "interpolation", "antialias", "exif_rotation")
"""Settings that are also fields of `Preprocessing`."""


class Augmentation(Section):
    """Input size, training augmentation and normalisation."""

    image_size: Annotated[int, Field(ge=SMALLEST)] = Field(
        299, description="side of the network input, >= 75 (see stem); a range (128-299) grows over the epochs"
    )
    first_image_size: Annotated[int, Field(ge=SMALLEST)] | None = Field(
        None, description="the first of sizes that grow up to image_size: what a range there says"
    )
    train_crop: Literal["random_resized", "pad", "centre"] = Field(
        "random_resized", description="`pad` is CIFAR's: pad 4, random crop at the original size, then resize"
    )
    scale: Range = Field((0.08, 1.0), description="area range of the random crop")
    ratio: Range = Field((0.75, 4 / 3), description="aspect range of the random crop")
    hflip: Fraction = Field(0.5, description="probability of a horizontal flip")
    vflip: Fraction = Field(0.0, description="probability of a vertical flip")
    color_jitter: Strengths = Field(
        0.0, description="strength for brightness, contrast and saturation, or one for each and for hue (to 0.5)"
    )
    auto_augment: str | None = Field(
        None, description="autoaug, randaug[-mM-nN-pP-mstdS], trivialaugwide or augmix[-mM]; replaces color_jitter"
    )
    re_prob: Fraction = Field(0.0, description="probability of random erasing (after normalisation)")
    re_scale: Range = Field((0.02, 1 / 3), description="area range of the erased box")
    re_ratio: Range = Field((0.3, 3.3), description="aspect range of the erased box")
    re_value: float | Literal["random"] = Field(0.0, description="fill of the erased box; 0 is the mean colour")
    re_max_attempts: Positive = Field(10, description="tries to place the erased box")
    mixup: Annotated[float, Field(ge=0)] = Field(0.0, description="beta parameter of mixup; 0 is off")
    cutmix: Annotated[float, Field(ge=0)] = Field(0.0, description="beta parameter of cutmix; 0 is off")
    cutmix_prob: Fraction = Field(1.0, description="probability that a batch is mixed at all")
    aug_splits: int = Field(
        0, description="each picture clean and so many minus one times augmented, with the Jensen-Shannon loss; 0: off"
    )
    aug_repeats: Annotated[int, Field(ge=0)] = Field(0, description="draws of the same picture per epoch (0: one)")
    interpolation: Literal["bicubic", "bilinear", "nearest"] = Field("bicubic", description="resize filter")
    antialias: bool = Field(True, description="False resizes as MindSpore does")
    exif_rotation: bool = Field(
        True, description="turn pictures as their EXIF says; off as in timm, MindCV and published ImageNet figures"
    )
    crop_pct: Annotated[float, Field(gt=0, le=1)] = Field(0.875, description="validation: part kept by centre crop")
    mean: PerChannel = Field(INCEPTION_MEAN, description="per channel, on the 0-1 scale")
    std: PerChannel = Field(INCEPTION_STD, description="per channel, on the 0-1 scale")

    @model_validator(mode="before")
    @classmethod
    def _size_range(cls, values: Any) -> Any:
        """`image_size` 128-299 as the two numbers that it means."""
        size = values.get("image_size") if isinstance(values, dict) else None
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", size) if isinstance(size, str) else None
        if match is None:
            return values
        return values | {"first_image_size": int(match[1]), "image_size": int(match[2])}

    @model_validator(mode="after")
    def _ranges(self) -> Augmentation:
        if self.first_image_size and self.first_image_size > self.image_size:
            raise ValueError(
                f"image_size {self.first_image_size}-{self.image_size} falls: give the smaller one first, as in 128-299"
            )
        self._check_splits()
        for name in ("scale", "ratio", "re_scale", "re_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} ({low}, {high}) must be a rising pair of positive numbers")
        self.preprocessing()
        return self

    def _check_splits(self) -> None:
        splits = self.aug_splits
        if splits < 0 or splits == 1:
            raise ValueError(f"aug_splits {splits}: give 0, or at least 2: one part of a batch stays clean")
        if splits and (self.mixup or self.cutmix):
            raise ValueError(f"aug_splits {splits} with mixup or cutmix: the parts of a batch would no longer be pairs")
        if splits and not (self.auto_augment or self.re_prob or self.jitters):
            raise ValueError(
                f"aug_splits {splits} without auto_augment, color_jitter or re_prob: all parts are the same"
            )

    @property
    def jitters(self) -> bool:
        """Whether colours vary at random."""
        strengths = self.color_jitter
        return any(strengths if isinstance(strengths, tuple) else (strengths,))

    def preprocessing(self) -> Preprocessing:
        """The evaluation side of this section, as it travels with weights."""
        return Preprocessing(
            self.image_size, self.mean, self.std, self.crop_pct, self.interpolation, self.antialias, self.exif_rotation
        )

    def given_preprocessing(self) -> dict[str, Any]:
        """The part of `preprocessing` that was given and is not a default."""
        return {name: getattr(self, name) for name in PREPROCESSING_FIELDS if name in self.model_fields_set}

    def prepared_like(self, stored: Preprocessing) -> Augmentation:
        """A copy that prepares pictures as `stored` says wherever nothing was given; the input's size stays."""
        how = stored.replace(**self.given_preprocessing())
        return self.model_copy(update={name: getattr(how, name) for name in PREPROCESSING_FIELDS[1:]})
