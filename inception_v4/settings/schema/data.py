"""Settings of the pictures: where they are and how they are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inception_v4.preprocessing import MAX_PIXELS
from inception_v4.settings.schema.forms import Positive, Section


class Data(Section):
    """Pictures: where they are and how they are read."""

    dataset: Literal["shapes", "imagenet", "folder", "cifar10", "cifar100"] | None = Field(
        None, description="kind of data; default: `folder` when data_dir is given, else generated `shapes`"
    )
    data_dir: str | None = Field(None, description="folder that holds the data")
    train_split: str | None = Field(
        None, description="sub-folder of the training pictures; default: train, or data_dir itself"
    )
    val_split: str | None = Field(
        None, description="sub-folder of the validation pictures; default: val, or a part held out of the training's"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="part held out for validation (stratified, seeded) where there is no folder of its own"
    )
    class_order: Literal["text", "natural"] = Field(
        "text", description="of class folders: by characters (1, 10, 2), or natural as in timm (1, 2, 10)"
    )
    dataset_download: bool = Field(False, description="fetch CIFAR-10/100 when it is missing")
    extract: bool = Field(False, description="unpack ImageNet's own tar files found in data_dir")
    num_classes: Positive | None = Field(None, description="classes of the head; default: what the data has")
    num_samples: Positive | None = Field(
        None, description="train on a fixed, class-balanced subset of at most this size"
    )
    val_samples: Positive | None = Field(
        None, description="validate on a fixed, class-balanced subset of at most this size"
    )
    shapes_train: Positive = Field(2000, description="pictures to draw for training (dataset shapes)")
    shapes_val: Positive = Field(400, description="pictures to draw for validation (dataset shapes)")
    shapes_classes: Annotated[int, Field(ge=2)] = Field(8, description="kinds of shape to draw (dataset shapes)")
    shapes_size: Annotated[int, Field(ge=16)] = Field(96, description="side in pixels of a drawn picture")
    batch_size: Positive = Field(32, description="images per device")
    val_batch_size: Positive | None = Field(None, description="images per device in validation; default batch_size")
    workers: Annotated[int, Field(ge=0)] | None = Field(None, description="loader processes; default: by CPU count")
    scaled_decoding: bool = Field(
        True, description="training: decode a large JPEG at 1/2, 1/4 or 1/8 where the crop keeps the input's pixels"
    )
    max_pixels: Positive = Field(
        MAX_PIXELS, description="most pixels of a picture: larger JPEG are decoded smaller, others are an error"
    )
    shuffle: bool = Field(True, description="new order of the training pictures in each epoch")
    drop_last: bool = Field(True, description="leave out the incomplete last batch of a training epoch")
    on_corrupt: Literal["error", "skip"] = Field("error", description="an unreadable picture: stop, or skip and count")

    @property
    def kind(self) -> str:
        """The data set that is meant."""
        return self.dataset or ("folder" if self.data_dir else "shapes")

    @property
    def folders(self) -> tuple[str, str]:
        """Names of the training and of the validation folder in data_dir."""
        return self.train_split or "train", self.val_split or "val"
