"""Which folders of a data folder play which part, and how their classes are numbered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from live import enliven
from photos import class_folders
from PIL import Image
from running import tiny
from temporary import NewFolder
from timm.data.readers.reader_image_folder import ReaderImageFolder

from inception_v4.accelerator import select
from inception_v4.cli.main import run
from inception_v4.data.folders import in_order
from inception_v4.data.sources import FolderSource, Source, open_source
from inception_v4.distributed import World
from inception_v4.inference.network import Signature, export_description
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.recipes import load_config
from inception_v4.settings.schema import Data
from inception_v4.storage.lock import FolderLock
from inception_v4.training.job import weights_info
from inception_v4.training.train import prepare
from inception_v4.weights import WeightsInfo, read_weights, save_weights
from inception_v4.weights.record import WeightsError

NUMBERS = tuple(str(number) for number in range(1, 13))
SIZE = Preprocessing(image_size=75)


def opened(root: Path, split: str, *, alone: bool = False, **settings) -> Source:
    return open_source(Data(data_dir=str(root), **settings), split, world=World(), seed=0, alone=alone)


def validated(capsys: pytest.CaptureFixture[str], weights: Path, data: Path, *flags: str) -> tuple[dict, str]:
    words = ["validate", "--ckpt-path", str(weights), "--data-dir", str(data), "--device=cpu", "--workers=0", "--json"]
    code = run([*words, *flags])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out), err


def test_a_test_folder_without_a_val_folder_is_left_aside_and_said(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"ape": 8, "bear": 8})
    class_folders(tmp_path / "test", {"ape": 3, "bear": 3})
    for split, count in (("train", 12), ("val", 4)):
        source = opened(tmp_path, split, val_fraction=0.25)
        (line,) = source.remarks
        assert len(source) == count
        assert "no 'val' folder: 0.25 of 'train' is held out" in line and line.endswith("--val-split test)")
    assert len(opened(tmp_path, "val", val_split="test")) == 6
    assert opened(tmp_path, "val", val_split="test").remarks == ()


def test_a_test_folder_that_is_a_class_or_holds_none_is_no_remark(tmp_path: Path) -> None:
    class_folders(tmp_path / "classes", {"ape": 4, "test": 4})
    assert opened(tmp_path / "classes", "train").remarks == ()
    class_folders(tmp_path / "flat" / "train", {"ape": 4, "bear": 4})
    class_folders(tmp_path / "flat", {"test": 4})
    assert opened(tmp_path / "flat", "train").remarks == ()


def test_validation_has_no_need_of_the_training_folders_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class_folders(tmp_path / "train", {"ape": 1, "cat": 1, "dog": 1})
    class_folders(tmp_path / "val", {"cat": 3, "bear": 2}, size=30)
    with pytest.raises(ValueError, match="class folders differ"):
        opened(tmp_path, "train")
    assert opened(tmp_path, "val", alone=True).class_names == ("bear", "cat")
    info = WeightsInfo(4, ("ape", "bear", "cat", "dog"), preprocessing=SIZE)
    weights = save_weights(InceptionV4(4, init="torch"), tmp_path / "w.safetensors", info)
    result, _ = validated(capsys, weights, tmp_path, "--per-class")
    assert {row["class"]: row["samples"] for row in result["per_class"]} == {"bear": 2, "cat": 3}
    assert run(["train", "--data-dir", str(tmp_path), "--device=cpu", "--output-dir", str(tmp_path / "run")]) != 0
    assert "class folders differ" in capsys.readouterr().err


def test_natural_order_is_that_of_timms_own_reader(tmp_path: Path) -> None:
    names = ("1", "10", "2", "b", "C", "a10", "a2", "Class 3", "class 20", "x2y10", "x2y9", "x10y1", "n02", "z²", "é1")
    class_folders(tmp_path, dict.fromkeys(names, 2), size=8)
    theirs = ReaderImageFolder(str(tmp_path))
    assert in_order(names, "natural") == tuple(theirs.class_to_idx)
    assert in_order(names, "text") == tuple(sorted(names)) != in_order(names, "natural")
    assert in_order(["B", "b", "01", "1"], "natural") == in_order(["1", "01", "b", "B"], "natural")
    source = FolderSource(tmp_path, class_order="natural")
    ours = {source.name(i): source.labels[i] for i in range(len(source))}
    assert ours == {str(file): label for file, label in theirs.samples}
    assert opened(tmp_path, "train").class_names == in_order(names, "text")
    assert opened(tmp_path, "train", class_order="natural").class_names == in_order(names, "natural")


def test_a_run_writes_its_class_order_down_and_an_export_keeps_it(tmp_path: Path) -> None:
    class_folders(tmp_path / "photos", dict.fromkeys(NUMBERS, 4), size=20)
    settings = {"dataset": "folder", "data_dir": str(tmp_path / "photos"), "init": "torch", "class_order": "natural"}
    loop = prepare(tiny(tmp_path / "run", **settings), select("cpu"), World(), FolderLock(print))
    loop.log.close()
    info = weights_info(loop.job)
    assert info.class_order == "natural" and info.class_names == NUMBERS
    assert WeightsInfo.from_dict(json.loads(info.to_json())) == info
    assert WeightsInfo.from_dict(json.loads(export_description(info, Signature()))).class_order == "natural"
    with pytest.raises(WeightsError, match="class_order 'size' is not one of text, natural"):
        WeightsInfo.from_dict({"class_order": "size"})


def test_a_recipe_of_timm_sorts_classes_as_timm(tmp_path: Path) -> None:
    for name, line, order in (("timm", "sched: cosine", "natural"), ("mindcv", "mode: 0", "text")):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(line + "\nmodel: inception_v4\n")
        config, notices = load_config(recipe, {"data_dir": "photos"})
        assert config.data.class_order == order
        assert any("class_order natural" in notice for notice in notices) == (order == "natural")
    assert (
        load_config(tmp_path / "timm.yaml", {"data_dir": "photos", "class_order": "text"})[0].data.class_order == "text"
    )


@pytest.fixture(scope="module")
def numbered(module_folder: NewFolder) -> tuple[Path, dict[str, torch.Tensor]]:
    """Twelve classes called 1 to 12 of two plain pictures each, and weights that tell them apart in timm's order."""
    root = module_folder("numbered")
    rng = np.random.default_rng(0)
    network = enliven(timm.create_model("inception_v4", num_classes=12)).eval()
    images, labels = [], []
    for label, name in enumerate(NUMBERS):
        (root / "val" / name).mkdir(parents=True)
        colour = rng.integers(0, 255, 3)
        for number in range(2):
            pixels = np.full((90, 90, 3), np.clip(colour + number, 0, 255), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "val" / name / f"{number}.png")
            images.append(torch.from_numpy(pixels[:75, :75]).permute(2, 0, 1))
            labels.append(label)
    with torch.inference_mode():
        pooled = network.forward_head(network.forward_features(torch.stack(images) / 127.5 - 1), pre_logits=True)
    centred = (pooled - pooled.mean(0)).double()
    solution = torch.linalg.pinv(centred) @ torch.nn.functional.one_hot(torch.tensor(labels)).double()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["last_linear.weight"] = solution.T.float().contiguous()
    state["last_linear.bias"] = (-pooled.mean(0).double() @ solution).float()
    return root, state


