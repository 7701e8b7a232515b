"""Recipes and flags of MindCV, the ModelZoo and timm: what they become here, and what is said about it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from running import ROOT

from inception_v4.cli.main import run
from inception_v4.settings.dialects import DIALECTS, FLAGS, DialectError, dialect_of, mindcv, modelzoo, timm, translate
from inception_v4.settings.dialects.exporting import translate_export
from inception_v4.settings.dialects.rules import NOTHING_ASKED
from inception_v4.settings.recipes import ConfigError, load_config
from inception_v4.settings.schema import Config
from inception_v4.training.schedule import LearningRate

FIXTURES = ROOT / "tests" / "fixtures"
MINDCV = FIXTURES / "mindcv_inception_v4_ascend.yaml"
MODELZOO = FIXTURES / "modelzoo_default_config.yaml"

ARGUMENTS: dict[str, Any] = {
    "mode": 1, "distribute": True, "val_while_train": True, "val_interval": 5, "log_interval": 7, "seed": 3,
    "device_target": "GPU",
    "dataset": "cifar100", "data_dir": "/d", "train_split": "a", "val_split": "b", "dataset_download": True,
    "num_parallel_workers": 3, "shuffle": False, "num_samples": 100, "batch_size": 7, "drop_remainder": False,
    "image_resize": 320, "scale": [0.5, 1], "ratio": [0.9, 1.1], "hflip": 0.1, "vflip": 0.1, "color_jitter": 0.3,
    "interpolation": "bicubic", "auto_augment": "randaug-m7-mstd0.5", "aug_splits": 3, "re_prob": 0.3,
    "re_scale": [0.1, 0.2], "re_ratio": [1, 2], "re_value": "random", "re_max_attempts": 3, "mean": [127.5] * 3,
    "std": [51.0] * 3, "crop_pct": 0.9, "mixup": 0.2, "cutmix": 1.0, "cutmix_prob": 0.5, "aug_repeats": 3,
    "model": "inception_v4", "num_classes": 12, "in_channels": 1, "drop_rate": 0.4, "drop_path_rate": 0.1,
    "pretrained": True, "ckpt_path": "w.ckpt", "resume_opt": True, "keep_checkpoint_max": 4, "ckpt_save_dir": "./o",
    "ckpt_save_interval": 2, "ckpt_save_policy": "top_k", "epoch_size": 11, "dataset_sink_mode": True, "ema": True,
    "ema_decay": 0.99, "clip_grad": True, "clip_value": 3.0, "layer_decay": 0.7, "gradient_accumulation_steps": 2,
    "opt": "momentum", "momentum": 0.8, "weight_decay": 1e-4, "use_nesterov": True, "weight_decay_filter": "auto",
    "eps": 1e-3,
    "scheduler": "step_decay", "lr": 0.2, "min_lr": 1e-3, "warmup_epochs": 2, "warmup_factor": 0.1, "decay_epochs": 4,
    "decay_rate": 0.7, "multi_step_decay_milestones": [1, 2], "lr_epoch_stair": True, "num_cycles": 2,
    "cycle_decay": 0.5,
    "loss": "BCE", "label_smoothing": 0.2, "aux_factor": 0.4, "reduction": "sum",
    "amp_level": "O3", "val_amp_level": "O2", "amp_cast_list": "[nn.Conv2d]", "loss_scale_type": "dynamic",
    "loss_scale": 64.0, "drop_overflow_update": False, "eval_shuffle": True,
}  # fmt: skip
"""MindCV's arguments, with other values than its defaults wherever the default asks for nothing."""


def changed(config: Config) -> dict[str, Any]:
    defaults = Config().flat()
    return {name: value for name, value in config.flat().items() if value != defaults[name]}


