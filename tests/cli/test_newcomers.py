"""A folder of photos by class and nothing else: what is chosen, what is said, and what is left at the end."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from exported import CLASSES, folder, weights_file
from photos import class_folders

from inception_v4.cli.main import run
from inception_v4.data.sources import Source, open_source
from inception_v4.distributed import World
from inception_v4.inference import predict
from inception_v4.settings.defaults import Hardware, choose_defaults
from inception_v4.settings.recipes import build_config
from inception_v4.settings.schema import Config
from inception_v4.training import parts, suit
from inception_v4.training.suit import suit_data

__all__ = ["folder"]


@pytest.fixture
def pretrained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local file in the place of the published weights."""
    for module in (parts, predict):
        monkeypatch.setattr(module, "PRETRAINED", str(weights_file(folder)))


def split(config: Config, part: str) -> Source:
    return open_source(config.data, part, world=World(), seed=config.run.seed)


def names(source: Source) -> set[str]:
    return {source.name(i) for i in range(len(source))}


@pytest.mark.slow
def test_a_folder_of_photos_becomes_a_run(
    pretrained: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = class_folders(tmp_path / "photos", {"ape": 15, "bear": 10})
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data-dir", "photos/", "--pretrained", "--device", "cpu", "--workers", "0"]
    words += ["--image-size", "75", "--epochs", "2"]
    assert run(words) == 0
    said = capsys.readouterr().err
    for part in (
        "image_size", "batch_size 8: ", "lr 0.01 per 32 pictures", "epochs 2: about", "pictures per class are few",
        "as you said: image_size 75, epochs 2", "20 training and 5 validation pictures, 2 classes, 75 px",
        "start from ", "best top-1 ", "curves.png", "next: inception-v4 predict PICTURE --ckpt-path runs/",
    ):  # fmt: skip
        assert part in said, part
    (made,) = (tmp_path / "runs").iterdir()
    config = build_config(
        {k: v for s in yaml.safe_load((made / "config.yaml").read_text()).values() for k, v in s.items()}
    )
    assert (config.augmentation.image_size, config.schedule.epochs) == (75, 2)
    assert (config.data.val_fraction, config.optimizer.lr_base_batch) == (0.2, 32)
    assert (made / "curves.png").read_bytes().startswith(b"\x89PNG") and (made / "best.safetensors").is_file()
    records = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert [record["samples"] for record in records if record["kind"] == "val"] == [5, 5]
    held_out = split(config, "val")
    # The settings in the run directory name the data from anywhere.
    assert names(split(config, "train")) | names(held_out) == {str(p) for p in photos.rglob("*.jpg")}
    assert run(["predict", str(photos / "bear" / "000.jpg"), "--ckpt-path", str(made), "--device", "cpu"]) == 0
    assert "bear" in capsys.readouterr().out


def test_a_dry_run_says_that_more_is_chosen_later(capsys: pytest.CaptureFixture[str]) -> None:
    for words, chosen in ((["--data-dir", "photos"], True), (["--data-dir", "photos", "-c", "finetune"], False)):
        assert run(["train", *words, "--dry-run"]) == 0
        assert ("a run chooses its size, batch" in capsys.readouterr().err) == chosen


def test_predict_in_one_line(pretrained: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(tmp_path / "new", {"x": 1})
    assert run(["predict", str(tmp_path / "new" / "x" / "000.jpg"), "--pretrained", "--device", "cpu"]) == 0
    assert set(CLASSES) & set(capsys.readouterr().out.split())


def test_the_split_is_stratified_and_the_same_every_time(tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", {"ape": 40, "bear": 20, "cat": 1})
    config = build_config({"data_dir": str(photos), "val_fraction": 0.2})
    train, val = split(config, "train"), split(config, "val")
    assert Counter(val.labels) == {0: 8, 1: 4} and Counter(train.labels) == {0: 32, 1: 16, 2: 1}
    assert not names(train) & names(val) and len(names(train) | names(val)) == 61
    assert names(split(config, "val")) == names(val)
    other = build_config({"data_dir": str(photos), "val_fraction": 0.2, "seed": 1})
    assert names(split(other, "val")) != names(val)
    smaller = build_config({"data_dir": str(photos), "val_fraction": 0.1})
    assert names(split(smaller, "val")) < names(val), "a later validation sees no picture that was trained on"


class Device:
    """What `suit_data` asks of an accelerator."""

    label, bf16_pays = "device", False

    def __init__(self, kind: str, gibibytes: float) -> None:
        self.type, self._bytes = kind, int(gibibytes * 2**30)

    def memory(self) -> int:
        return self._bytes


def test_the_choice_follows_memory_and_data_and_leaves_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = class_folders(tmp_path / "few", {"ape": 30, "bear": 30}, size=20)
    many = class_folders(tmp_path / "many", {"ape": 300, "bear": 300}, size=20)

    def chosen(data: Path, device: Device, **given: object) -> tuple[Config, str]:
        monkeypatch.setattr(suit, "select", lambda name: device)
        config = build_config({"data_dir": str(data), "pretrained": True} | given)
        config, reasons = suit_data(config, given)
        return config, "\n".join(reasons)

    roomy, said = chosen(many, Device("cuda", 16))
    assert roomy.data.batch_size == 64 and roomy.training.amp == "fp16" and "16.0 GiB" in said
    expected = choose_defaults(540, 2, hardware=Hardware("cuda", 16 << 30))[0]
    assert {name: roomy.flat()[name] for name in expected} == expected
    tight, said = chosen(many, Device("cuda", 2))
    assert tight.data.batch_size == 8 and tight.network.grad_checkpointing and "2.0 GiB" in said
    assert not roomy.network.grad_checkpointing
    small, _ = chosen(few, Device("cpu", 16))
    assert small.data.batch_size == 8 and small.schedule.epochs > chosen(many, Device("cpu", 16))[0].schedule.epochs
    own, said = chosen(many, Device("cuda", 16), batch_size=4, lr=0.5)
    assert (own.data.batch_size, own.optimizer.lr, own.optimizer.lr_base_batch) == (4, 0.5, None)
    assert "as you said: batch_size 4, lr 0.5" in said
