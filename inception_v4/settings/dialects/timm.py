"""timm: the arguments of its train.py, where they mean the same for this network."""

from __future__ import annotations

from typing import Any

from inception_v4.settings.dialects.rules import (
    NOTHING,
    Dialect,
    DialectError,
    Outcome,
    Renamed,
    Rule,
    Same,
    Together,
    Valued,
    Word,
    all_rules,
    numbers,
    plain,
    shown,
)
from inception_v4.settings.dialects.shared import DATASETS, NO_PATHS, SHARED, with_defaults
from inception_v4.settings.dialects.timm_combined import COMBINATIONS, dropped, implied

BY_EPOCH = "timm changes it once per epoch (here: lr_epoch_stair) and starts its cosine at epoch 0, during the warm-up"


class InputSize:
    """input_size: channels, height and width."""

    def apply(self, name: str, value: Any) -> Outcome:
        if plain(value) is None:
            return NOTHING
        sizes = [int(v) for v in numbers(name, value)]
        if len(sizes) != 3 or sizes[1] != sizes[2]:
            raise DialectError(f"{name}={shown(value)}: give channels and a square, as in 3,299,299, or image_size 299")
        return {"in_channels": sizes[0], "image_size": sizes[1]}, []

    def describe(self, name: str) -> str:
        return "`image_size`, as in `--input-size 3,299,299`"


class WhenGiven:
    """Another name, where timm's default None leaves the setting alone."""

    def __init__(self, to: str, note: str = "") -> None:
        self.to, self.note = to, note

    def apply(self, name: str, value: Any) -> Outcome:
        if plain(value) is None:
            return NOTHING
        return {self.to: value}, [f"{name}={shown(value)}: {self.note}"] if self.note else []

    def describe(self, name: str) -> str:
        return ("same" if self.to == name else f"`{self.to}`") + (f"; {self.note}" if self.note else "")


class RandomOperations:
    """aa: the same grammar, with what timm takes where nothing is given."""

    def apply(self, name: str, value: Any) -> Outcome:
        kind, *options = str(value).strip().lower().split("-")
        if kind != "rand":
            return {"auto_augment": value}, []
        weaker = f"{name}={shown(value)}: without inc1 timm weakens some operations with m, which here strengthens all"
        notices = [] if "inc1" in options else [weaker]
        return {"auto_augment": "-".join([kind, *with_defaults(options, "m10", "p0.5")])}, notices

    def describe(self, name: str) -> str:
        return "`auto_augment`, in the same grammar; for `rand` m is 10 and p 0.5 where they are not given, as in timm"


