"""The MindSpore ModelZoo's InceptionV4: every key of its three default_config files, and what its code does."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from inception_v4.settings.dialects.rules import (
    NO_EFFECT,
    NOTHING,
    Combination,
    Dialect,
    DialectError,
    Outcome,
    Renamed,
    Rule,
    Same,
    Together,
    Valued,
    View,
    all_rules,
    one_number,
    shown,
)
from inception_v4.settings.dialects.shared import AMP, CIFAR, IMAGENET, SENT_AHEAD, on_modelarts

DEAD = "no file of the ModelZoo reads it"
EVAL_KEY = "eval.py and export.py read it, train.py does not; give --ckpt_path"
EXPORT_KEY = "export.py reads it; see `inception-v4 export`"
LAUNCHER = "torchrun's process count decides"
MODELARTS = {
    "data_url": "`data_dir`, copied to data_path",
    "train_url": "`upload_to`, as the results grow",
    "checkpoint_url": "`ckpt_path`, with the part of checkpoint_path, ckpt_file or resume that is below load_path",
    "data_path": "`data_cache`; without data_url `data_dir` is data_path/modelarts_dataset_unzip_name",
    "output_path": "`output_dir`",
    "load_path": "what checkpoint_path and the like are relative to",
    "modelarts_dataset_unzip_name": "`data_zip`, where need_modelarts_dataset_unzip is true and data_url given",
    "need_modelarts_dataset_unzip": "true: NAME.zip of data_url is unpacked",
}
"""Keys of the cloud's job form, and what they are here."""
SIGNS = frozenset({
    "ds_type", "work_nums", "lr_init", "lr_max", "lr_end", "smooth_factor", "ds_sink_mode", "dataset_path",
    "save_checkpoint_epochs", "is_save_on_master", "checkpoint_url", "need_modelarts_dataset_unzip",
})  # fmt: skip


class SmoothFactor:
    """smooth_factor: present in every file, applied by none."""

    def apply(self, name: str, value: Any) -> Outcome:
        return {}, [
            f"{name}={shown(value)}{NO_EFFECT}the ModelZoo's train.py never applied it (its loss is plain "
            f"cross-entropy), so label_smoothing is 0; give --label-smoothing {shown(value)} to have it"
        ]

    def describe(self, name: str) -> str:
        return "no effect, as in the ModelZoo, whose loss is plain cross-entropy; `label_smoothing` applies it"


class FirstEpoch:
    """start_epoch counts from 1 in the ModelZoo and from 0 here."""

    def apply(self, name: str, value: Any) -> Outcome:
        epoch = int(one_number(name, value) or 1) - 1
        if epoch < 0:
            raise DialectError(f"{name}={shown(value)}: the ModelZoo counts epochs from 1")
        notice = (
            f"{name}={shown(value)}: starts as epoch {epoch} here, where they count from 0, up to epoch_size in all"
        )
        return {"start_epoch": epoch}, [notice] if epoch else []

    def describe(self, name: str) -> str:
        return "`start_epoch`, minus 1: epochs count from 0"


RULES: dict[str, Rule] = {
    # paths and the cloud
    "enable_modelarts": Together("true: the keys below count"),
    **{name: Together(f"with enable_modelarts: {how}") for name, how in MODELARTS.items()},
    "dataset_path": Renamed("data_dir"),
    "resume": Renamed("ckpt_path", "the ModelZoo's resume loads weights only, as ckpt_path does here", quiet=(None,)),
    # devices
    "device_target": Together("`device`: Ascend -> npu, GPU -> cuda, CPU -> cpu"),
    "platform": Together("`device`, as device_target; the two must agree"),
    "device_id": Together("the number in `device` npu:1, cuda:1, ..."),
    "enable_profiling": Renamed("profile"),
    # data
    "ds_type": Valued("dataset", {}),
    "num_classes": Same(),
    "batch_size": Same(),
    "work_nums": Renamed("workers"),
    # training
    "epoch_size": Renamed("epochs"),
    "start_epoch": FirstEpoch(),
    "lr_init": Renamed("warmup_lr"),
    "lr_max": Renamed("lr"),
    "lr_end": Renamed("min_lr"),
    "warmup_epochs": Same(),
    "momentum": Same(),
    "decay": Renamed("opt_alpha"),
    "epsilon": Renamed("opt_eps"),
    "weight_decay": Same(),
    "loss_scale": Same(),
    "smooth_factor": SmoothFactor(),
    "amp_level": Valued("amp", AMP),
    "keep_checkpoint_max": Same(),
    "save_checkpoint_epochs": Renamed("ckpt_interval"),
}