def test_a_checkpoint_of_timm_without_names_takes_timms_order(
    numbered: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, state = numbered
    weights = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 3, "arch": "inception_v4", "state_dict": state}, weights)
    result, err = validated(capsys, weights, data, "--image-size=75")
    assert result["top1"] > 90
    assert "natural order (1, 2, 3, ...), as timm does; --class-order text" in err and "look ordered" not in err
    result, err = validated(capsys, weights, data, "--image-size=75", "--class-order=text")
    assert result["top1"] < 20
    assert "of 22 pictures 0.00 % are named right" in err and "give --class-order natural" in err


@pytest.mark.slow
def test_weights_of_this_project_keep_their_order_and_wrong_names_are_said(
    numbered: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, state = numbered
    network = InceptionV4(12)
    network.load_state_dict(state)
    nameless = save_weights(network, tmp_path / "nameless.safetensors", WeightsInfo(12, preprocessing=SIZE))
    assert read_weights(nameless).info.class_order == "text"
    result, err = validated(capsys, nameless, data)
    assert result["top1"] < 20 and "give --class-order natural" in err
    for names, right in ((in_order(NUMBERS, "text"), False), (NUMBERS, True)):
        info = WeightsInfo(12, names, preprocessing=SIZE)
        result, err = validated(capsys, save_weights(network, tmp_path / f"{right}.safetensors", info), data)
        assert (result["top1"] > 90) == right
        assert ("the names in the weights are in the wrong order" in err) == (not right)