def test_mindcvs_recipe_becomes_this() -> None:
    config, notices = load_config(MINDCV)
    assert changed(config) == {
        "dataset": "imagenet", "data_dir": "/path/to/imagenet", "num_classes": 1000, "workers": 8,
        "ratio": (0.75, 1.333), "color_jitter": 0.4, "auto_augment": "autoaug", "re_prob": 0.25,
        "re_scale": (0.02, 0.33), "interpolation": "bilinear", "antialias": False, "mean": (0.485, 0.456, 0.406),
        "exif_rotation": False, "std": (0.229, 0.224, 0.225),
        "init": "xavier", "bn_momentum": 0.0003, "opt": "momentum", "momentum": 0.9,
        "warmup_epochs": 5.0, "decay_epochs": 195.0,
        "decay_rate": 0.9, "milestones": (30.0, 60.0, 90.0), "amp": "fp16", "loss_scale": 1024.0,
        "recipe": MINDCV.stem, "output_dir": "./ckpt", "keep_checkpoint_max": 10,
    }  # fmt: skip
    assert (config.schedule.epochs, config.optimizer.lr, config.training.label_smoothing) == (200, 0.045, 0.1)
    assert (config.network.drop_rate, config.optimizer.weight_decay_filter) == (0.2, "all")
    said = "\n".join(notices)
    assert notices[0].startswith("read as a recipe of MindCV")
    for name in ("mode", "distribute", "dataset_sink_mode"):
        assert f"{name}=" in said, f"{name} has no effect and nobody said so"
    for implied in (
        "init xavier",
        "bn_momentum 0.0003",
        "antialias False",
        "mean 0.485",
        "std 0.229",
        "--bn_momentum 0.1",
    ):
        assert implied in said
    assert "color_jitter" not in said, "auto_augment replaces it: no news"


def test_mindcvs_learning_rates_step_for_step() -> None:
    plan, opt = load_config(MINDCV)[0].schedule, load_config(MINDCV)[0].optimizer
    steps = 30
    rate = LearningRate(
        plan.scheduler, opt.lr, steps, plan.epochs, plan.warmup_epochs, plan.warmup_lr, plan.min_lr, plan.decay_epochs
    )
    expected = [0.045 * i / (5 * steps) for i in range(5 * steps)]
    expected += [0.5 * 0.045 * (1 + math.cos(math.pi * t / (195 * steps))) for t in range(195 * steps)]
    assert [rate(i) for i in range(400)] == pytest.approx(expected[:400], rel=1e-13, abs=1e-17)
    assert rate(200 * steps - 1) == pytest.approx(expected[-1], rel=1e-6)


@pytest.mark.parametrize(
    ("file", "device", "amp", "classes"),
    [("", "npu", "fp16", 1000), ("_gpu", "cuda", "off", 1000), ("_cpu", "cpu", "off", 10)],
)
def test_modelzoos_recipes_become_this(file: str, device: str, amp: str, classes: int) -> None:
    config, notices = load_config(FIXTURES / f"modelzoo_default_config{file}.yaml")
    opt, plan, run = config.optimizer, config.schedule, config.run
    assert (opt.opt, opt.opt_alpha, opt.opt_eps, opt.momentum, opt.weight_decay) == ("rmsproptf", 0.9, 1.0, 0.9, 4e-5)
    assert (plan.scheduler, plan.warmup_lr, opt.lr, plan.min_lr) == ("cosine_modelzoo", 4e-5, 0.4, 4e-6)
    assert (plan.warmup_epochs, plan.epochs, plan.start_epoch) == (1, 250, 0)
    assert (run.device, config.training.amp, config.data.num_classes) == (device, amp, classes)
    assert (run.keep_checkpoint_max, run.ckpt_interval, run.seed, config.data.workers) == (10, 10, 1, 8)
    assert (config.training.label_smoothing, config.training.loss_scale) == (0.0, 1024)
    assert (config.network.bn_momentum, config.network.bn_eps, config.augmentation.crop_pct) == (0.003, 1e-5, 1.0)
    assert config.augmentation.mean == (0.485, 0.456, 0.406) and config.augmentation.color_jitter == 0.4
    assert config.network.ckpt_path is None and config.run.resume is None
    said = "\n".join(notices)
    for name in ("smooth_factor=0.1", "--label-smoothing 0.1", "ckpt_path=", "checkpoint_path=", "ckpt_save_dir=",
                 "file_format=", "enable_modelarts is False", "val_split validation_preprocess"):  # fmt: skip
        assert name in said
    assert ("O3" in said) == (amp == "fp16")


def test_modelzoos_learning_rates() -> None:
    config, _ = load_config(MODELZOO)
    plan = config.schedule
    rate = LearningRate(
        plan.scheduler, config.optimizer.lr, 10, plan.epochs, plan.warmup_epochs, plan.warmup_lr, plan.min_lr
    )
    rise = (0.4 - 4e-5) / 10
    assert [rate(i) for i in range(10)] == pytest.approx([4e-5 + rise * (i + 1) for i in range(10)])
    last = 4e-6 + 0.5 * (0.4 - 4e-6) * (1 + math.cos(math.pi * 2489 / 2490))
    assert rate(10) == 0.4 and rate(2499) == pytest.approx(last)


