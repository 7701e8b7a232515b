"""MindCV: the 86 arguments of its config.py, the older names in its recipes, and its defaults."""

from __future__ import annotations

import os
from typing import Any

from inception_v4.settings.dialects.mindcv_combined import COMBINATIONS, MINDCV_MODELARTS
from inception_v4.settings.dialects.rules import (
    NO_EFFECT,
    NOTHING,
    Dialect,
    DialectError,
    Outcome,
    Renamed,
    Rule,
    Same,
    Scaled,
    Together,
    Valued,
    View,
    Word,
    all_rules,
    plain,
    shown,
    switch,
)
from inception_v4.settings.dialects.shared import (
    AMP,
    CIFAR,
    DATASETS,
    IMAGENET,
    NO_PATHS,
    SENT_AHEAD,
    SHARED,
    momentum_unused,
    option_name,
    with_defaults,
)

SUBSET = "here a fixed, class-balanced subset of the whole set; MindCV draws anew, and per device"
NOT_CHECKED = "timm's implementation, which has not been compared with MindSpore's"


class Launched:
    """distribute: the launcher decides how many processes there are."""

    def apply(self, name: str, value: Any) -> Outcome:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        asked = switch(name, value)
        if asked and processes == 1:
            how = "start with `torchrun --nproc-per-node 8 ...` for eight devices; this is one process"
            return {}, [f"{name}={shown(value)}{NO_EFFECT}{how}"]
        if not asked and processes > 1:
            return {}, [f"{name}={shown(value)}{NO_EFFECT}torchrun started {processes} processes"]
        return NOTHING

    def describe(self, name: str) -> str:
        return "no effect: torchrun's process count decides; a warning where they contradict each other"


class Policy:
    """auto_augment: MindCV's grammar and defaults; only RandAugment's strength varies at random here too."""

    def apply(self, name: str, value: Any) -> Outcome:
        if plain(value) is None:
            return {name: None}, []
        kind, *options = str(value).strip().lower().split("-")
        if kind == "3a":
            raise DialectError(f"{name}={value}: only this policy is missing; choose autoaug or trivialaugwide")
        notices = []
        if kind in ("autoaug", "autoaugr"):
            notices.append(f"{name}={value}: MindCV varies the strength at random (std 0.5), here it is fixed")
        if kind == "autoaugr":
            kind, notices = "autoaug", [*notices, f"{name}={value}: posterize is autoaug's, without the r"]
        kept = {"randaug": ("m", "n", "mstd"), "augmix": ("m", "w", "d")}.get(kind, ())
        kept_options = [o for o in options if option_name(o) in kept]
        if kind == "randaug":
            kept_options = with_defaults(kept_options, "m10", "mstd0.5", "p0.5")
        lost = [o for o in options if o not in kept_options and not o.startswith("mstd")]
        if lost:
            notices.append(f"{name}={value}: {', '.join(lost)} has no effect here")
        return {name: "-".join([kind, *kept_options])}, notices

    def describe(self, name: str) -> str:
        return (
            "same grammar; for randaug MindCV's m10, mstd0.5 and p0.5 where they are not given; "
            "elsewhere mstd is not drawn; 3a is refused"
        )


