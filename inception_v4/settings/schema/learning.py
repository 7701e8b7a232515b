"""Settings of learning: the update, its schedule, the loss and its precision."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from inception_v4.settings.schema.forms import Fraction, Keywords, Positive, Seconds, Section, split_list

BLOCKS = 22
"""Entries of the network's `features`."""
STAGES = {"stem": 6, "inception_a": 10, "reduction_a": 11, "inception_b": 18, "reduction_b": 19, "backbone": BLOCKS}
"""Blocks up to the end of each part of the network, by the paper's names."""


def _number_or_word(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


def frozen_blocks(freeze: int | str) -> int:
    """How many of the network's blocks a `freeze` means, from the input on."""
    if isinstance(freeze, str):
        place = re.fullmatch(r"features\.(\d+)", freeze)
        blocks = int(place[1]) + 1 if place else STAGES.get(freeze, -1)
    else:
        blocks = freeze
    if not 0 <= blocks <= BLOCKS:
        raise ValueError(f"give 0 to {BLOCKS}, {', '.join(STAGES)} or features.0 to features.{BLOCKS - 1}")
    return blocks


def _known_blocks(freeze: int | str) -> int | str:
    frozen_blocks(freeze)
    return freeze


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
    opt_kwargs: Keywords | None = Field(
        None,
        description="what else an optimizer of timm's takes, as in ns_steps=3,fallback_lr_scale=0.1 for muon (steps of "
        "its iteration; factor of lr for biases and BatchNorm)",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(4e-5, description="L2, or decoupled where the optimizer is")
    weight_decay_filter: Literal["all", "no_norm_bias"] = Field("all", description="parameters that decay")
    clip_grad: Annotated[float, Field(gt=0)] | None = Field(None, description="largest global gradient norm")
    accum_steps: Positive = Field(1, description="batches per optimizer step")
    freeze: Annotated[int | str, BeforeValidator(_number_or_word), AfterValidator(_known_blocks)] = Field(
        0,
        description="blocks that do not learn, counted from the input: a number, or up to the end of stem, "
        "inception_a, reduction_a, inception_b, reduction_b, backbone (all but the classifier) or features.N",
    )
    unfreeze_at: Positive | None = Field(None, description="frozen blocks learn too after so many epochs")
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="factor of lr per layer from the classifier towards the input, timm's layers"
    )
    head_lr_scale: Annotated[float, Field(gt=0)] = Field(1.0, description="factor of lr for the classifier")
    ema: bool = Field(False, description="keep a moving average of the weights, validated beside them")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = Field(0.9999, description="decay of the average")
    ema_warmup: Annotated[int, Field(ge=0)] = Field(2000, description="steps scale of the decay's warm-up; 0: none")

    swa_epochs: Annotated[int, Field(ge=0)] = Field(
        0, description="average the weights of so many last epochs, validated at the end; 0: none"
    )

    @model_validator(mode="after")
    def _frozen(self) -> Optimizer:
        if self.unfreeze_at and not frozen_blocks(self.freeze):
            raise ValueError(f"unfreeze_at {self.unfreeze_at} without frozen blocks: give freeze, or leave it out")
        return self

    def peak_lr(self, global_batch: int) -> float:
        """The learning rate for steps of `accum_steps` batches of `global_batch` pictures over all processes."""
        return self.lr * (global_batch * self.accum_steps / self.lr_base_batch if self.lr_base_batch else 1.0)


OPTIMIZER_NUMBERS = ("momentum", "opt_alpha", "opt_beta2", "opt_eps")
"""Numbers that are made for one optimizer; None is what is usual for it."""
OPTIMIZER_OWN = (*OPTIMIZER_NUMBERS, "opt_kwargs")
"""Settings that are made for one optimizer."""


class Schedule(Section):
    """Length of the run and its learning rate."""

    epochs: Positive = Field(200, description="passes over the training pictures")
    max_steps: Positive | None = Field(None, description="stop after this many optimizer steps")
    max_time: Annotated[Seconds, Field(gt=0)] | None = Field(
        None, description="validate, save and end after this long, as in 8h, 90m or 1h30m; --resume auto goes on"
    )
    patience: Positive | None = Field(
        None, description="end after so many validations in a row without a better monitor"
    )
    monitor: Literal["top1", "top5", "loss", "f1", "map"] = Field(
        "top1",
        description="figure of validation by which weights are the best; f1 is the mean of the classes; map is mean "
        "average precision, the default where pictures have several classes",
    )
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
    milestones: Annotated[tuple[float, ...], BeforeValidator(split_list)] = Field(
        (), description="epochs after warm-up at which multi_step decays"
    )
    num_cycles: Positive = Field(1, description="cosine: how often it starts again; cyclic: rises and falls")
    cycle_decay: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="cosine: factor of lr per cycle")
    lr_epoch_stair: bool = Field(False, description="change the learning rate between epochs only")


class Training(Section):
    """Loss, precision and speed."""

    @property
    def several(self) -> bool:
        """Whether a picture may have several classes: where each class is learnt by itself."""
        return self.loss == "bce"

    loss: Literal["ce", "bce"] = Field(
        "ce",
        description="cross-entropy, or binary cross-entropy per class: with it a list may have several for a picture",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="share spread over all classes")
    class_weights: str | None = Field(
        None, description="weights of the classes in the loss: balanced, or a file (lines of class,weight, or JSON)"
    )
    teacher: str | None = Field(
        None, description="learn its answers too: a network of timm's, or weights of this one (file, run directory)"
    )
    teacher_ckpt: str | None = Field(None, description="weights of a teacher of timm's; default those that timm has")
    distill_alpha: Fraction = Field(0.5, description="share of the teacher in the loss")
    distill_t: Annotated[float, Field(gt=0)] = Field(4.0, description="temperature of the teacher's answers")
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(
        "auto", description="mixed precision; auto: bf16 where the device is faster with it; O0 is off, O1 to O3 fp16"
    )
    val_amp: Literal["auto", "off", "bf16", "fp16"] | None = Field(
        None, description="precision of validation; default amp, for `validate` off where amp is not given"
    )
    loss_scale: Annotated[float, Field(gt=0)] | Literal["dynamic"] = Field("dynamic", description="fp16: or a constant")
    cache_features: bool = Field(
        False,
        description="with freeze backbone and no augmentation: compute each picture's features once, keep them on disk "
        "and train the classifier on them",
    )
    compile: bool = Field(False, description="torch.compile")
    channels_last: bool | None = Field(None, description="memory format; default: what the device likes")
    sync_bn: bool = Field(False, description="batch statistics over all processes")
    tf32: bool = Field(True, description="TF32 (CUDA) or HF32 (Ascend) in float32 convolutions and products")
    deterministic: bool = Field(False, description="bit-reproducible kernels, slower")
    fused_optimizer: bool = Field(False, description="Ascend: its fused optimizer, where that is right")

    @model_validator(mode="after")
    def _taught(self) -> Training:
        fields = type(self).model_fields
        given = [n for n in ("teacher_ckpt", "distill_alpha", "distill_t") if getattr(self, n) != fields[n].default]
        if given and not self.teacher:
            raise ValueError(f"{' and '.join(given)} without a teacher: give teacher, or leave it out")
        return self