RULES: dict[str, Rule] = {
    # data
    "data": WhenGiven("data_dir"),
    "data_dir": WhenGiven("data_dir"),
    "dataset": Valued("dataset", DATASETS | {"none": "folder"}),
    "train_split": Same(),
    "val_split": Same(),
    "train_num_samples": WhenGiven("num_samples", "here a fixed, class-balanced subset"),
    "val_num_samples": WhenGiven("val_samples", "here a fixed, class-balanced subset"),
    "dataset_download": Same(),
    "num_classes": Same(),
    "batch_size": Same(),
    "validation_batch_size": Renamed("val_batch_size"),
    "workers": Same(),
    # network
    "model": Valued("model", {"inception_v4.tf_in1k": "inception_v4", "inception_v4_joined": "inception_v4",
                              "timm/inception_v4.tf_in1k": "inception_v4"}),
    "pretrained": Same(),
    "pretrained_path": WhenGiven("ckpt_path"),
    "initial_checkpoint": WhenGiven("ckpt_path"),
    "checkpoint": WhenGiven("ckpt_path"),
    "resume": SHARED["resume"],
    "img_size": WhenGiven("image_size"),
    "in_chans": WhenGiven("in_channels"),
    "input_size": InputSize(),
    "crop_pct": WhenGiven("crop_pct"),
    "mean": WhenGiven("mean"),
    "std": WhenGiven("std"),
    "interpolation": WhenGiven("interpolation"),
    "channels_last": Same(),
    "grad_accum_steps": Renamed("accum_steps"),
    "grad_checkpointing": Same(),
    "torchcompile": Valued("compile", {"inductor": True, "none": False}),
    "drop": Renamed("drop_rate"),
    "bn_momentum": WhenGiven("bn_momentum"),
    "bn_eps": WhenGiven("bn_eps"),
    "sync_bn": Same(),
    # device
    "device": Same(),
    "amp": SHARED["amp"],
    "amp_dtype": Together("`amp` bf16 or fp16, with timm's --amp"),
    "native_amp": Valued("amp", {"true": "fp16", "false": "off"}),
    # optimizer
    "opt": Valued("opt", {
        "sgd": Word("nesterov", "timm's sgd is Nesterov's (opt=nesterov)"), "sgdp": "sgdp", "momentum": "momentum",
    }),
    "opt_eps": WhenGiven("opt_eps"),
    "momentum": Same(),
    "weight_decay": Same(),
    "clip_grad": SHARED["clip_grad"],
    "layer_decay": Same(),
    # learning rate
    "sched": Valued("scheduler", {
        "cosine": Word("cosine", BY_EPOCH), "step": "step", "multistep": "multi_step", "none": "constant",
    }),
    "sched_on_updates": Together("false in an args.yaml: `lr_epoch_stair`"),
    "lr": WhenGiven("lr"),
    "lr_base": Together("`lr` with `lr_base_batch` = lr_base_size, where lr is not given"),
    "lr_base_size": Together("`lr_base_batch`, with lr_base"),
    "lr_base_scale": Together("linear only"),
    "lr_cycle_decay": Renamed("cycle_decay"),
    "lr_cycle_limit": Renamed("num_cycles"),
    "warmup_lr": Same(),
    "min_lr": Same(),
    "epochs": Same(),
    "start_epoch": Valued("start_epoch", {"none": 0}),
    "decay_milestones": Renamed("milestones"),
    "decay_epochs": Same(),
    "warmup_epochs": Same(),
    "decay_rate": Same(),
    # augmentation
    "no_aug": Together("`train_crop` centre, no flips, no colours, no erasing"),
    "scale": Same(),
    "ratio": Same(),
    "hflip": Same(),
    "vflip": Same(),
    "color_jitter": Valued("color_jitter", {"none": 0.0}),
    "aa": RandomOperations(),
    "aug_repeats": Same(),
    "aug_splits": Together("same, with timm's --jsd-loss"),
    "jsd_loss": Together("`aug_splits`"),
    "resplit": Together("always so with `aug_splits`: the clean part of a batch is not erased"),
    "bce_loss": Valued("loss", {"true": "bce", "false": "ce"}),
    "reprob": Renamed("re_prob"),
    "remode": Valued("re_value", {
        "const": 0.0, "pixel": "random",
        "rand": Word("random", "here every pixel has its own random colour, as with pixel"),
    }),
    "mixup": Same(),
    "cutmix": Same(),
    "mixup_prob": Renamed("cutmix_prob"),
    "smoothing": Renamed("label_smoothing"),
    "train_interpolation": Together("`interpolation`, which training and validation share"),
    # average, logs, checkpoints
    "model_ema": Renamed("ema", "the decay rises to ema_decay over 2000 steps; --ema-warmup 0 for timm's constant one "
                         "(timm's default is 0.9998)", quiet=(False,)),
    "model_ema_decay": Renamed("ema_decay"),
    "model_ema_warmup": Valued("ema_warmup", {"true": Word(2000, "1 - exp(-t / 2000), MindCV's"), "false": 0}),
    "eval_metric": Renamed("monitor"),
    "opt_kwargs": Same(),
    "seed": Same(),
    "log_interval": Same(),
    "val_interval": Same(),
    "recovery_interval": Valued("ckpt_steps", {"0": None}),
    "checkpoint_hist": Renamed("keep_checkpoint_max"),
    "output": Together("`output_dir` = output/experiment"),
    "experiment": Together("`output_dir` = output/experiment"),
    "log_wandb": Valued("logger", {"true": "wandb", "false": None}),
    # distillation
    "kd_model_name": Renamed("teacher"),
    "kd_temperature": Renamed("distill_t"),
    "task_loss_weight": Together("`distill_alpha` = 1 - task_loss_weight"),
    "distill_loss_weight": Together("`distill_alpha`; the two add up to 1"),
}  # fmt: skip
"""What maps of the arguments of timm 1.0's train.py; those of its NaFlex loader do not apply."""

