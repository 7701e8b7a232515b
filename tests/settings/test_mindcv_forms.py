"""The forms in which people write MindCV's values in YAML: each means what it says, or is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inception_v4.settings.dialects import DIALECTS, DialectError
from inception_v4.settings.dialects.exporting import translate_export
from inception_v4.settings.recipes import ConfigError, load_config

RECIPE = {"image_resize": "224", "data_dir": "/d", "val_while_train": "True", "opt": "momentum", "mode": "0"}
TRUE = ["True", "true", "TRUE", "yes", "on", "'True'", "'yes'", "'on'", "1", "'1'"]
FALSE = ["False", "false", "FALSE", "no", "off", "'False'", "'no'", "'off'", "0", "'0'"]
NONE = ["~", "null", "None", "'None'", "''", "", "'~'", "none", "Null", "'null'"]

SWITCHES: dict[str, tuple[str, Any, Any]] = {
    "shuffle": ("shuffle", True, False), "drop_remainder": ("drop_last", True, False), "ema": ("ema", True, False),
    "lr_epoch_stair": ("lr_epoch_stair", True, False), "clip_grad": ("clip_grad", 15.0, None),
    "use_nesterov": ("opt", "nesterov", "momentum"), "dynamic_loss_scale": ("loss_scale", "dynamic", 1.0),
    "val_while_train": ("val_interval", 1, 90), "pretrained": ("mean", (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)),
    "dataset_download": ("dataset_download", True, False),
}  # fmt: skip
"""MindCV's name: this project's setting, its value where the switch is on, and where it is off."""

QUIET_SWITCHES = {
    "distribute": False, "dataset_sink_mode": False, "drop_overflow_update": True, "eval_shuffle": False,
    "filter_bias_and_bn": False,
}  # fmt: skip
"""Switches that decide nothing here, and the position that asks for nothing."""

WHOLE = {
    "val_interval": "val_interval", "log_interval": "log_interval", "seed": "seed", "num_parallel_workers": "workers",
    "num_samples": "num_samples", "batch_size": "batch_size", "re_max_attempts": "re_max_attempts",
    "aug_repeats": "aug_repeats", "aug_splits": "aug_splits", "num_classes": "num_classes",
    "keep_checkpoint_max": "keep_checkpoint_max",
    "ckpt_save_interval": "ckpt_interval", "epoch_size": "epochs", "gradient_accumulation_steps": "accum_steps",
    "warmup_epochs": "warmup_epochs", "decay_epochs": "decay_epochs", "num_cycles": "num_cycles",
    "image_resize": "image_size", "in_channels": "in_channels",
}  # fmt: skip
REAL = {
    "hflip": ("hflip", "2.5e-1"), "vflip": ("vflip", "2.5e-1"), "color_jitter": ("color_jitter", "4e-1"),
    "re_prob": ("re_prob", "1e-1"), "re_value": ("re_value", "5e-1"), "crop_pct": ("crop_pct", "9e-1"),
    "mixup": ("mixup", "2e-1"), "cutmix": ("cutmix", "1e0"), "cutmix_prob": ("cutmix_prob", "5e-1"),
    "drop_rate": ("drop_rate", "4e-1"), "ema_decay": ("ema_decay", "99e-2"), "clip_value": ("clip_grad", "5e0"),
    "momentum": ("momentum", "8e-1"), "weight_decay": ("weight_decay", "5e-5"), "eps": ("opt_eps", "1e-3"),
    "lr": ("lr", "5e-4"), "min_lr": ("min_lr", "1e-5"), "warmup_factor": ("warmup_lr", "1e-2"),
    "decay_rate": ("decay_rate", "7e-1"), "cycle_decay": ("cycle_decay", "5e-1"),
    "label_smoothing": ("label_smoothing", "1e-1"), "layer_decay": ("layer_decay", "7e-1"),
    "loss_scale": ("loss_scale", "1024e0"),
}  # fmt: skip
LISTS: dict[str, tuple[str, list[str], tuple[float, ...]]] = {
    "scale": ("scale", ["35e-2", "1.0"], (0.35, 1.0)), "ratio": ("ratio", ["0.75", "1.333"], (0.75, 1.333)),
    "re_scale": ("re_scale", ["2e-2", "0.33"], (0.02, 0.33)), "re_ratio": ("re_ratio", ["3e-1", "3.3"], (0.3, 3.3)),
    "mean": ("mean", ["123.675", "116.28", "103.53"], (0.485, 0.456, 0.406)),
    "std": ("std", ["58.395", "57.12", "57.375"], (0.229, 0.224, 0.225)),
    "multi_step_decay_milestones": ("milestones", ["30", "6e1", "90"], (30, 60, 90)),
}  # fmt: skip
WORDS = {
    "dataset": ("dataset", {"imagenet": "imagenet", "ImageNet": "imagenet", "cifar10": "cifar10", "''": "folder"}),
    "interpolation": ("interpolation", {"bilinear": "bilinear", "'bicubic'": "bicubic"}),
    "opt": ("opt", {"adamw": "adamw", "'momentum'": "momentum", "AdamW": "AdamW"}),
    "scheduler": ("scheduler", {"cosine_decay": "cosine", '"warmup_cosine_decay"': "cosine", "constant": "constant"}),
    "loss": ("loss", {"CE": "ce", "'BCE'": "bce", "ce": "ce"}),
    "amp_level": ("amp", {"O0": "off", "'O2'": "fp16", "o1": "fp16"}),
    "val_amp_level": ("val_amp", {"O0": "off", "'O2'": "fp16"}),
    "loss_scale_type": ("loss_scale", {"fixed": 1.0, "'dynamic'": "dynamic", "auto": "dynamic"}),
    "weight_decay_filter": ("weight_decay_filter", {"disable": "all", "'norm_and_bias'": "no_norm_bias"}),
    "ckpt_save_policy": ("keep_checkpoint_max", {"top_k": 10, "'latest_k'": 10} | dict.fromkeys(NONE, 1_000_000)),
    "device_target": ("device", {"Ascend": "npu", "'GPU'": "cuda", "CPU": "cpu"}),
    "auto_augment": ("auto_augment", dict.fromkeys(("'randaug-m7-mstd0.5'", "RandAug-m7"), "randaug-m7-mstd0.5-p0.5")
                     | dict.fromkeys(NONE)),
    "re_value": ("re_value", {"random": "random", "'random'": "random"}),
    "drop_rate": ("drop_rate", dict.fromkeys(NONE, 0.2)),
    "num_samples": ("num_samples", dict.fromkeys(NONE)), "num_classes": ("num_classes", dict.fromkeys(NONE)),
    "ckpt_path": ("ckpt_path", {"a.ckpt": "a.ckpt"} | dict.fromkeys(NONE)),
}  # fmt: skip
NEEDED: dict[str, dict[str, str]] = {
    "dataset_download": {"dataset": "cifar10"}, "eps": {"opt": "rmsprop"}, "clip_value": {"clip_grad": "yes"},
    "warmup_factor": {"lr": "1.0"}, "multi_step_decay_milestones": {"scheduler": "multi_step_decay"},
}  # fmt: skip
"""Companions without which a setting decides nothing."""

WRONG = ["abc", "[a, b]", "[1, 2]", "{a: 1}", "2020-01-01", "'(0.1, x)'", "[0.485 * 255, 0.5]", "[~, 1]", "[]", "'[]'"]
"""Neither a switch nor a number nor a word of MindCV's; some would be Python."""


