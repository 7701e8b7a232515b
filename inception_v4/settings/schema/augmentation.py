"""Settings of the input: its size, its augmentation and its normalisation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from inception_v4.preprocessing import INCEPTION_MEAN, INCEPTION_STD, MIN_IMAGE_SIZE, Preprocessing
from inception_v4.settings.schema.forms import Fraction, PerChannel, Positive, Range, Section, Strengths

PREPROCESSING_FIELDS = ("image_size", "mean", "std", "crop_pct", "interpolation", "antialias", "exif_rotation")
"""Settings that are also fields of `Preprocessing`."""


class Augmentation(Section):
    """Input size, training augmentation and normalisation."""

    image_size: Annotated[int, Field(ge=MIN_IMAGE_SIZE)] = Field(299, description="side of the network input, >= 75")
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
        None, description="autoaug, randaug[-mM-nN], trivialaugwide or augmix[-mM]; replaces color_jitter"
    )
    re_prob: Fraction = Field(0.0, description="probability of random erasing (after normalisation)")
    re_scale: Range = Field((0.02, 1 / 3), description="area range of the erased box")
    re_ratio: Range = Field((0.3, 3.3), description="aspect range of the erased box")
    re_value: float | Literal["random"] = Field(0.0, description="fill of the erased box; 0 is the mean colour")
    re_max_attempts: Positive = Field(10, description="tries to place the erased box")
    mixup: Annotated[float, Field(ge=0)] = Field(0.0, description="beta parameter of mixup; 0 is off")
    cutmix: Annotated[float, Field(ge=0)] = Field(0.0, description="beta parameter of cutmix; 0 is off")
    cutmix_prob: Fraction = Field(1.0, description="probability that a batch is mixed at all")
    aug_repeats: Annotated[int, Field(ge=0)] = Field(0, description="draws of the same picture per epoch (0: one)")
    interpolation: Literal["bicubic", "bilinear", "nearest"] = Field("bicubic", description="resize filter")
    antialias: bool = Field(True, description="False resizes as MindSpore does")
    exif_rotation: bool = Field(
        True, description="turn pictures as their EXIF says; off as in timm, MindCV and published ImageNet figures"
    )
    crop_pct: Annotated[float, Field(gt=0, le=1)] = Field(0.875, description="validation: part kept by centre crop")
    mean: PerChannel = Field(INCEPTION_MEAN, description="per channel, on the 0-1 scale")
    std: PerChannel = Field(INCEPTION_STD, description="per channel, on the 0-1 scale")

    @model_validator(mode="after")
    def _ranges(self) -> Augmentation:
        for name in ("scale", "ratio", "re_scale", "re_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} ({low}, {high}) must be a rising pair of positive numbers")
        self.preprocessing()
        return self

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