RULES: dict[str, Rule] = {
    # system
    "distribute": Launched(),
    "val_while_train": Together("false: `val_interval` becomes the whole run, so that only its end is validated"),
    "val_interval": Same(
        "in a recipe: after epochs 1, n+1, ... as in MindCV (`val_start` 1), and after the last", quiet=(1,)
    ),
    "log_interval": Same(),
    "seed": Same(),
    "device_target": Together("`device`: Ascend -> npu, GPU -> cuda, CPU -> cpu"),
    # dataset
    "dataset": Valued("dataset", DATASETS | {"none": "folder"}),
    "data_dir": Same(),
    "train_split": Same(),
    "val_split": Same(),
    "dataset_download": Same(),
    "num_parallel_workers": Renamed("workers"),
    "shuffle": Same(),
    "num_samples": Same(SUBSET, quiet=(None,)),
    "batch_size": Same(),
    "drop_remainder": Renamed("drop_last"),
    # augmentation
    "image_resize": Renamed("image_size"),
    "scale": Same(),
    "ratio": Same(),
    "hflip": Same(),
    "vflip": Same(),
    "color_jitter": Valued("color_jitter", {"none": 0.0}),
    "interpolation": Valued("interpolation", {"linear": "bilinear", "cubic": "bicubic", "pilcubic": "bicubic"}),
    "auto_augment": Policy(),
    "re_prob": Same(),
    "re_scale": Same(),
    "re_ratio": Same(),
    "re_value": Same(),
    "re_max_attempts": Same(),
    "mean": Scaled("mean", 1 / 255, "divided by 255"),
    "std": Scaled("std", 1 / 255, "divided by 255"),
    "crop_pct": Same(),
    "mixup": Same(),
    "cutmix": Same(),
    "cutmix_prob": Same(),
    "aug_repeats": Same(),
    "aug_splits": Valued("aug_splits", {"none": 0}),
    # model and checkpoints
    "model": Valued("model", {"inceptionv4": "inception_v4", "inception-v4": "inception_v4"}),
    "num_classes": Same(),
    "in_channels": Same(),
    "drop_rate": Valued("drop_rate", {"none": 0.2}),
    "pretrained": Same(),
    "ckpt_path": Same(),
    "keep_checkpoint_max": Same(),
    "ckpt_save_dir": Renamed("output_dir"),
    "ckpt_save_interval": Renamed("ckpt_interval"),
    "ckpt_save_policy": Together("top_k: the best weights are always kept, beside the newest; none: all are kept"),
    "epoch_size": Renamed("epochs"),
    "ema": Same(),
    "ema_decay": Same(),
    "clip_grad": Together("true: `clip_grad` is the norm `clip_value`; false: none"),
    "clip_value": Together("`clip_grad`, where MindCV's clip_grad is true"),
    "gradient_accumulation_steps": Renamed("accum_steps"),
    # optimizer
    "opt": Valued("opt", {name: Word(name, NOT_CHECKED) for name in ("lion", "adagrad", "lamb", "nadam", "adan")}),
    "momentum": Same(),
    "weight_decay": Same(),
    "use_nesterov": Together("`opt` nesterov, where opt is sgd or momentum"),
    "weight_decay_filter": SHARED["weight_decay_filter"],
    "eps": Together("`opt_eps` for rmsprop; MindCV uses it for no other"),
    "layer_decay": Same("by timm's layers of this network", quiet=(None,)),
    # learning rate
    "scheduler": SHARED["scheduler"],
    "lr": Same(),
    "min_lr": Same(),
    "warmup_epochs": Same(),
    "warmup_factor": Together("`warmup_lr` = lr x warmup_factor"),
    "decay_epochs": Same(),
    "decay_rate": Same(),
    "multi_step_decay_milestones": Renamed("milestones"),
    "lr_epoch_stair": Same(),
    "num_cycles": Same(),
    "cycle_decay": Same(),
    # loss
    "loss": SHARED["loss"],
    "label_smoothing": Same(),
    # mixed precision
    "amp_level": Valued("amp", AMP),
    "val_amp_level": Valued("val_amp", AMP),
    "loss_scale_type": Together("`loss_scale`: fixed -> the number, dynamic and auto -> dynamic"),
    "loss_scale": Same(),
    # the cloud
    "enable_modelarts": Together("true: the keys below count"),
    **{name: Together(f"with enable_modelarts: {how}") for name, how in MINDCV_MODELARTS.items()},
    # in recipes of earlier versions
    "dynamic_loss_scale": Together("true: `loss_scale` dynamic"),
}
"""What maps, in MindCV's order by group."""

REFUSED = {
    "drop_path_rate": f"{NO_PATHS}; leave it out",
    "resume_opt": "MindCV's optimizer state cannot be continued; leave it out to start from the weights of ckpt_path "
    "(runs of this project go on with --resume auto)",
    "reduction": "the loss is the mean over the batch",
    "amp_cast_list": "a Python expression; autocast chooses the types. Leave it out",
}

IGNORED = {
    "mode": "PyTorch runs eagerly; `compile` is the nearest thing to graph mode",
    "dataset_sink_mode": SENT_AHEAD,
    "aux_factor": "Inception-v4 has no auxiliary classifier",
    "drop_overflow_update": "steps with infinite gradients are always left out, and counted",
    "eval_shuffle": "the order of validation changes nothing",
    "filter_bias_and_bn": "it never worked in MindCV: everything decays, as here "
    "(weight_decay_filter no_norm_bias does what it says)",
    "multi_data_url": "no file of MindCV reads it; give data_url or data_dir",
    "ckpt_url": "no file of MindCV reads it; give ckpt_path, which takes addresses",
}

