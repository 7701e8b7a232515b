"""Every setting of a run: one typed schema (pydantic v2), grouped in sections.

Leaf names are unique across the sections, so a YAML file may be nested or flat and every leaf is also a
command-line flag. Reading files, aliases and error messages are `recipes.py`'s job.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from inception_v4.preprocessing import (
    INCEPTION_MEAN,
    INCEPTION_STD,
    MAX_PIXELS,
    MIN_IMAGE_SIZE,
    Preprocessing,
)

PREPROCESSING_FIELDS = ("image_size", "mean", "std", "crop_pct", "interpolation", "antialias", "exif_rotation")
"""Settings that are also fields of `Preprocessing`."""


def _split_list(value: Any) -> Any:
    """`0.2,1`, `(0.2, 1)` and `[0.2, 1]` as they arrive from a command line."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("()[] ").split(",") if part.strip()]
    return [value] if isinstance(value, (int, float)) else value


NONE_WORDS = ("", "none", "null", "~")


def _none_words(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in NONE_WORDS else value


def _strengths(value: Any) -> Any:
    """One number alone as it is, several as a list, nothing as 0."""
    values = _split_list(0.0 if value is None else value)
    return values[0] if isinstance(values, (list, tuple)) and len(values) == 1 else values


def _check_strengths(value: float | tuple[float, ...]) -> float | tuple[float, ...]:
    strengths = (value,) if isinstance(value, float) else value
    if not 1 <= len(strengths) <= 4:
        raise ValueError(f"has {len(strengths)} numbers, give one to four")
    if min(strengths) < 0:
        raise ValueError("must not be negative")
    if len(strengths) == 4 and strengths[3] > 0.5:
        raise ValueError(f"hue {strengths[3]:g} is more than 0.5, which is every hue there is")
    return value


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[float, float], BeforeValidator(_split_list)]
PerChannel = Annotated[tuple[float, ...], BeforeValidator(_split_list)]
Strengths = Annotated[float | tuple[float, ...], BeforeValidator(_strengths), AfterValidator(_check_strengths)]


