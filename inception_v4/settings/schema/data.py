"""Settings of the pictures: where they are and how they are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from inception_v4.preprocessing import MAX_PIXELS
from inception_v4.settings.schema.forms import Positive, Section

LISTS = (".csv", ".tsv", ".jsonl", ".parquet")
"""Endings of a `data_dir` that is a list of pictures."""


class Data(Section):
    """Pictures: where they are and how they are read."""

    dataset: Literal["shapes", "imagenet", "folder", "list", "wds", "cifar10", "cifar100"] | None = Field(
        None,
        description="kind of data; default: `list` or `folder` when data_dir is given, else generated `shapes`; "
        "wds: webdataset's shards, as `pack` writes them",
    )
    data_dir: str | None = Field(
        None,
        description="folder that holds the data, or a list: a .csv, .tsv, .jsonl or .parquet with path,label[,split]",
    )
    data_zip: str | None = Field(None, description="NAME: unpack NAME.zip of data_dir, and read its folder")
    data_cache: str | None = Field(
        None,
        description="folder for copies of data from an address, and for what is unpacked; default: the user's cache",
    )
    data_cache_gb: Annotated[float, Field(gt=0)] | None = Field(
        None, description="most gigabytes of such copies; default: what leaves a tenth of the disk free"
    )
    train_split: str | None = Field(
        None, description="sub-folder of the training pictures; default: train, or data_dir itself"
    )
    val_split: str | None = Field(
        None, description="sub-folder of the validation pictures; default: val, or a part held out of the training's"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="part held out for validation (stratified, seeded) where there is no folder of its own"
    )
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="cross-validation: training pictures in so many parts (stratified, seeded), one for validation",
    )
    fold: Positive = Field(1, description="which of the folds is for validation, counted from 1")
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
    shard_buffer: Positive = Field(
        20_000,
        description="dataset wds: pictures that are shuffled among themselves, of shards in a new order each epoch",
    )
    scaled_decoding: bool = Field(
        True, description="training: decode a large JPEG at 1/2, 1/4 or 1/8 where the crop keeps the input's pixels"
    )
    max_pixels: Positive = Field(
        MAX_PIXELS, description="most pixels of a picture: larger JPEG are decoded smaller, others are an error"
    )
    shuffle: bool = Field(True, description="new order of the training pictures in each epoch")
    balanced_sampling: bool = Field(
        False, description="draw from every class equally often; an epoch has as many pictures as without"
    )
    drop_last: bool = Field(True, description="leave out the incomplete last batch of a training epoch")
    on_corrupt: Literal["error", "skip"] = Field("error", description="an unreadable picture: stop, or skip and count")

    @model_validator(mode="after")
    def _one_fold(self) -> Data:
        if self.fold > (self.folds or 1):
            how = f"folds is {self.folds}" if self.folds else "give folds too"
            raise ValueError(f"fold {self.fold}: {how}")
        return self

    @property
    def kind(self) -> str:
        """The data set that is meant."""
        if self.dataset or not self.data_dir:
            return self.dataset or "shapes"
        return "list" if self.data_dir.lower().endswith(LISTS) else "folder"

    @property
    def folders(self) -> tuple[str, str]:
        """Names of the training and of the validation folder in data_dir."""
        return self.train_split or "train", self.val_split or "val"