QUIET: dict[str, tuple[Any, ...]] = {
    "mode": (), "reduction": ("mean", None), "drop_overflow_update": (True,),
}  # fmt: skip
"""Values that ask for nothing, where 0 and false do not."""

SIGNS = frozenset({
    "mode", "val_while_train", "num_parallel_workers", "drop_remainder", "image_resize", "resume_opt",
    "ckpt_save_interval", "ckpt_save_policy", "dataset_sink_mode", "gradient_accumulation_steps", "use_nesterov",
    "warmup_factor", "multi_step_decay_milestones", "amp_level", "val_amp_level", "loss_scale_type", "epoch_size",
    "drop_overflow_update", "filter_bias_and_bn", "dynamic_loss_scale",
})  # fmt: skip

DEFAULTS: dict[str, Any] = {
    "batch_size": 128, "image_resize": 224, "ratio": [0.75, 1.333], "color_jitter": 0.4, "re_scale": [0.02, 0.33],
    "interpolation": "bilinear", "epoch_size": 90, "val_while_train": False, "dataset": "imagenet",
    "opt": "adam", "momentum": 0.9, "weight_decay": 1e-6, "use_nesterov": False, "eps": 1e-10, "clip_grad": False,
    "scheduler": "cosine_decay", "lr": 1e-3, "min_lr": 1e-6, "warmup_epochs": 3, "warmup_factor": 0.0,
    "decay_epochs": 100, "decay_rate": 0.9, "multi_step_decay_milestones": [30, 60, 90],
    "label_smoothing": 0.0, "amp_level": "O0", "loss_scale_type": "fixed", "loss_scale": 1.0,
    "keep_checkpoint_max": 10, "drop_rate": None,
}  # fmt: skip

CIFAR_TRANSFORMS = frozenset({
    "scale", "ratio", "hflip", "vflip", "color_jitter", "interpolation", "auto_augment", "re_prob", "re_scale",
    "re_ratio", "re_value", "re_max_attempts", "mean", "std", "crop_pct",
})  # fmt: skip
"""Settings that MindCV reads for ImageNet and folders only."""


def implied(view: View) -> Outcome:
    """What MindCV's code does without being told."""
    # MindSpore's decoder leaves pictures as they are stored.
    settings: dict[str, Any] = {"init": "xavier", "bn_momentum": 0.0003, "exif_rotation": False}
    settings["antialias"] = str(view.get("interpolation")).lower() == "pilcubic"
    notices = []
    if view.level("bn_momentum") < 0:
        notices.append(
            "bn_momentum 0.0003 is MindCV's 0.9997: its statistics need some 10 000 steps; "
            "for a shorter run or a fine-tune give --bn_momentum 0.1"
        )
    if view.get("val_interval") not in (None, 1):
        settings["val_start"] = 1
    if is_cifar(view):
        cifar = {"train_crop": "pad", "crop_pct": 1.0, "hflip": 0.5, "color_jitter": 0.0, "interpolation": "bilinear"}
        return settings | cifar | CIFAR, notices
    if view.switch("pretrained"):
        # This project's pretrained weights are TensorFlow's, which want their own normalisation.
        return settings, [*notices, "pretrained: the published TensorFlow weights, with their mean and std of 0.5"]
    return settings | IMAGENET, notices


def is_cifar(view: View) -> bool:
    return str(view.get("dataset")).lower() in ("cifar10", "cifar100")


def dropped(view: View) -> dict[str, str]:
    """For CIFAR, MindCV's transforms are fixed; optimizers of Adam's kind have betas of their own."""
    fixed = dict.fromkeys(CIFAR_TRANSFORMS, "MindCV's CIFAR transforms are fixed") if is_cifar(view) else {}
    return fixed | momentum_unused(view, ("sgd", "momentum", "nesterov", "rmsprop"))


MINDCV = Dialect(
    title="MindCV",
    rules=all_rules(RULES, refused=REFUSED, ignored=IGNORED, quiet=QUIET),
    signs=SIGNS,
    defaults=DEFAULTS,
    implied=implied,
    dropped=dropped,
    combinations=COMBINATIONS,
)