def test_modelzoos_cifar_and_start_epoch_and_weights() -> None:
    recipe = {"ds_type": "cifar10", "lr_max": 0.1, "start_epoch": 101, "resume": "zoo.ckpt", "device_id": 3}
    settings, notices = translate({"platform": "Ascend"}, recipe)
    assert settings["dataset"] == "cifar10" and settings["train_crop"] == "pad"
    assert settings["mean"] == [0.4914, 0.4822, 0.4465] and "color_jitter" not in settings
    assert settings["start_epoch"] == 100 and "starts as epoch 100" in "\n".join(notices)
    assert settings["ckpt_path"] == "zoo.ckpt" and "resume" not in settings
    assert settings["device"] == "npu:3"
    with pytest.raises(ConfigError, match="start_epoch 250 is not below epochs 250"):
        load_config(MODELZOO, {"start_epoch": "250"})
    with pytest.raises(DialectError, match="device_target=GPU and platform=Ascend differ"):
        translate({}, {"ds_type": "imagenet", "device_target": "GPU", "platform": "Ascend"})


def test_modelarts_job_form() -> None:
    recipe = {"enable_modelarts": True, "lr_max": 0.4, "data_path": "/cache/data", "output_path": "/cache/train",
              "modelarts_dataset_unzip_name": "ImageNet", "data_url": "s3://b/d", "train_url": "s3://b/o"}  # fmt: skip
    settings, notices = translate({}, recipe)
    assert settings["data_dir"] == "s3://b/d" and settings["data_cache"] == "/cache/data"
    assert settings["output_dir"] == "/cache/train" and settings["upload_to"] == "s3://b/o"
    assert "data_zip" not in settings and "ckpt_path" not in settings
    assert any("data_dir s3://b/d" in n and "upload_to s3://b/o" in n for n in notices)
    assert translate({}, recipe | {"need_modelarts_dataset_unzip": True})[0]["data_zip"] == "ImageNet"
    assert translate({}, recipe | {"data_url": ""})[0]["data_dir"] == "/cache/data/ImageNet"
    mine = translate({"output_dir": "mine", "enable_modelarts": "True"}, recipe)[0]
    assert mine["output_dir"] == "mine" and mine["upload_to"] == "s3://b/o"


@pytest.mark.parametrize(
    "given, recipe, expected",
    [
        ({}, {}, "s3://b/w/"),
        ({}, {"resume": "/cache/checkpoint_path/zoo.ckpt"}, "s3://b/w/zoo.ckpt"),
        ({"checkpoint_path": "./inceptionv4/inceptionv4-train-250_1251.ckpt"}, {"checkpoint_path": "other.ckpt"},
         "s3://b/w/inceptionv4/inceptionv4-train-250_1251.ckpt"),
        ({"ckpt_file": "/elsewhere/model.ckpt"}, {}, "s3://b/w/model.ckpt"),
        ({"ckpt_file": "/load/sub/model.ckpt"}, {"load_path": "/load"}, "s3://b/w/sub/model.ckpt"),
    ],
)  # fmt: skip
def test_modelarts_checkpoints(given: dict, recipe: dict, expected: str) -> None:
    job = {"enable_modelarts": True, "ds_type": "imagenet", "checkpoint_url": "s3://b/w/"}
    assert translate(given, job | recipe)[0]["ckpt_path"] == expected


def test_mindcv_on_modelarts() -> None:
    """As its train.py does: from DATA_URL/DATASET, and after the run ckpt_save_dir to TRAIN_URL."""
    recipe = {"amp_level": "O0", "dataset": "imagenet", "enable_modelarts": True, "data_url": "obs://b/d/",
              "train_url": "s3://b/o", "ckpt_save_dir": "./ckpt", "data_dir": "/nowhere"}  # fmt: skip
    settings, notices = translate({}, recipe)
    assert settings["data_dir"] == "obs://b/d/imagenet" and settings["data_cache"] == "/cache"
    assert settings["output_dir"] == "./ckpt" and settings["upload_to"] == "s3://b/o"
    assert "enable_modelarts: data_dir obs://b/d/imagenet, data_cache /cache, upload_to s3://b/o" in notices
    assert translate({"dataset": ""}, recipe)[0]["data_dir"] == "obs://b/d"
    mine = translate({"data_dir": "mine", "data_cache": "here"}, recipe)[0]
    assert (mine["data_dir"], mine["data_cache"], mine["upload_to"]) == ("mine", "here", "s3://b/o")
    local = translate({}, recipe | {"data_url": "/cache/data/", "train_url": "/cache/output"})[0]
    assert local["data_dir"] == "/cache/data/imagenet" and local["upload_to"] == "file:///cache/output"
    assert "data_cache" not in local
    off, notices = translate({}, recipe | {"enable_modelarts": False})
    assert off["data_dir"] == "/nowhere" and "upload_to" not in off
    assert any("data_url, train_url" in n and "enable_modelarts is False" in n for n in notices)
    unread = translate({}, recipe | {"ckpt_url": "s3://b/w", "multi_data_url": "s3://b/m"})
    assert unread[0] == settings and sum("no file of MindCV reads it" in n for n in unread[1]) == 2


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, "inceptionv4.mindir"),
        ({"enable_modelarts": "True"}, "/cache/train/inceptionv4.mindir"),
        ({"enable_modelarts": "True", "output_path": "/out"}, "/out/inceptionv4.mindir"),
        ({"enable_modelarts": "True", "output_path": "/out", "train_url": "s3://b/o/"}, "s3://b/o/inceptionv4.mindir"),
    ],
)
def test_where_an_export_on_modelarts_goes(given: dict, expected: str) -> None:
    found, _ = translate_export({"file_name": "inceptionv4", "file_format": "MINDIR", **given})
    assert found["output"] == expected


