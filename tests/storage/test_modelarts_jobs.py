"""The jobs that the ModelZoo and MindCV describe for ModelArts, with their own settings, against a real server."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exported import run as command
from live import enliven_gently
from running import ROOT, run
from temporary import NewFolder

from inception_v4.data.sources import open_source
from inception_v4.distributed import World
from inception_v4.network.model import InceptionV4
from inception_v4.settings.recipes import build_config, load_config
from inception_v4.storage.remote import Place
from inception_v4.weights import WeightsInfo, read_weights, save_weights
from inception_v4.weights.convert import convert_weights

ZOO = ROOT / "tests" / "fixtures" / "modelzoo_default_config.yaml"
MINDCV = ROOT / "tests" / "fixtures" / "mindcv_inception_v4_ascend.yaml"
NAME = "ImageNet_Original"

DATA = {
    "enable_modelarts": "True", "need_modelarts_dataset_unzip": "True", "modelarts_dataset_unzip_name": NAME,
}  # fmt: skip
TRAIN = DATA | {"dataset_path": "/cache/data", "epoch_size": "250", "checkpoint_url": "s3://dir_to_your_pretrained/"}
TRAIN_ON_SEVERAL = TRAIN | {"distribute": "True", "lr_init": "0.00004"}
EVALUATE = DATA | {
    "checkpoint_url": "s3://dir_to_your_trained_ckpt/", "dataset_path": "/cache/data",
    "checkpoint_path": "./inceptionv4/inceptionv4-train-250_1251.ckpt",
}  # fmt: skip
EXPORT = {
    "enable_modelarts": "True", "file_name": "inceptionv4", "file_format": "MINDIR",
    "checkpoint_url": "/The path of checkpoint in S3/", "ckpt_file": "/cache/checkpoint_path/model.ckpt",
}  # fmt: skip
"""What the ModelZoo's README sets in default_config.yaml (a), or on the page of the job (b)."""

HERE = {
    "device_target": "CPU", "platform": "CPU", "amp_level": "O0", "num_classes": "2", "batch_size": "4",
    "work_nums": "0", "image_size": "75", "max_steps": "1", "keep_checkpoint_max": "1", "warmup_epochs": "0",
}  # fmt: skip
"""The "other parameters": what fits two drawn classes and this machine."""


@pytest.fixture(scope="module")
def pictures(module_folder: NewFolder) -> Path:
    """Folders `train` and `val` of two drawn classes."""
    data = {"dataset": "shapes", "data_dir": str(module_folder("drawn")), "shapes_train": 8, "shapes_val": 4,
            "shapes_classes": 2}  # fmt: skip
    source = open_source(build_config(data).data, "train", world=World(), seed=1)
    return Path(source.name(0)).parents[2]


@pytest.fixture(scope="module")
def zoo_file(module_folder: NewFolder) -> Path:
    """Weights as the ModelZoo leaves them, for its epsilon of BatchNorm."""
    folder = module_folder("zoo")
    network = enliven_gently(InceptionV4(2, bn_eps=1e-5))
    save_weights(network, folder / "live.safetensors", WeightsInfo(2, bn_eps=1e-5))
    convert_weights(str(folder / "live.safetensors"), folder / "zoo.ckpt", to="modelzoo")
    return folder / "zoo.ckpt"


@pytest.fixture
def page(store: Callable[[str], str], tmp_path: Path) -> dict[str, str]:
    """What is filled in on the job's page, with folders of this machine for the job's /cache."""
    cache = str(tmp_path / "cache" / "data")
    return {
        "data_url": store("data"), "train_url": store("results"), "data_path": cache, "dataset_path": cache,
        "output_path": str(tmp_path / "cache" / "train"),
    }  # fmt: skip


@pytest.fixture
def data(store: Callable[[str], str], pictures: Path, tmp_path: Path) -> None:
    """A zipped data set at the job's data_url."""
    with zipfile.ZipFile(tmp_path / f"{NAME}.zip", "w") as packed:
        for split, name in (("train", "train"), ("val", "validation_preprocess")):
            for picture in sorted((pictures / split).rglob("*.*")):
                packed.write(picture, f"{NAME}/{name}/{picture.relative_to(pictures / split)}")
    Place(store("data")).put(tmp_path / f"{NAME}.zip", f"{NAME}.zip")


def _in_the_file(tmp_path: Path, settings: dict[str, str]) -> Path:
    """default_config.yaml with values set in it, as in (a)."""
    text = ZOO.read_text()
    for name, value in settings.items():
        line = f"{name}: {value!r}" if not value.replace(".", "").isdigit() and value != "True" else f"{name}: {value}"
        pattern = re.compile(rf"^{name}: .*$", re.MULTILINE)
        text = pattern.sub(line, text, count=1) if pattern.search(text) else f"{line}\n{text}"
    file = tmp_path / "default_config.yaml"
    file.write_text(text)
    return file