class Section(BaseModel):
    """Unknown keys are errors; the words none, null, ~ and '' mean None wherever None is allowed."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return _none_words(value)


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


class Network(Section):
    """The network and the weights it starts from."""

    model: Literal["inception_v4"] = Field("inception_v4", description="the one network of this project")
    in_channels: Positive = Field(3, description="input channels: 3, or 1 for grey pictures")
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = Field(0.2, description="dropout before the classifier")
    init: Literal["torch", "tf", "xavier", "shallow"] = Field(
        "tf", description="initialisation; tf: truncated normal, shallow: deep branches start quiet"
    )
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="torch's meaning: weight of the new batch"
    )
    bn_eps: Annotated[float, Field(gt=0)] = Field(1e-3, description="BatchNorm epsilon")
    pretrained: bool = Field(False, description="start from the published ImageNet weights")
    ckpt_path: str | None = Field(None, description="start from (or use) this weights file, or a run directory")
    grad_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")

    @model_validator(mode="after")
    def _one_source(self) -> Network:
        if self.pretrained and self.ckpt_path:
            raise ValueError(f"pretrained and ckpt_path {self.ckpt_path!r} exclude each other: give one of them")
        return self


class Optimizer(Section):
    """Parameter update."""

    opt: str = Field("rmsproptf", description="rmsproptf (TensorFlow's RMSProp), momentum, nesterov, adamw, lamb, ...")
    lr: Annotated[float, Field(gt=0)] = Field(0.045, description="peak learning rate")
    lr_base_batch: Positive | None = Field(
        None, description="global batch that lr is meant for; lr is scaled in proportion to the actual one"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="momentum, or the first beta of Adam's kind; default 0.9, or what is usual for such an opt"
    )
    opt_alpha: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="decay of RMSProp's square average; default 0.9"
    )
    opt_beta2: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="second beta of Adam's kind; default what is usual for opt, 0.999 for adamw"
    )
    opt_eps: Annotated[float, Field(gt=0)] | None = Field(
        None, description="epsilon; default 1.0 for rmsproptf, else what is usual for opt"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(4e-5, description="L2, or decoupled where the optimizer is")
    weight_decay_filter: Literal["all", "no_norm_bias"] = Field("all", description="parameters that decay")
    clip_grad: Annotated[float, Field(gt=0)] | None = Field(None, description="largest global gradient norm")
    accum_steps: Positive = Field(1, description="batches per optimizer step")
    ema: bool = Field(False, description="keep a moving average of the weights, validated beside them")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = Field(0.9999, description="decay of the average")
    ema_warmup: Annotated[int, Field(ge=0)] = Field(2000, description="steps scale of the decay's warm-up; 0: none")

    def peak_lr(self, global_batch: int) -> float:
        """The learning rate for steps of `accum_steps` batches of `global_batch` pictures over all processes."""
        return self.lr * (global_batch * self.accum_steps / self.lr_base_batch if self.lr_base_batch else 1.0)


OPTIMIZER_NUMBERS = ("momentum", "opt_alpha", "opt_beta2", "opt_eps")
"""Settings that are made for one optimizer; None is what is usual for it."""


class Schedule(Section):
    """Length of the run and its learning rate."""

    epochs: Positive = Field(200, description="passes over the training pictures")
    max_steps: Positive | None = Field(None, description="stop after this many optimizer steps")
    start_epoch: Annotated[int, Field(ge=0)] = Field(
        0, description="first epoch, counted from 0: its learning rates and its order of the pictures"
    )
    scheduler: Literal[
        "constant",
        "cosine",
        "cosine_modelzoo",
        "exponential",
        "step",
        "multi_step",
        "polynomial",
        "one_cycle",
        "cyclic",
    ] = Field("cosine", description="cosine is MindCV's step for step, cosine_modelzoo the ModelZoo's")
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(0, description="epochs of linear warm-up")
    warmup_lr: Annotated[float, Field(ge=0)] = Field(0.0, description="learning rate at the first step of warm-up")
    min_lr: Annotated[float, Field(ge=0)] = Field(0.0, description="end of the cosine")
    decay_epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="cosine: its length (default: all after warm-up); exponential, step: period (default 2)"
    )
    decay_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        0.94, description="factor per period; polynomial: its power"
    )
    milestones: Annotated[tuple[float, ...], BeforeValidator(_split_list)] = Field(
        (), description="epochs after warm-up at which multi_step decays"
    )
    num_cycles: Positive = Field(1, description="cosine: how often it starts again; cyclic: rises and falls")
    cycle_decay: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="cosine: factor of lr per cycle")
    lr_epoch_stair: bool = Field(False, description="change the learning rate between epochs only")


class Training(Section):
    """Loss, precision and speed."""

    loss: Literal["ce", "bce"] = Field("ce", description="cross-entropy, or binary cross-entropy per class")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="share spread over all classes")
    amp: Literal["off", "bf16", "fp16"] = Field("off", description="mixed precision; O0 is off, O1 to O3 are fp16")
    val_amp: Literal["off", "bf16", "fp16"] | None = Field(None, description="precision of validation; default amp")
    loss_scale: Annotated[float, Field(gt=0)] | Literal["dynamic"] = Field("dynamic", description="fp16: or a constant")
    compile: bool = Field(False, description="torch.compile")
    channels_last: bool | None = Field(None, description="memory format; default: what the device likes")
    sync_bn: bool = Field(False, description="batch statistics over all processes")
    tf32: bool = Field(True, description="TF32 (CUDA) or HF32 (Ascend) in float32 convolutions and products")
    deterministic: bool = Field(False, description="bit-reproducible kernels, slower")
    fused_optimizer: bool = Field(False, description="Ascend: its fused optimizer, where that is right")


class Run(Section):
    """Device, files and logging."""

    recipe: str = Field("quickstart", description="name of the run's recipe, part of the default output_dir")
    device: str = Field("auto", description="auto, cpu, cuda, npu, mps or xpu, with :i for one of several")
    seed: Annotated[int, Field(ge=0)] = Field(42, description="of everything random")
    output_dir: str | None = Field(None, description="run directory; default runs/<recipe>-<time>")
    resume: str | None = Field(None, description="auto (newest checkpoint of output_dir), or a checkpoint")
    val_interval: Positive = Field(1, description="epochs between validations")
    val_start: Positive | None = Field(
        None, description="the first epoch that is validated, counted from 1; default val_interval"
    )
    log_interval: Positive = Field(10, description="steps between log lines")
    ckpt_interval: Positive = Field(1, description="epochs between checkpoints")
    ckpt_steps: Positive | None = Field(None, description="also a checkpoint every so many steps")
    keep_checkpoint_max: Positive = Field(3, description="checkpoints kept, newest first")
    tensorboard: bool = Field(True, description="write TensorBoard events")
    profile: bool = Field(False, description="record a profiler trace of some steps into the run directory")
    smoke: bool = Field(False, description="shrink any recipe to under a minute on a CPU")


class Config(Section):
    """A whole run. Attribute = section; `config.flat()` gives the leaves."""

    data: Data = Field(default_factory=Data)
    augmentation: Augmentation = Field(default_factory=Augmentation)
    network: Network = Field(default_factory=Network)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    training: Training = Field(default_factory=Training)
    run: Run = Field(default_factory=Run)

    def flat(self) -> dict[str, Any]:
        """Every leaf by its unique name."""
        return {name: value for section in self.model_dump().values() for name, value in section.items()}

    def given(self) -> dict[str, Any]:
        """Every leaf that was given, by recipe or flag, and is not a default."""
        sections = self.model_dump(exclude_unset=True).values()
        return {name: value for section in sections for name, value in section.items()}