@pytest.mark.slow
def test_mindcvs_recipe_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)  # so small a network gains nothing from more
    folder = tmp_path / "ckpt"
    words = f"""train -c {MINDCV} --dataset shapes --data_dir none --num_classes none --image_resize 75
        --shapes_train 8 --shapes_val 4 --shapes_classes 2 --batch_size 4 --num_parallel_workers 0 --bn_momentum 0.1
        --device_target CPU --amp_level O0 --distribute False --epoch_size 2 --start_epoch 1 --warmup_epochs 1
        --log_interval 1
        ckpt_save_dir={folder}""".split()
    assert run(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().err
    assert "read as a recipe of MindCV" in said and "cosine is cut off" in said
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    second_epoch = [(record["step"], record["lr"]) for record in records if "lr" in record]
    assert second_epoch == [(3, 0.045), (4, pytest.approx(0.0225 * (1 + math.cos(math.pi / 390))))]
    assert (folder / "best.safetensors").is_file()


def test_there_are_86_arguments_and_each_is_mapped_warned_about_or_refused() -> None:
    assert len(ARGUMENTS) == 86
    companions = {"eps": {"opt": "rmsprop"}, "clip_value": {"clip_grad": True}, "use_nesterov": {"opt": "momentum"}}
    refused = set()
    for name, value in ARGUMENTS.items():
        base = {"filter_bias_and_bn": False} | companions.get(name, {})
        before, said = translate({}, base)
        try:
            after, notices = translate({}, base | {name: value})
        except DialectError as error:
            assert str(error).startswith(f"{name}="), error
            refused.add(name)
            continue
        mentioned = any(f"{name}=" in notice for notice in set(notices) - set(said))
        assert after != before or mentioned, f"{name} was dropped silently"
    assert refused == {"drop_path_rate", "resume_opt", "reduction", "amp_cast_list"}


def test_mindcvs_arguments_mean_the_same_on_the_command_line() -> None:
    settings, _ = translate({"image_resize": "224", "num-parallel-workers": "4", "drop_remainder": "False"})
    assert settings == {"image_size": "224", "workers": "4", "drop_last": "False"}, "and no default changes with them"
    for name in ARGUMENTS.keys() - Config().flat().keys():
        assert name in FLAGS


def test_an_unknown_name_is_an_error_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "mindcv.yaml").write_text(MINDCV.read_text() + "\nimage_resise: 224\n")
    with pytest.raises(ConfigError, match="unknown setting 'image_resise': did you mean 'image_resize'"):
        load_config(tmp_path / "mindcv.yaml")


def test_whose_recipe_is_it() -> None:
    assert dialect_of({"image_resize": 299, "opt": "momentum"}) is DIALECTS["mindcv"]
    assert dialect_of({"lr_max": 0.4, "epoch_size": 3, "amp_level": "O3"}) is DIALECTS["modelzoo"]
    assert dialect_of({"sched": "step", "model_ema": True, "opt": "sgd"}) is DIALECTS["timm"]
    assert dialect_of({"opt": "momentum", "lr": 0.1}) is None
    assert dialect_of({"image_resize": 299, "epochs": 3}) is None, "one of our own names: our recipe with an alias"
    settings, notices = translate({}, {"image_resize": 224, "epochs": 3})
    assert settings == {"image_size": 224, "epochs": 3}
    assert notices == [
        "a recipe of this project, for its epochs, with names of MindCV: MindCV's defaults do not apply; "
        "give such settings on the command line to have them"
    ]


