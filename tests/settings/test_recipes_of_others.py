"""Recipe files of MindCV and the ModelZoo trained as they are, with `--data_dir`, `--device cpu` and `--smoke`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cifar_files import binary_files
from photos import class_folders
from running import ROOT
from temporary import NewFolder

from inception_v4.cli.main import run
from inception_v4.settings.dialects import translate
from inception_v4.settings.schema import Config
from inception_v4.settings.schema import Run as RunSettings
from inception_v4.training.loop import is_validated

FIXTURES = ROOT / "tests" / "fixtures"


@pytest.fixture(scope="module")
def photos(module_folder: NewFolder) -> Path:
    """Two classes, with the folders that both projects call their splits."""
    root = module_folder("photos")
    for name, count in (("train", 4), ("val", 2), ("validation_preprocess", 2)):
        class_folders(root / name, {"ape": count, "bear": count})
    return root


def trained(recipe: Path, data: Path, output: Path, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings that the run wrote down, and its records."""
    words = ["train", "-c", str(recipe), "--data_dir", str(data), "--device", "cpu", "--smoke"]
    assert run([*words, "--batch_size", "4", "--workers", "0", "--output_dir", str(output), *more]) == 0
    sections = yaml.safe_load((output / "config.yaml").read_text())
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert (output / "best.safetensors").is_file() and (output / "curves.png").is_file()
    return {name: value for section in sections.values() for name, value in section.items()}, records


@pytest.mark.slow
def test_mindcvs_recipe(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With val_interval 5 validation comes after epoch 1, where MindCV has it, and after the last."""
    recipe = tmp_path / "inception_v4_ascend.yaml"
    recipe.write_text((FIXTURES / "mindcv_inception_v4_ascend.yaml").read_text() + "\nval_interval: 5\n")
    settings, records = trained(recipe, photos, tmp_path / "run")
    said = capsys.readouterr().err
    expected = {
        "dataset": "imagenet", "num_classes": 1000, "opt": "momentum", "lr": 0.045, "weight_decay": 4e-5,
        "momentum": 0.9, "scheduler": "cosine", "label_smoothing": 0.1, "auto_augment": "autoaug", "re_prob": 0.25,
        "mean": [0.485, 0.456, 0.406], "interpolation": "bilinear", "antialias": False, "crop_pct": 0.875,
        "drop_rate": 0.2, "init": "xavier", "amp": "fp16", "loss_scale": 1024.0, "keep_checkpoint_max": 10,
        "val_interval": 5, "val_start": 1, "image_size": 75, "device": "cpu",
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected
    assert [record["epoch"] for record in records if record["kind"] == "val"] == [0, 1]
    for name in ("mode=", "distribute=", "dataset_sink_mode="):
        assert f"{name}" in said.split(" -> no effect")[0] or f"\n{name}" in said, name


@pytest.mark.slow
@pytest.mark.parametrize("file", ["", "_gpu", "_cpu"])
def test_the_modelzoos_recipes(photos: Path, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = FIXTURES / f"modelzoo_default_config{file}.yaml"
    data, more = photos, ["--epoch_size", "2"]
    if file == "_cpu":
        data = tmp_path / "cifar"
        binary_files(data / "cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)])
        binary_files(data / "cifar-10-verify-bin", ["test_batch.bin"])
        more += ["--ds_type", "cifar10", "--start_epoch", "1"]
    settings, records = trained(recipe, data, tmp_path / "run", *more)
    expected = {
        "opt": "rmsproptf", "opt_alpha": 0.9, "opt_eps": 1.0, "momentum": 0.9, "lr": 0.4, "warmup_lr": 4e-5,
        "min_lr": 4e-6, "scheduler": "cosine_modelzoo", "label_smoothing": 0.0, "keep_checkpoint_max": 10,
        "amp": "fp16" if not file else "off", "dataset": "cifar10" if file == "_cpu" else "imagenet",
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected
    steps = 2 if file != "_cpu" else 5
    rates = [record["lr"] for record in records if record["kind"] == "train"][:steps]
    rise = (0.4 - 4e-5) / steps
    assert rates == pytest.approx([4e-5 + rise * (i + 1) for i in range(steps)]), "one epoch of warm-up, to the peak"
    assert "smooth_factor=0.1 -> no effect" in capsys.readouterr().err


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_validated_epochs_are_mindcvs(n: int) -> None:
    """Its own condition, with epochs from 1: (epoch - 1) % n == 0. A flag of this project keeps its own meaning."""
    there = [epoch for epoch in range(1, 20) if (epoch - 1) % n == 0]
    settings, notices = translate({}, {"image_resize": 299, "val_while_train": True, "val_interval": n})
    here = RunSettings(val_interval=settings["val_interval"], val_start=settings.get("val_start"))
    assert [epoch for epoch in range(1, 20) if is_validated(here, epoch - 1)] == there
    assert ("val_interval" in "".join(notices)) == (n > 1)
    own = RunSettings(val_interval=n)
    assert [epoch for epoch in range(1, 20) if is_validated(own, epoch - 1)] == list(range(n, 20, n))
    assert translate({"val_interval": str(n)})[0] == {"val_interval": str(n)}


def test_mindcvs_validation_at_the_end_alone() -> None:
    settings, _ = translate({}, {"val_while_train": False, "val_interval": 2, "epoch_size": 9})
    here = RunSettings(val_interval=settings["val_interval"], val_start=settings["val_start"])
    assert [epoch for epoch in range(9) if is_validated(here, epoch)] == [8]
    assert Config().run.val_start is None