def read(folder: Path, **settings: str) -> tuple[dict[str, Any], list[str]]:
    """A recipe of MindCV with these settings, as it is read; values as they stand in the file."""
    file = folder / "recipe.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in (RECIPE | settings).items()))
    config, notices = load_config(file)
    assert any(notice.startswith("read as a recipe of MindCV") for notice in notices)
    return config.flat(), notices


@pytest.mark.parametrize("name", SWITCHES)
def test_switches(name: str, tmp_path: Path) -> None:
    setting, on, off = SWITCHES[name]
    for forms, expected in ((TRUE, on), (FALSE, off)):
        found = {form: read(tmp_path, **NEEDED.get(name, {}), **{name: form})[0][setting] for form in forms}
        assert found == dict.fromkeys(forms, expected)


@pytest.mark.parametrize("name", QUIET_SWITCHES)
def test_switches_that_decide_nothing(name: str, tmp_path: Path) -> None:
    for forms, asks in ((TRUE, not QUIET_SWITCHES[name]), (FALSE, QUIET_SWITCHES[name])):
        for form in forms:
            assert any(f"{name}=" in notice for notice in read(tmp_path, **{name: form})[1]) == asks, form


@pytest.mark.parametrize("name", ["resume_opt"])
def test_switches_that_are_refused(name: str, tmp_path: Path) -> None:
    for form in FALSE + NONE:
        read(tmp_path, **{name: form})
    for form in TRUE:
        with pytest.raises(ConfigError, match=f"^{name}="):
            read(tmp_path, **{name: form})


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name: str, tmp_path: Path) -> None:
    value = {"image_resize": 320, "in_channels": 3}.get(name, 5)
    forms = [f"{value}", f"'{value}'", f'"{value}"', f"{value}.0", f"'{value}.0'", f"{value}.", f"+{value}"]
    assert {form: read(tmp_path, **{name: form})[0][WHOLE[name]] for form in forms} == dict.fromkeys(forms, value)