def test_a_mindcv_recipe_brings_mindcvs_defaults_and_names_them() -> None:
    settings, notices = translate({}, {"image_resize": 224})
    assert settings["opt"] == "adam" and settings["lr"] == 1e-3 and settings["weight_decay"] == 1e-6
    assert settings["epochs"] == 90 == settings["val_interval"], "val_while_train is off by default"
    for part in ("opt adam", "lr 0.001", "epochs 90", "warmup_epochs 3", "color_jitter 0.4", "label_smoothing 0"):
        assert part in notices[0]
    assert "opt_eps" not in settings
    assert translate({}, {"image_resize": 224, "opt": "rmsprop"})[0]["opt_eps"] == 1e-10


def test_the_command_line_wins_over_a_recipe_in_any_spelling() -> None:
    recipe = {"image_resize": 299, "lr": 0.1, "warmup_factor": 0.5, "clip_grad": False, "clip_value": 7.0, "mode": 0,
              "val_while_train": False, "epoch_size": 90, "opt": "nesterov", "use_nesterov": False}  # fmt: skip
    given = {"image_size": "224", "lr": "0.4", "clip_grad": "True", "epochs": "10", "mean": "0.5,0.5,0.5"}
    settings = translate(given, recipe)[0]
    assert settings["image_size"] == "224"
    assert settings["warmup_lr"] == 0.2, "a factor of the lr in force"
    assert settings["clip_grad"] == 7.0, "MindCV's switch with the recipe's value"
    assert settings["val_interval"] == 10, "the end of the run as it is now"
    assert settings["mean"] == "0.5,0.5,0.5", "numbers up to 1 are on our scale"
    assert settings["opt"] == "momentum", "MindCV's nesterov without use_nesterov"
    assert translate({"opt": "nesterov"}, recipe)[0]["opt"] == "nesterov"
    assert translate({"warmup_lr": "0.01"}, recipe)[0]["warmup_lr"] == "0.01"
    assert translate({"clip_grad": "2.5"}, recipe)[0]["clip_grad"] == 2.5
    assert not any(n.startswith("mode=0") for n in translate({"mode": "1"}, recipe)[1])


def test_a_refusal_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "mindcv.yaml").write_text(MINDCV.read_text() + "\nreduction: sum\n")
    with pytest.raises(ConfigError, match="reduction=sum: the loss is the mean"):
        load_config(tmp_path / "mindcv.yaml")


def test_two_spellings_of_one_setting_must_agree() -> None:
    with pytest.raises(DialectError, match="image_size and image_resize are the same setting"):
        translate({"image_size": "224", "image_resize": "299"})
    assert translate({"image_size": "299", "image_resize": "299"})[0] == {"image_size": "299"}


def test_mindcvs_cifar_ignores_its_augmentation_and_so_do_we() -> None:
    config, notices = load_config(MINDCV, {"dataset": "cifar10", "data_dir": "d", "re_prob": "0.1"})
    aug = config.augmentation
    assert (aug.train_crop, aug.auto_augment, aug.hflip, aug.crop_pct) == ("pad", None, 0.5, 1.0)
    assert aug.mean == (0.4914, 0.4822, 0.4465) and aug.interpolation == "bilinear" and not aug.antialias
    assert aug.re_prob == 0.1, "asked for on the command line"
    assert any("auto_augment" in n and "CIFAR transforms are fixed" in n for n in notices)