IGNORED = {
    "checkpoint_path": EVAL_KEY,
    "ckpt_file": EVAL_KEY,
    "ckpt_path": DEAD,
    "ckpt_save_dir": f"{DEAD}; give --output_dir",
    "result_path": "postprocess.py reads it",
    "label_file": "postprocess.py reads it",
    "file_name": EXPORT_KEY,
    "file_format": EXPORT_KEY,
    "width": EXPORT_KEY,
    "height": EXPORT_KEY,
    "is_distributed": f"{DEAD}; {LAUNCHER}",
    "distribute": f"{DEAD}; {LAUNCHER}",
    "group_size": LAUNCHER,
    "is_save_on_master": "the main process alone writes checkpoints",
    "num_parallel_workers": "eval_onnx.py reads it, train.py reads work_nums",
    "ds_sink_mode": SENT_AHEAD,
}

QUIET: dict[str, tuple[Any, ...]] = {
    "width": (299,),
    "height": (299,),
    "group_size": (1,),
    "is_save_on_master": (True,),
}

FLAG_RULES: dict[str, Rule] = {
    "data_path": Renamed("data_dir"),
    "checkpoint_path": Renamed("ckpt_path"),
    "ckpt_file": Renamed("ckpt_path"),
    "width": Renamed("image_size"),
    "height": Renamed("image_size"),
    "epsilon": Renamed("opt_eps"),
}
"""On a command line the word is meant for the command that reads it."""

DEFAULTS: dict[str, Any] = {
    "batch_size": 128, "epoch_size": 250, "lr_init": 4e-5, "lr_max": 0.4, "lr_end": 4e-6, "warmup_epochs": 1,
    "momentum": 0.9, "decay": 0.9, "epsilon": 1.0, "weight_decay": 4e-5, "loss_scale": 1024, "ds_type": "imagenet",
    "keep_checkpoint_max": 10, "save_checkpoint_epochs": 10,
}  # fmt: skip


def implied(view: View) -> Outcome:
    """What the ModelZoo's code does without being told."""
    settings: dict[str, Any] = {
        "opt": "rmsproptf", "scheduler": "cosine_modelzoo", "label_smoothing": 0.0, "init": "xavier", "seed": 1,
        "bn_momentum": 0.003, "bn_eps": 1e-5, "interpolation": "bilinear", "antialias": False, "crop_pct": 1.0,
        "ratio": [0.75, 1.333], "exif_rotation": False,
    }  # fmt: skip
    notices = [
        "the network is the paper's: the ModelZoo's drops 80 % before the classifier (drop_rate 0.2 here) and has a "
        "BatchNorm on either side of it"
    ]
    if str(view.get("dataset", "ds_type")).lower() == "cifar10":
        return settings | {"train_crop": "pad"} | CIFAR, notices
    notices.append("val_split is validation_preprocess, a name fixed in the ModelZoo's eval.py; or give --val_split")
    return settings | {"color_jitter": 0.4, "val_split": "validation_preprocess"} | IMAGENET, notices


def modelarts(view: View) -> Outcome:
    """The keys of the cloud's job form; those of a recipe of MindCV mean what they do there."""
    if view.dialect == "MindCV":
        return NOTHING
    given = [name for name in MODELARTS if view.get(name)]
    if not view.switch("enable_modelarts"):
        # On a command line, data_path is the folder itself and no key of the cloud.
        given = [name for name in given if view.level(name) < 2]
        return {}, [f"{', '.join(given)}{NO_EFFECT}enable_modelarts is False"] if given else []
    folder, name = view.get("data_path") or "/cache/data", view.get("modelarts_dataset_unzip_name") or ""
    settings: dict[str, Any] = {"data_dir": f"{folder}/{name}".rstrip("/")}
    if url := view.get("data_url"):
        settings = {"data_dir": url, "data_cache": folder}
        settings |= {"data_zip": name} if name and view.switch("need_modelarts_dataset_unzip") else {}
    settings["output_dir"] = view.get("output_path") or "/cache/train"
    if url := view.get("train_url"):
        settings["upload_to"] = url
    if url := view.get("checkpoint_url"):
        given_file = view.layers[-1].get("checkpoint_path") or view.layers[-1].get("ckpt_file")
        file = given_file or next((layer["resume"] for layer in view.layers[:-1] if layer.get("resume")), "")
        settings["ckpt_path"] = behind(url, file, view.get("load_path"))
    return on_modelarts(view, settings)


def behind(checkpoint_url: str, file: str, load_path: str | None) -> str:
    """The address of `file`, which the job's code would find in `load_path`, a copy of `checkpoint_url`."""
    path = PurePosixPath(file)
    folder = PurePosixPath(load_path or "/cache/checkpoint_path")
    if path.is_relative_to(folder):
        path = path.relative_to(folder)
    inside = path.name if path.is_absolute() else str(path)
    return f"{checkpoint_url.rstrip('/')}/{inside}" if file else checkpoint_url


MODELZOO = Dialect(
    title="the ModelZoo",
    rules=all_rules(RULES, refused={}, ignored=IGNORED, quiet=QUIET),
    flags=FLAG_RULES,
    signs=SIGNS,
    defaults=DEFAULTS,
    implied=implied,
    combinations=(
        Combination(
            ("enable_modelarts", *MODELARTS),
            modelarts,
            also=("checkpoint_path", "ckpt_file", "dataset_path"),
        ),
    ),
)