@pytest.mark.parametrize("name", REAL)
def test_numbers(name: str, tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-4 as text: a number needs a point and a sign."""
    setting, text = REAL[name]
    digits, exponent = text.split("e")
    value, signed = float(text), f"{int(exponent):+03d}"
    forms = [text, text.upper(), f"'{text}'", f"{digits}e{signed}", f"{float(digits)}e{signed}", f"{value:.9f}"]
    forms += [f"{value!r}", f"'{value!r}'", f'"{digits}E{signed}"']
    found = {form: read(tmp_path, **NEEDED.get(name, {}), **{name: form})[0][setting] for form in forms}
    assert found == {form: pytest.approx(value, rel=1e-12) for form in forms}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_numbers(name: str, tmp_path: Path) -> None:
    setting, parts, expected = LISTS[name]
    row = ", ".join(parts)
    forms = [f"[{row}]", f"[ {row} ]", f"[{row},]", f"({row})", f"'({row})'", f"'[{row}]'", row, f"'{row}'"]
    forms += ["[" + ", ".join(f"'{part}'" for part in parts) + "]", "".join(f"\n  - {part}" for part in parts)]
    found = {form: read(tmp_path, **NEEDED.get(name, {}), **{name: form})[0][setting] for form in forms}
    assert found == dict.fromkeys(forms, pytest.approx(expected, rel=1e-9))


@pytest.mark.parametrize("name", WORDS)
def test_words_and_none(name: str, tmp_path: Path) -> None:
    setting, words = WORDS[name]
    assert {word: read(tmp_path, **{name: word})[0][setting] for word in words} == words


@pytest.mark.parametrize("name", ["drop_path_rate", "amp_cast_list", "aug_splits", "reduction"])
def test_none_of_what_is_refused_is_no_news(name: str, tmp_path: Path) -> None:
    usual = read(tmp_path)
    for form in NONE:
        assert read(tmp_path, **{name: form}) == usual, form


OURS = {name: [setting] for name, setting in WHOLE.items()}
OURS |= {name: [row[0]] for table in (SWITCHES, REAL, LISTS, WORDS) for name, row in table.items()}


@pytest.mark.parametrize(
    "name", [*SWITCHES, "distribute", *WHOLE, *REAL, *LISTS, "ckpt_save_policy", "loss_scale_type", "scheduler"]
)
def test_other_values_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    for form in WRONG:
        listed = form == "[1, 2]" and name == "color_jitter"  # one to four numbers
        allowed = form in ("[1, 2]", "[]", "'[]'") if name in LISTS else form == "[]" and name == "loss_scale_type"
        try:
            read(tmp_path, **NEEDED.get(name, {}), **{name: form})
        except ConfigError as error:
            assert "\n" not in str(error) and any(known in str(error) for known in {name, *OURS.get(name, ())})
        else:
            assert allowed or listed, f"{name}: {form} was accepted"


def test_every_argument_has_its_forms() -> None:
    text = {"data_dir", "train_split", "val_split", "model", "ckpt_save_dir"}
    without_effect = {"mode", "aux_factor", "multi_data_url", "ckpt_url"}
    refused = {"drop_path_rate", "reduction", "amp_cast_list", "resume_opt"}
    cloud = {"enable_modelarts", "data_url", "train_url"}
    tested = {*SWITCHES, *QUIET_SWITCHES, *WHOLE, *REAL, *LISTS, *WORDS}
    assert tested | text | without_effect | refused | cloud == DIALECTS["mindcv"].rules.keys()


@pytest.mark.parametrize("given", [{"num_classes": "ten"}, {"width": "wide", "height": 299}])
def test_the_modelzoos_export_names_what_is_wrong(given: dict[str, Any]) -> None:
    with pytest.raises(DialectError, match=r"=(ten|wide): give one number"):
        translate_export(given)