REFUSED = {
    **dict.fromkeys((
        "drop_block", "split_bn", "lr_noise", "lr_k_decay", "color_jitter_prob", "grayscale_prob",
        "gaussian_blur_prob", "bce_target_thresh", "bce_pos_weight", "cutmix_minmax", "mixup_off_epoch",
        "tta",
    ), "there is no such option here"),
    **dict.fromkeys(("input_key", "target_key"), "hub data sets are not read; give a folder"),
    **dict.fromkeys(("drop_connect", "drop_path"), NO_PATHS),
    "class_map": "classes are the sorted folder names",
    "dataset_trust_remote_code": "no code of a data set is run",
    "no_resume_opt": "--resume continues everything; --ckpt-path starts from weights alone",
    "gp": "the pool is the average",
    "fuser": "TorchScript fusers are not offered; use compile",
    "model_kwargs": "give drop_rate, bn_eps, ... themselves",
    "head_init_scale": "the head is scaled by init",
    "head_init_bias": "the head starts with bias 0",
    "torchcompile_mode": "compile uses the default mode; leave it out",
    "torchscript": "there is no such option here; use compile, or export",
    "amp_impl": "PyTorch's own mixed precision is used",
    "apex_amp": "Apex is not used; give --amp",
    "model_dtype": "weights are float32; give --amp",
    "device_modules": "devices are found by themselves",
    "opt_betas": "momentum is the first beta, opt_beta2 the second",
    "clip_mode": "gradients are clipped by their norm",
    "lr_cycle_mul": "cycles have one length",
    "epoch_repeats": "give epochs",
    "cooldown_epochs": "add them to epochs and give decay_epochs",
    "train_crop_mode": "random_resized is train_crop's default",
    "bce_sum": "the loss is a mean",
    "recount": "one box per picture",
    "mixup_switch_prob": "half and half",
    "mixup_mode": "one draw per batch",
    "layer_decay_min_scale": "the rate falls with every layer",
    "layer_decay_no_opt_scale": "give freeze",
    **dict.fromkeys(("kd_distill_type", "kd_loss_type", "kd_token_distill_type"),
                    "the divergence of the answers (logits) is learnt"),
    **dict.fromkeys(("kd_student_feature_dim", "kd_teacher_feature_dim"), "features are not distilled, answers are"),
    "naflex_loader": "for vision transformers",
}  # fmt: skip

IGNORED = {
    **dict.fromkeys(("pin_mem", "no_prefetcher", "use_multi_epochs_loader"),
                    "pinned memory, persistent workers and prefetching are always on where they help"),
    "wandb_project": "the variable WANDB_PROJECT names it",
    "wandb_tags": "the variable WANDB_TAGS gives them",
    "wandb_resume_id": "a resumed run goes on as the same run there by itself",
    **dict.fromkeys(("lr_noise_pct", "lr_noise_std"), "goes with lr_noise"),
    "input_img_mode": "pictures are read as RGB, or as grey for 1 channel",
    "fast_norm": "for layer norms, which this network has not",
    "dist_bn": "statistics are always averaged over the processes before validation",
    "no_ddp_bb": "buffers are never broadcast at each step",
    "synchronize_step": "steps are never synchronised",
    "local_rank": "torchrun tells each process its rank",
    "warmup_prefix": "the decay always counts from the end of the warm-up",
    "patience_epochs": "for the plateau schedule, which is not offered",
    "model_ema_force_cpu": "the average lives on the device",
    "worker_seeding": "every sample has its own seed",
    "save_images": "not offered",
}  # fmt: skip

QUIET: dict[str, tuple[Any, ...]] = {
    "gp": (None, "avg"), "amp_impl": (None, "native"), "model_dtype": (None, "float32"), "clip_mode": (None, "norm"),
    "train_crop_mode": (None, "rrc"), "mixup_mode": ("batch",), "recount": (1,),
    "mixup_switch_prob": (0.5,), "lr_cycle_mul": (1,), "lr_k_decay": (1,), "lr_noise_pct": (0.67,),
    "lr_noise_std": (1,), "dist_bn": ("reduce",), "warmup_prefix": (True,), "patience_epochs": (10,),
    "worker_seeding": ("all",), "head_init_scale": (None,),
    "kd_distill_type": ("logit",), "kd_loss_type": ("kl",), "kd_token_distill_type": ("soft",),
    "color_jitter_prob": (None,), "bce_target_thresh": (None,), "bce_pos_weight": (None,),
}  # fmt: skip
"""timm's own defaults, where 0 and false ask for something."""

SIGNS = frozenset({
    "sched", "model_ema", "model_ema_decay", "aa", "reprob", "remode", "smoothing", "drop", "drop_path",
    "checkpoint_hist", "sched_on_updates", "initial_checkpoint", "lr_base", "decay_milestones",
})  # fmt: skip

DEFAULTS: dict[str, Any] = {
    "batch_size": 128, "opt": "sgd", "weight_decay": 2e-5, "sched": "cosine", "lr_base": 0.1, "lr_base_size": 256,
    "sched_on_updates": False, "warmup_lr": 1e-5, "min_lr": 0.0, "epochs": 300, "warmup_epochs": 1, "decay_epochs": 90,
    "decay_rate": 0.1, "color_jitter": 0.4, "smoothing": 0.1, "drop": 0.0, "model_ema_decay": 0.9998,
    "model_ema_warmup": False, "checkpoint_hist": 10, "decay_milestones": [90, 180, 270], "remode": "pixel",
}  # fmt: skip


TIMM = Dialect(
    title="timm",
    rules=all_rules(RULES, refused=REFUSED, ignored=IGNORED, quiet=QUIET),
    signs=SIGNS,
    defaults=DEFAULTS,
    dropped=dropped,
    implied=implied,
    combinations=COMBINATIONS,
)