def _flags(settings: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def _names(address: str) -> set[str]:
    return {entry.name for entry in Place(address).entries()}


@pytest.mark.parametrize("job", [TRAIN, TRAIN_ON_SEVERAL, EVALUATE], ids=["train", "several", "evaluate"])
def test_settings_in_the_file_and_on_the_page_are_the_same_job(
    page: dict[str, str], tmp_path: Path, job: dict[str, str]
) -> None:
    on_the_page = load_config(ZOO, job | page)[0]
    in_the_file = load_config(_in_the_file(tmp_path, job), page)[0]
    if job is EVALUATE:  # its checkpoint_path is read where the words of the command are
        assert on_the_page.network.ckpt_path == (
            "s3://dir_to_your_trained_ckpt/inceptionv4/inceptionv4-train-250_1251.ckpt"
        )
        return
    assert on_the_page.flat() | {"recipe": ""} == in_the_file.flat() | {"recipe": ""}
    assert on_the_page.schedule.epochs == 250
    assert on_the_page.data.data_zip == NAME and on_the_page.network.ckpt_path == "s3://dir_to_your_pretrained/"


@pytest.mark.slow
def test_training_on_one_device(
    store: Callable[[str], str], page: dict[str, str], data: None, zoo_file: Path, tmp_path: Path, capsys
) -> None:
    Place(store("pretrained")).put(zoo_file, zoo_file.name)
    job = TRAIN | {"checkpoint_url": store("pretrained") + "/"}
    file = _in_the_file(tmp_path, job)
    code, _, err = command(capsys, "train", "--config_path", file, *_flags(page | HERE))
    assert code == 0, err
    assert "variances moved from epsilon 0.001 to 1e-05, same function" in err
    assert store("pretrained") in err and os.environ["AWS_SECRET_ACCESS_KEY"] not in err
    results = _names(store("results"))
    assert {"config.yaml", "metrics.jsonl", "best.safetensors", "checkpoints/step-00000001.pt"} <= results


@pytest.mark.long
def test_training_on_several_devices(
    store: Callable[[str], str], page: dict[str, str], data: None, zoo_file: Path
) -> None:
    Place(store("pretrained")).put(zoo_file, zoo_file.name)
    job = TRAIN_ON_SEVERAL | {"checkpoint_url": store("pretrained") + "/"} | page | HERE
    run("train", "--config_path", str(ZOO), *_flags(job), processes=2)
    assert {"best.safetensors", "checkpoints/step-00000001.pt"} <= _names(store("results"))


@pytest.mark.slow
def test_evaluation(store: Callable[[str], str], page: dict[str, str], data: None, zoo_file: Path, capsys) -> None:
    Place(store("trained")).put(zoo_file, "inceptionv4/inceptionv4-train-250_1251.ckpt")
    job = EVALUATE | {"checkpoint_url": store("trained") + "/"} | page | HERE
    code, out, err = command(capsys, "validate", "--config_path", ZOO, *_flags(job))
    assert code == 0 and "(4 pictures" in out, err


def test_export(store: Callable[[str], str], page: dict[str, str], capsys) -> None:
    """MINDIR is shown without being made: that takes MindSpore. The same job's ONNX file is made and read."""
    job = EXPORT | {"checkpoint_url": store("trained") + "/", "num_classes": "2", "width": "75", "height": "75"}
    job |= page
    code, out, err = command(capsys, "export", "--config_path", ZOO, *_flags(job), "--dry-run")
    assert code == 0 and f"{store('trained')}/model.ckpt -> {store('results')}/inceptionv4.mindir: format mindir" in out
    assert "enable_modelarts" not in err and "train_url" not in err


@pytest.mark.slow
def test_an_export_that_is_made(store: Callable[[str], str], page: dict[str, str], zoo_file: Path, capsys) -> None:
    pytest.importorskip("onnxscript")
    Place(store("trained")).put(zoo_file, "model.ckpt")
    job = EXPORT | {"checkpoint_url": store("trained") + "/", "num_classes": "2", "width": "75", "height": "75"}
    words = _flags(job | page | {"file_format": "ONNX"})
    code, out, err = command(capsys, "export", "--config_path", ZOO, *words)
    assert code == 0 and f"wrote {store('results')}/inceptionv4.onnx" in out, err
    assert _names(store("results")) == {"inceptionv4.onnx"}


@pytest.mark.slow
def test_mindcvs_recipe_on_modelarts(
    store: Callable[[str], str], pictures: Path, tmp_path: Path, capsys, live_file: str
) -> None:
    """Its train.py takes the data from DATA_URL/DATASET and copies ckpt_save_dir to TRAIN_URL."""
    for picture in pictures.rglob("*.*"):
        if picture.is_file():
            Place(store("data/imagenet")).put(picture, picture.relative_to(pictures).as_posix())
    recipe = tmp_path / "inception_v4_ascend.yaml"
    recipe.write_text(MINDCV.read_text() + f"\nenable_modelarts: True\ntrain_url: '{store('results')}'\n")
    words = {
        "data_url": store("data"), "data_cache": tmp_path / "cache", "ckpt_save_dir": tmp_path / "ckpt",
        "num_classes": "none", "image_resize": 75, "batch_size": 4, "num_parallel_workers": 0, "bn_momentum": 0.1,
        "device_target": "CPU", "amp_level": "O0", "distribute": "False", "max_steps": 1, "keep_checkpoint_max": 1,
        "ckpt_path": live_file,
    }  # fmt: skip
    code, _, err = command(capsys, "train", "-c", recipe, *_flags(words))
    assert code == 0, err
    assert "read as a recipe of MindCV" in err and f"data_dir {store('data')}/imagenet" in err
    assert {"config.yaml", "best.safetensors", "checkpoints/step-00000001.pt"} <= _names(store("results"))
    assert list((tmp_path / "cache").rglob("*.png")) or list((tmp_path / "cache").rglob("*.jpg"))
    assert read_weights(store("results")).info.num_classes == 2
