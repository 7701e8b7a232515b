"""Rules about settings whose name several projects share, and which their values tell apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from inception_v4.settings.addresses import redacted
from inception_v4.settings.dialects.rules import (
    NO_EFFECT,
    NOTHING,
    Combination,
    DialectError,
    Outcome,
    Refused,
    Rule,
    Together,
    Valued,
    View,
    Word,
    numbers,
    plain,
    shown,
)

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CIFAR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
"""Both on the 0-1 scale. MindCV and the ModelZoo use the same CIFAR numbers for CIFAR-10 and CIFAR-100."""

O3 = Word("fp16", "autocast with float32 weights and BatchNorm; O3's pure float16 is not offered")
AMP = {"o0": "off", "o1": "fp16", "o2": "fp16", "o3": O3, "auto": "fp16"}
DEVICES = {"ascend": "npu", "gpu": "cuda", "davinci": "npu"}
DATASETS: dict[str, Any] = {
    **{name: name for name in ("imagenet", "folder", "list", "wds", "cifar10", "cifar100", "shapes")},
    "imagefolder": "folder", "torch/cifar10": "cifar10", "torch/cifar100": "cifar100",
    "mnist": Refused("28-pixel grey digits are not offered; cifar10 and shapes are as small"),
}  # fmt: skip
SCHEDULERS = {
    "cosine_decay": "cosine", "warmup_cosine_decay": "cosine", "exponential_decay": "exponential",
    "step_decay": "step", "multi_step_decay": "multi_step", "polynomial_decay": "polynomial", "multistep": "multi_step",
}  # fmt: skip
NO_PATHS = "Inception-v4 has no residual paths to drop"
SENT_AHEAD = "batches always go to the device ahead of time"
"""Reasons that several projects share."""

CLIP_VALUE = 15.0
"""MindCV's default for `clip_value`."""


def momentum_unused(view: View, kinds: Sequence[str]) -> dict[str, str]:
    """`momentum` and the reason why a project's code does not look at it, where opt is none of `kinds`."""
    opt = str(view.get("opt")).lower()
    return {} if any(kind in opt for kind in kinds) else {"momentum": f"opt {opt} has betas, if anything"}


class PixelScale:
    """mean and std: numbers above 1 are on the 0-255 scale."""

    def apply(self, name: str, value: Any) -> Outcome:
        if plain(value) is None:
            return NOTHING
        given = numbers(name, value)
        if max(given) <= 1:
            return {name: value}, []
        scaled = [round(v / 255, 10) for v in given]
        return {name: scaled}, [f"{name}={shown(value)} is on the 0-255 scale: {shown(scaled)} on this project's 0-1"]

    def describe(self, name: str) -> str:
        return "same; numbers above 1 are divided by 255"


class StateOrWeights:
    """resume: a MindSpore or hub weights file is not a training state of this project."""

    def apply(self, name: str, value: Any) -> Outcome:
        if str(value).lower().endswith((".ckpt", ".safetensors", ".pth", ".bin", ".tar")):
            return {"ckpt_path": value}, [f"{name}={value} is a weights file: start from it (as with ckpt_path)"]
        return {name: value}, []

    def describe(self, name: str) -> str:
        return "same for a checkpoint of this project; a weights file is `ckpt_path`"


SHARED: dict[str, Rule] = {
    "amp": Valued("amp", AMP | {"auto": "auto", "true": "fp16", "false": "off", "float16": "fp16", "bfloat16": "bf16"}),
    "val_amp": Valued("val_amp", AMP | {"auto": "auto", "true": "fp16", "false": "off"}),
    "clip_grad": Together("same; the words true and false switch MindCV's `clip_value` (15)"),
    "dataset": Valued("dataset", DATASETS),
    "loss": Valued("loss", {"ce": "ce", "bce": "bce"}),
    "mean": PixelScale(),
    "std": PixelScale(),
    "resume": StateOrWeights(),
    "scheduler": Valued("scheduler", SCHEDULERS),
    "weight_decay_filter": Valued(
        "weight_decay_filter",
        {
            "disable": "all",
            "norm_and_bias": "no_norm_bias",
            "auto": Word(
                "no_norm_bias", "the classifier's bias does not decay here; MindSpore leaves out BatchNorm only"
            ),
        },
    ),
}
"""Our names, in every recipe and on the command line."""


def option_name(option: str) -> str:
    """Of an option of an augmentation policy: `m` of `m9`, `mstd` of `mstd0.5`."""
    return option.rstrip("0123456789.")


def with_defaults(options: Sequence[str], *defaults: str) -> list[str]:
    """A policy's options, and those of `defaults` whose name is not among them."""
    given = {option_name(option) for option in options}
    return [*options, *(default for default in defaults if option_name(default) not in given)]


def on_modelarts(view: View, settings: Mapping[str, Any]) -> Outcome:
    """What a job's keys of the cloud ask for, without what the command line says itself; and a line about it."""
    settings = {name: value for name, value in settings.items() if name not in view.layers[-1]}
    said = ", ".join(f"{name} {redacted(str(value))}" for name, value in settings.items())
    return settings, [f"enable_modelarts: {said}"] if said else []


def clipping(view: View) -> Outcome:
    """clip_grad as MindCV's switch for clip_value, or as the norm itself."""
    asked = view.get("clip_grad")
    if asked == 1 and view.dialect == "MindCV" and view.level("clip_grad") == 1:
        asked = True  # a switch in its recipes
    if asked is True:
        limit = view.get("clip_value")
        if limit is not None:
            return {"clip_grad": limit}, []
        return {"clip_grad": CLIP_VALUE}, [f"clip_grad=True: gradients are clipped to norm {CLIP_VALUE:g}, MindCV's"]
    if asked in (None, False, 0):
        unused = f"clip_value={shown(view.get('clip_value'))}{NO_EFFECT}clip_grad is not on"
        return {"clip_grad": None}, [unused] if view.level("clip_value") > 0 else []
    return {"clip_grad": asked}, []


def device(view: View) -> Outcome:
    """The device words of MindSpore, with the number of the device where it is not the first."""
    kind, number = view.get("device_target", "platform"), view.get("device_id")
    top = view.layers[view.level("device_target", "platform")] if view.level("device_target", "platform") >= 0 else {}
    if len({str(top[name]).lower() for name in ("device_target", "platform") if name in top}) == 2:
        raise DialectError(f"device_target={top['device_target']} and platform={top['platform']} differ: give one")
    if kind is None or view.level("device") >= view.level("device_target", "platform", "device_id"):
        return NOTHING
    name = DEVICES.get(str(kind).lower(), str(kind).lower())
    return {"device": f"{name}:{number}" if number and "RANK" not in os.environ else name}, []


COMBINATIONS = (
    Combination(("clip_grad", "clip_value"), clipping),
    Combination(("device_target", "platform", "device_id"), device),
)