def test_pretrained_weights_keep_their_own_normalisation() -> None:
    config, notices = load_config(MINDCV, {"pretrained": "True"})
    assert config.augmentation.mean == (0.5, 0.5, 0.5)
    assert "mean" not in config.augmentation.model_fields_set, "validate asks the weights file"
    assert any("mean and std of 0.5" in n for n in notices)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"mean": "123.675,116.28,103.53"}, {"mean": [0.485, 0.456, 0.406]}),
        ({"clip_grad": "True"}, {"clip_grad": 15.0}),
        ({"clip_grad": "True", "clip_value": "5"}, {"clip_grad": 5}),
        ({"clip_grad": "False"}, {"clip_grad": None}),
        ({"clip_grad": "1"}, {"clip_grad": 1}),
        ({"loss": "CE"}, {"loss": "ce"}),
        ({"loss_scale_type": "dynamic", "loss_scale": "128"}, {"loss_scale": "dynamic"}),
        ({"dynamic_loss_scale": "True"}, {"loss_scale": "dynamic"}),
        ({"device_target": "Ascend"}, {"device": "npu"}),
        ({"device_target": "Ascend", "device_id": "2"}, {"device": "npu:2"}),
        ({"device_target": "GPU", "device": "cpu"}, {"device": "cpu"}),
        ({"scheduler": "exponential_decay", "lr": "0.1"}, {"scheduler": "exponential", "lr": "0.1", "decay_epochs": 1}),
        ({"opt": "sgd", "use_nesterov": "True"}, {"opt": "nesterov"}),
        ({"opt": "rmsprop", "eps": "1.0"}, {"opt": "rmsprop", "opt_eps": 1.0}),
        ({"lr": "0.4", "warmup_factor": "0.1"}, {"lr": "0.4", "warmup_lr": pytest.approx(0.04)}),
        ({"amp_level": "O0"}, {"amp": "off"}),
        ({"weight_decay_filter": "norm_and_bias"}, {"weight_decay_filter": "no_norm_bias"}),
        ({"ckpt_file": "a.ckpt", "data_path": "/d"}, {"ckpt_path": "a.ckpt", "data_dir": "/d"}),
        ({"resume": "zoo.ckpt"}, {"ckpt_path": "zoo.ckpt"}),
        ({"resume": "auto"}, {"resume": "auto"}),
        ({"auto_augment": "randaug-m7"}, {"auto_augment": "randaug-m7"}),
        ({"distribute": "False", "mode": "0", "drop_path_rate": "none"}, {}),
        # timm
        ({"amp": "true"}, {"amp": "fp16"}),
        ({"amp": "true", "amp-dtype": "bfloat16"}, {"amp": "bf16"}),
        ({"opt_eps": "1.0", "sched": "step", "smoothing": "0.1"},
         {"opt_eps": "1.0", "scheduler": "step", "label_smoothing": "0.1"}),
        ({"model-ema": "true", "model-ema-decay": "0.9998"}, {"ema": "true", "ema_decay": "0.9998"}),
        ({"input_size": "3 331 331"}, {"in_channels": 3, "image_size": 331}),
        ({"lr_base": "0.1", "lr_base_size": "256"}, {"lr": 0.1, "lr_base_batch": 256}),
        ({"output": "out", "experiment": "x"}, {"output_dir": "out/x"}),
        ({"aa": "rand-m9", "reprob": "0.2", "remode": "pixel"},
         {"auto_augment": "rand-m9-p0.5", "re_prob": "0.2", "re_value": "random"}),
        ({"aa": "rand-p1-mstd0.5-inc1"}, {"auto_augment": "rand-p1-mstd0.5-inc1-m10"}),
        ({"aa": "original"}, {"auto_augment": "original"}),
        ({"initial_checkpoint": "w.pth", "checkpoint_hist": "4", "drop": "0.1"},
         {"ckpt_path": "w.pth", "keep_checkpoint_max": "4", "drop_rate": "0.1"}),
        ({"gp": "avg", "tta": "0", "clip_mode": "norm"}, {}),
        ({"kd_model_name": "resnet50", "task_loss_weight": "0.3", "kd_temperature": "2"},
         {"teacher": "resnet50", "distill_alpha": 0.7, "distill_t": "2"}),
        ({"kd_model_name": "resnet50", "task_loss_weight": "0.25", "distill_loss_weight": "0.75",
          "kd_distill_type": "logit"}, {"teacher": "resnet50", "distill_alpha": 0.75}),
        ({"log_wandb": "true"}, {"logger": "wandb"}),
    ],
)  # fmt: skip
def test_flags_alone(given: dict[str, str], expected: dict[str, Any]) -> None:
    assert translate(given)[0] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "mnist"}, "dataset=mnist: 28-pixel"),
        ({"drop_path_rate": "0.1"}, "no residual paths"),
        ({"resume_opt": "True"}, "--resume auto"),
        ({"amp_cast_list": "[nn.Conv2d]"}, "autocast chooses"),
        ({"warmup_factor": "0.1"}, "give lr as well"),
        ({"opt": "adam", "use_nesterov": "True"}, "opt=nadam"),
        ({"loss_scale_type": "sometimes"}, "choose fixed or dynamic"),
        ({"torchscript": "true"}, "use compile"),
        ({"lr_base": "0.1", "opt": "adamw"}, "give --lr itself"),
        ({"input_size": "3 299 331"}, "a square"),
        ({"clip_mode": "agc"}, "by their norm"),
        ({"amp": "true", "amp_dtype": "float8"}, "bfloat16 or float16"),
        ({"layer_decay_min_scale": "0.1"}, "falls with every layer"),
        ({"kd_model_name": "resnet50"}, "give --task-loss-weight 0.5 alone, and for SGD multiply lr"),
        ({"kd_model_name": "resnet50", "distill_loss_weight": "3"}, "give --task-loss-weight 0.25 alone"),
        ({"kd_distill_type": "feature"}, "answers"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(given: dict[str, str], message: str) -> None:
    with pytest.raises(DialectError, match=message) as caught:
        translate(given)
    assert "\n" not in str(caught.value)


def test_mindcvs_augmentation_words() -> None:
    def policy(text: str) -> str:
        return translate({}, {"mode": 0, "auto_augment": text})[0]["auto_augment"]

    assert policy("autoaug-mstd0.5") == policy("autoaugr") == "autoaug"
    assert policy("randaug-m7-mstd0.2-inc1") == "randaug-m7-mstd0.2-p0.5"
    assert policy("randaug") == "randaug-m10-mstd0.5-p0.5", "MindCV's defaults"
    assert policy("augmix-m5-w4-d2") == "augmix-m5-w4-d2" and policy("trivialaugwide") == "trivialaugwide"
    _, notices = translate({}, {"mode": 0, "auto_augment": "randaug-m7-w0"})
    assert any("w0" in n for n in notices) and not any("varies the strength" in n for n in notices)
    _, notices = translate({}, {"mode": 0, "auto_augment": "autoaug-mstd0.5"})
    assert any("varies the strength" in n for n in notices)
    _, notices = translate({"aa": "rand-m9"})
    assert any("without inc1" in n for n in notices)
    assert not any("inc1" in n for n in translate({"aa": "rand-m9-inc1"})[1])
    with pytest.raises(DialectError, match="3a"):
        policy("3a")


def test_older_mindcv_names() -> None:
    _, notices = translate({}, {"mode": 0, "filter_bias_and_bn": True})
    assert any("filter_bias_and_bn=True" in n and "never worked" in n for n in notices)


def test_timms_args_yaml_brings_timms_meaning() -> None:
    recipe = {"sched": "cosine", "opt": "sgd", "model_ema": True, "lr": None, "lr_base": 0.1, "lr_base_size": 256,
              "drop": 0.0, "aa": None, "data": None, "data_dir": "/d", "sched_on_updates": False}  # fmt: skip
    settings, notices = translate({}, recipe)
    assert settings["opt"] == "nesterov" and settings["ema_warmup"] == 0 and settings["ema_decay"] == 0.9998
    assert settings["lr"] == 0.1 and settings["lr_base_batch"] == 256
    assert settings["lr_epoch_stair"] is True and settings["decay_epochs"] is None
    assert settings["drop_rate"] == 0.0 and settings["data_dir"] == "/d"
    assert "sgd is Nesterov" in "\n".join(notices)
    untaught = {"kd_model_name": None, "kd_distill_type": "logit", "kd_loss_type": "kl", "kd_temperature": 4.0,
                "distill_loss_weight": None, "task_loss_weight": None, "kd_student_feature_dim": None}  # fmt: skip
    settings = translate({}, recipe | untaught)[0]
    assert settings["distill_t"] == 4.0 and "distill_alpha" not in settings
    load_config(None, {"kd_temperature": "4.0", "kd_distill_type": "logit"})


def test_timms_recipes_have_its_weight_decay_and_its_start() -> None:
    """timm's factory leaves out biases and BatchNorm, and its network starts as torch's layers do."""
    recipe = {"sched": "cosine", "lr": 0.1}
    settings, notices = translate({}, recipe)
    assert settings["weight_decay_filter"] == "no_norm_bias" and settings["init"] == "torch"
    assert "weight_decay_filter no_norm_bias" in notices[0] and "init torch" in notices[0]
    assert translate({"init": "tf"}, recipe)[0]["init"] == "tf"
    assert not {"weight_decay_filter", "init"} & translate({"sched": "cosine"})[0].keys(), "a flag is no recipe"


@pytest.mark.parametrize("word", ["lr", "lr_max", "lr-max"])
def test_a_rate_that_is_typed_in_any_spelling_is_meant_as_typed(word: str) -> None:
    config, notices = load_config("imagenet_momentum_mindcv", {word: "0.1", "data_dir": "x"})
    assert (config.optimizer.lr, config.optimizer.lr_base_batch) == (0.1, None)
    assert any("is used as given" in notice for notice in notices)
    kept, _ = load_config("imagenet_momentum_mindcv", {word: "0.1", "lr_base_batch": "64", "data_dir": "x"})
    assert kept.optimizer.lr_base_batch == 64
    warm, _ = load_config("imagenet_momentum_mindcv", {"warmup_factor": "0.5", "data_dir": "x"})
    assert warm.optimizer.lr_base_batch == 256


def test_launching_is_the_launchers_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert translate({"distribute": "True"}) == ({}, [])
    assert "torchrun started 8 processes" in translate({"distribute": "False"})[1][0]
    monkeypatch.setenv("RANK", "1")
    assert translate({"device_target": "Ascend", "device_id": "2"})[0] == {"device": "npu"}, "each process has its own"


def test_a_cosine_that_is_cut_off_is_named() -> None:
    _, notices = load_config(MINDCV, {"epoch_size": "10"})
    assert any("cosine is cut off" in n for n in notices)
    assert not any("cut off" in n for n in load_config(MINDCV, {"epoch_size": "10", "decay_epochs": "none"})[1])


def test_mindcvs_other_schedules_in_closed_form() -> None:
    steps, epochs, lr, low = 7, 6, 0.1, 1e-3
    total = steps * epochs
    one = LearningRate("one_cycle", lr, steps, epochs, min_lr=low)
    top = 0.3 * total - 1
    assert [one(0), one(total - 1)] == pytest.approx([lr / 25, low])
    assert one(5) == pytest.approx(lr + (lr / 25 - lr) / 2 * (1 + math.cos(math.pi * 5 / top)))
    triangle = LearningRate("cyclic", lr, steps, epochs, min_lr=low, num_cycles=2)
    side = int(total / 4)
    assert [triangle(0), triangle(side), triangle(2 * side), triangle(side // 2)] == pytest.approx(
        [low, lr, low, low + (lr - low) * (side // 2) / side]
    )
    power = LearningRate("polynomial", lr, steps, epochs, decay_rate=0.9)
    assert [power(t) for t in range(total)] == pytest.approx([lr * (1 - t / total) ** 0.9 for t in range(total)])
    again = LearningRate("cosine", lr, steps, epochs, decay_epochs=2, num_cycles=2, cycle_decay=0.5)
    assert [again(0), again(2 * steps), again(4 * steps)] == pytest.approx([lr, lr / 2, 0.0])
    stairs = LearningRate("exponential", lr, steps, epochs, warmup_epochs=2, decay_rate=0.9, decay_epochs=1, stair=True)
    assert [stairs(s) for s in (0, steps - 1, steps, 2 * steps)] == pytest.approx([0, 0, lr / 2, lr])
    with pytest.raises(ConfigError, match="set warmup_epochs 0"):
        load_config(None, {"scheduler": "one_cycle", "warmup_epochs": "3"})


@pytest.mark.parametrize(("dialect", "project"), [("mindcv", mindcv), ("modelzoo", modelzoo), ("timm", timm)])
def test_a_name_is_kept_refused_or_ignored_and_its_reason_is_said(dialect: str, project: ModuleType) -> None:
    refused, ignored, rules = getattr(project, "REFUSED", {}), project.IGNORED, DIALECTS[dialect].rules
    assert len(project.RULES) + len(refused) + len(ignored) == len(rules), "a name stands in two places"
    assert project.QUIET.keys() <= refused.keys() | ignored.keys()
    for name in refused.keys() | ignored.keys():
        assert not any(any(rules[name].apply(name, value)) for value in project.QUIET.get(name, NOTHING_ASKED))
    for name, reason in refused.items():
        with pytest.raises(DialectError, match=re.escape(f"{name}=something: {reason}")):
            rules[name].apply(name, "something")
    for name, reason in ignored.items():
        assert rules[name].apply(name, "something") == ({}, [f"{name}=something -> no effect: {reason}"])


@pytest.mark.parametrize("opt", ["adan", "lamb", "lion"])
def test_a_momentum_that_the_other_project_does_not_look_at_does_not_become_a_beta(opt: str) -> None:
    for recipe in ({"sched": "cosine", "model_ema": False, "lr": 0.1}, {"filter_bias_and_bn": False}):
        settings, notices = translate({}, recipe | {"opt": opt, "momentum": 0.95})
        assert "momentum" not in settings and settings["opt"] == opt
        assert any(f"momentum=0.95 -> no effect: opt {opt} has betas" in notice for notice in notices)
        assert translate({"momentum": "0.8"}, recipe | {"opt": opt, "momentum": 0.95})[0]["momentum"] == "0.8"
        assert translate({}, recipe | {"opt": "momentum", "momentum": 0.95})[0]["momentum"] == 0.95
