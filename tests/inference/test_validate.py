"""Which pictures are validated, with which labels, prepared how."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from photos import class_folders
from running import ROOT, environment, tiny

from inception_v4.cli.main import run
from inception_v4.data.labelled import ArraySource
from inception_v4.inference.data_record import KEY, record, validation_data
from inception_v4.inference.predictions import PREDICTIONS, read_predictions
from inception_v4.inference.validate import match_labels
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.recipes import build_config, to_yaml
from inception_v4.settings.schema import Data
from inception_v4.storage.lock import FolderLock
from inception_v4.training.train import train
from inception_v4.weights import WeightsInfo, read_weights, save_weights

NAMES = ("ape", "bear", "cat", "dog")


def pictures(*names: str) -> ArraySource:
    """One picture per class."""
    images = np.zeros((len(names), 8, 8, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(len(names)), class_names=names, title="drawn")


def test_other_names_in_the_same_number_are_no_match() -> None:
    with pytest.raises(ValueError, match=r"class 0 is 'ant' and 'ape', 1 is 'bee' and 'bear', 2 is 'cow' and 'cat'\)"):
        match_labels(pictures("ant", "bee", "cow", "dog"), NAMES, 4, asked=None)
    with pytest.raises(ValueError, match="--num-classes 4 to say that labels are indices"):
        match_labels(pictures("ape", "bear", "cat", "eel"), NAMES, 4, asked=None)
    source, remarks = match_labels(pictures("ant", "bee", "cow", "dog"), NAMES, 4, asked=4)
    assert source.labels == [0, 1, 2, 3]
    assert len(remarks) == 1 and "indices" in remarks[0] and "0 is 'ant' and 'ape'" in remarks[0]


def test_the_same_names_in_another_order_or_some_of_them_are_matched_by_name() -> None:
    for asked in (None, 4):
        assert match_labels(pictures("dog", "ape", "cat", "bear"), NAMES, 4, asked=asked)[0].labels == [3, 0, 2, 1]
        assert match_labels(pictures("cat", "bear"), NAMES, 4, asked=asked)[0].labels == [2, 1]
    twice = ("crane", "ape", "crane")
    with pytest.raises(ValueError, match="different names"):
        match_labels(pictures("ape", "bear", "crane"), twice, 3, asked=None)
    with pytest.raises(ValueError, match=r"2 classes .* and the weights 3"):
        match_labels(pictures("ape", "crane"), twice, 3, asked=None)
    unnamed, remarks = match_labels(pictures("ape", "bear"), None, 2, asked=None)
    assert unnamed.labels == [0, 1] and remarks == []


def test_a_runs_weights_know_the_pictures_that_they_were_validated_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    train(tiny(folder, shapes_classes=3, val_samples=7, epochs=1, max_steps=1, init="torch", lr=1e-6, bn_momentum=1.0))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (expected,) = [r for r in records if r["kind"] == "val"]
    moved = tmp_path / "given-away.safetensors"
    shutil.copy(folder / "best.safetensors", moved)
    for source in (folder / "best.safetensors", moved):
        capsys.readouterr()
        code = run(["validate", "--ckpt-path", str(source), "--device=cpu", "--workers=0", "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        found = json.loads(out)
        assert found["samples"] == 7 and found["top1"] == pytest.approx(expected["top1"])
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert "shapes, as recorded with the weights" in err
    assert str(tmp_path) not in json.dumps(read_weights(moved).info.to_dict()), "no path of this machine"
    kept = read_predictions(folder / PREDICTIONS)
    assert kept.weights_sha256 == hashlib.sha256(moved.read_bytes()).hexdigest() and len(kept.classes or ()) == 3
    right = [picture.top[0][0] == picture.label for picture in kept.pictures]
    assert len(right) == 7 and kept.top1 == expected["top1"] == pytest.approx(100 * sum(right) / 7)
    assert all(Path(picture.path).is_file() for picture in kept.pictures), "the pictures can be looked at"
    for picture in kept.pictures:
        assert picture.prob_label == pytest.approx(dict(picture.top)[picture.label], rel=1e-4, abs=1e-30)


@pytest.fixture
def split(tmp_path: Path) -> tuple[Path, Path, WeightsInfo]:
    """Pictures by class, the directory of a run on them as it leaves it, and what its weights say."""
    photos = class_folders(tmp_path / "photos", {"ape": 10, "bear": 10}, size=20)
    config = build_config({"data_dir": str(photos), "val_fraction": 0.3, "seed": 7})
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.yaml").write_text(to_yaml(config))
    return photos, run_folder, WeightsInfo(2, extra={KEY: record(config.data, config.run.seed)})


def test_the_folder_is_in_the_run_directory_and_the_split_in_the_weights(split: tuple[Path, Path, WeightsInfo]) -> None:
    photos, folder, info = split
    assert str(photos) not in json.dumps(info.to_dict())
    for source in (folder, folder / "best.safetensors", folder / "exported.onnx"):
        data, seed = validation_data(Data(), None, source=str(source), info=info)
        assert (data.data_dir, data.val_fraction, seed) == (str(photos), 0.3, 7)
    elsewhere = str(folder.parent / "moved" / "best.safetensors")
    with pytest.raises(ValueError, match=r"moved/best\.safetensors was validated on .*config\.yaml.*give --data-dir"):
        validation_data(Data(), None, source=elsewhere, info=info)
    data, seed = validation_data(Data(data_dir=str(photos)), None, source=elsewhere, info=info)
    assert (data.data_dir, data.val_fraction, seed) == (str(photos), 0.3, 7), "the same pictures stay held out"
    data, seed = validation_data(Data(data_dir=str(photos), val_fraction=0.5), 1, source=elsewhere, info=info)
    assert (data.val_fraction, seed) == (0.5, 1), "what is given wins"
    with pytest.raises(ValueError, match=r"does not say which pictures .*--data-dir FOLDER"):
        validation_data(Data(batch_size=4), None, source=elsewhere, info=WeightsInfo(2))


def test_other_data_and_another_runs_directory_are_not_mixed_with_the_record(
    split: tuple[Path, Path, WeightsInfo],
) -> None:
    photos, folder, info = split
    other = Data(dataset="cifar10", data_dir="x")
    assert validation_data(other, None, source=str(folder), info=info) == (other, None)
    of_another = info.replace(extra={KEY: info.extra[KEY] | {"seed": 8}})
    for content in ((folder / "config.yaml").read_text(), "not: a setting of ours\n", "[", "- 1\n"):
        (folder / "config.yaml").write_text(content)
        with pytest.raises(ValueError, match="not beside it: give --data-dir"):
            validation_data(Data(), None, source=str(folder), info=of_another)
    named = info.replace(extra={KEY: info.extra[KEY] | {"val_split": "holdout"}})
    data, _ = validation_data(Data(data_dir=str(photos)), None, source="w", info=named)
    assert data.val_split is None, "a copy without that folder"
    for broken in ({"val_fraction": 3}, {"seed": "x"}, {"val_split": 5}):
        damaged = info.replace(extra={KEY: info.extra[KEY] | broken})
        with pytest.raises(ValueError, match="not usable: give --data-dir"):
            validation_data(Data(data_dir=str(photos)), None, source="w", info=damaged)


def test_a_run_writes_down_where_its_data_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inception_v4.accelerator import select
    from inception_v4.distributed import World
    from inception_v4.training.job import weights_info
    from inception_v4.training.train import prepare

    class_folders(tmp_path / "photos", {"ape": 6, "bear": 6}, size=20)
    monkeypatch.chdir(tmp_path)
    settings = {"dataset": "folder", "data_dir": "photos", "init": "torch"}
    loop = prepare(tiny(tmp_path / "run", **settings), select("cpu"), World(), FolderLock(print))
    loop.log.close()
    monkeypatch.chdir("/")
    data, _ = validation_data(Data(), None, source=str(tmp_path / "run"), info=weights_info(loop.job))
    assert data.data_dir == str(tmp_path / "photos")


@pytest.mark.slow
def test_smoke_leaves_the_files_preprocessing_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = Preprocessing(image_size=80, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear")
    info = WeightsInfo(2, ("ape", "bear"), preprocessing=how)
    path = save_weights(InceptionV4(2, init="torch"), tmp_path / "w.safetensors", info)
    photos = class_folders(tmp_path / "photos" / "val", {"ape": 12, "bear": 12}, size=20).parent
    words = ["validate", "--ckpt-path", str(path), "--data-dir", str(photos), "--smoke", "--device=cpu", "--json"]
    assert run(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["preprocessing"] == how.to_dict() and result["samples"] == 16
    assert run([*words, "--image-size=90"]) == 0
    assert json.loads(capsys.readouterr().out)["preprocessing"]["image_size"] == 90


@pytest.mark.slow
def test_a_predictor_leaves_the_switches_of_the_process_alone(tmp_path: Path) -> None:
    path = save_weights(InceptionV4(2, init="torch"), tmp_path / "w.safetensors", WeightsInfo(2))
    code = """
import sys, torch
from inception_v4 import Predictor
from inception_v4.accelerator.glibc import keep_freed_memory
torch.use_deterministic_algorithms(True, warn_only=True)
torch.set_float32_matmul_precision("medium")
torch.manual_seed(0)
Predictor(sys.argv[1], device="cpu")
print(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
      torch.get_float32_matmul_precision(), keep_freed_memory.cache_info().currsize)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=environment(), cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["True", "True", "medium", "0"]
