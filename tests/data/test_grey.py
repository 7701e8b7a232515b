"""Networks of one input channel: every picture is made grey, from the command line to an exported file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
import torch
from augmix import AugMixOnPillow
from in_process import outcome
from live import enliven
from photos import class_folders, photos
from PIL import Image
from running import TINY, as_flags, tiny
from timm.data import create_transform
from torchvision.transforms import InterpolationMode, v2

from inception_v4.accelerator import select
from inception_v4.data.augment import TrainTransform, seeded
from inception_v4.data.crops import with_channels
from inception_v4.data.jpeg import Box
from inception_v4.data.pictures import decode_box, decode_picture
from inception_v4.data.views import eval_transform
from inception_v4.distributed import World
from inception_v4.inference.predict import Predictor
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.recipes import ConfigError, build_config, load_config
from inception_v4.settings.schema import Augmentation
from inception_v4.storage.lock import FolderLock
from inception_v4.training.train import prepare
from inception_v4.weights import WeightsInfo, read_weights, save_weights

GREY = Preprocessing(75, (0.4,), (0.3,))


def test_grey_is_pillows_for_every_kind_of_file_and_for_parts() -> None:
    for data in photos(24):  # colours, grey, CMYK
        ours = with_channels(decode_picture(data, "photo"), 1)
        theirs = np.array(Image.open(io.BytesIO(data)).convert("L"))
        assert torch.equal(ours[0], torch.from_numpy(theirs))
        box = Box(7, 9, ours.shape[1] - 30, ours.shape[2] - 41)
        assert torch.equal(with_channels(decode_box(data, "photo", lambda h, w, box=box: box), 1), box.cut(ours))


def test_a_picture_is_prepared_as_by_timm() -> None:
    theirs = create_transform((1, 75, 75), interpolation="bicubic", mean=(0.0,), std=(1.0,), crop_pct=0.875)
    for data in photos(6):
        ours = eval_transform(GREY)(decode_picture(data, "photo"))
        expected = 255 * theirs(Image.open(io.BytesIO(data)).convert("L"))
        assert ours.shape == expected.shape == (1, 75, 75)
        assert (ours - expected).abs().max() <= 1.01
    grey = torch.arange(100 * 90, dtype=torch.uint8).reshape(1, 100, 90)
    assert torch.equal(with_channels(grey, 3), torch.cat([grey] * 3))


POLICIES = {
    "autoaug": v2.AutoAugment(interpolation=InterpolationMode.BILINEAR, fill=[102]),
    "randaug-m9-n2": v2.RandAugment(2, 9, num_magnitude_bins=11, interpolation=InterpolationMode.BILINEAR, fill=[102]),
    "trivialaugwide": v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=[102]),
    "augmix": AugMixOnPillow(3, 3, -1, interpolation=InterpolationMode.BILINEAR, fill=[102]),
}


@pytest.mark.parametrize("name", POLICIES)
def test_policies_work_on_grey_pictures_as_torchvisions(name: str) -> None:
    how = Augmentation(image_size=75, mean=(0.4,), std=(0.3,), hflip=0, auto_augment=name, interpolation="nearest")
    picture = decode_picture(photos(1)[0], "photo")[:, :75, :75]
    changed = 0
    for seed in range(40):
        ours = TrainTransform(how)(picture, rng := Random(seed))
        plain = with_channels(picture, 1)
        assert ours.shape == (1, 75, 75) and ours.dtype == torch.uint8
        rng = Random(seed)
        rng.random(), rng.random()  # the flips'
        with seeded(rng.getrandbits(64)):
            expected = np.array(POLICIES[name](Image.fromarray(plain[0].numpy())))
        assert torch.equal(ours[0], torch.from_numpy(expected))
        changed += not torch.equal(ours, plain)
    assert changed > 20


@pytest.mark.parametrize("strengths", [0.4, (0.4, 0.3, 0.2, 0.1)])
def test_colour_jitter_leaves_one_channel(strengths: float | tuple[float, ...]) -> None:
    how = Augmentation(image_size=75, mean=(0.4,), std=(0.3,), color_jitter=strengths)
    picture = decode_picture(photos(1)[0], "photo")
    ours, other = (TrainTransform(how)(picture, Random(seed)) for seed in (0, 1))
    assert ours.shape == (1, 75, 75) and not torch.equal(ours, other)


def test_mean_and_std_follow_the_channels(tmp_path: Path) -> None:
    config = build_config({"in_channels": 1})
    assert config.augmentation.mean == config.augmentation.std == (0.5,)
    assert not config.augmentation.given_preprocessing(), "weights that a run starts from still decide"
    recipe = tmp_path / "grey.yaml"
    recipe.write_text("in_channels: 1\nmean: [0.4, 0.5, 0.6]\n")
    config, notices = load_config(recipe)
    assert config.augmentation.mean == pytest.approx((0.5,))
    assert config.augmentation.given_preprocessing().keys() == {"mean"}
    assert notices == ["in_channels 1: mean 0.5, the average of the three given"]
    assert load_config(None, {"in_channels": "1"})[1] == []
    assert build_config({"in_channels": 1, "mean": [0.3], "std": [0.2]}).augmentation.mean == (0.3,)
    assert load_config(None, {"in_channels": "1", "smoke": "true"})[0].augmentation.std == (0.5,)
    with pytest.raises(ConfigError, match="in_channels is 3: give one value per channel, and in_channels 1 for grey"):
        build_config({"mean": [0.5], "std": [0.5]})
    for channels in (2, 4):
        with pytest.raises(ConfigError, match=f"in_channels {channels}: pictures are read as RGB, or as grey for 1"):
            build_config({"in_channels": channels})


@pytest.mark.slow
def test_from_training_to_an_exported_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = class_folders(tmp_path / "photos", {"ape": 8, "bear": 8}, size=80)
    settings = TINY | {
        "dataset": "folder", "data_dir": str(data), "in_channels": 1, "auto_augment": "trivialaugwide", "epochs": 1,
        "max_steps": 1, "mixup": 0.2, "cutmix": 0.2, "re_prob": 0.5, "re_value": "random",
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    code, _, err = outcome(capsys, "train", *as_flags(settings))
    assert code == 0, err
    info = read_weights(tmp_path / "run").info
    assert info.in_channels == 1 and info.preprocessing.mean == info.preprocessing.std == (0.5,)
    # A network after one step names everything alike.
    network = enliven(InceptionV4(2, 1, init="torch"))
    weights, exported = save_weights(network, tmp_path / "live.safetensors", info), tmp_path / "grey.onnx"
    code, _, err = outcome(capsys, "export", str(weights), "--output", str(exported))
    assert code == 0, err
    anonymous = onnx.load(exported)
    del anonymous.metadata_props[:]
    onnx.save(anonymous, tmp_path / "anonymous.onnx")
    results = []
    flags = ["--data-dir", str(data), "--device=cpu", "--workers=0", "--json", "--val-fraction=0.5"]
    for file, *more in (
        (weights,), (exported,), (tmp_path / "anonymous.onnx",), (weights, "--in-channels=1", "--mean=0.2", "--std=0.2")
    ):  # fmt: skip
        code, out, err = outcome(capsys, "validate", "--ckpt-path", str(file), *flags, *more)
        assert code == 0, err
        results.append(json.loads(out))
    assert results[0]["preprocessing"]["mean"] == [0.5]
    for other in results[1:3]:
        assert other["loss"] == pytest.approx(results[0]["loss"], rel=1e-4)
    assert results[3]["loss"] != pytest.approx(results[0]["loss"], rel=5e-3)
    assert outcome(capsys, "predict", str(data / "ape"), "--ckpt-path", str(exported), "--device=cpu")[0] == 0
    code, _, err = outcome(capsys, "train", *as_flags(settings | {"in_channels": 2}))
    assert code != 0 and "in_channels 2" in err


def test_weights_for_colours_are_adapted(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "photos", {"ape": 6, "bear": 6}, size=20)
    colours = InceptionV4(2, init="torch")
    how = Preprocessing(75, (0.3, 0.4, 0.5), (0.1, 0.2, 0.3))
    start = save_weights(colours, tmp_path / "colours.safetensors", WeightsInfo(2, preprocessing=how))
    settings = {"dataset": "folder", "data_dir": str(data), "ckpt_path": str(start), "in_channels": 1}
    loop = prepare(tiny(tmp_path / "run", **settings), select("cpu"), World(), FolderLock(print))
    loop.log.close()
    first = next(loop.job.learner.model.parameters())
    assert torch.equal(first, next(colours.parameters()).sum(1, keepdim=True))
    (batch, *_) = loop.loader.epoch(0)
    assert batch.images.shape == (4, 1, 75, 75)
    normalised = loop.job.learner.normalise(batch.images)
    torch.testing.assert_close(normalised, (batch.images.float() / 255 - 0.4) / 0.2)


@pytest.mark.slow
def test_colours_are_made_grey_for_a_network_that_takes_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = enliven(InceptionV4(3, 1, init="torch"))
    weights = save_weights(network, tmp_path / "w.safetensors", WeightsInfo(3, in_channels=1, preprocessing=GREY))
    (data,) = photos(1)
    (tmp_path / "colours.jpg").write_bytes(data)
    Image.open(io.BytesIO(data)).convert("L").save(tmp_path / "grey.png")
    Image.open(io.BytesIO(data)).rotate(180).save(tmp_path / "other.png")
    predictor = Predictor(str(weights), device="cpu", amp="off")
    colours, grey, other = predictor.probabilities([tmp_path / f for f in ("colours.jpg", "grey.png", "other.png")])
    assert torch.equal(colours, grey) and not torch.allclose(colours, other, rtol=1e-3)
    root = class_folders(tmp_path / "photos" / "val", {"a": 1, "b": 1, "c": 1}, size=20).parent
    words = ["validate", "--data-dir", str(root), "--num-classes=3", "--device=cpu", "--workers=0", "--ckpt-path"]
    code, _, err = outcome(capsys, *words, str(weights), "--mean=0.4,0.5,0.6", "--std=0.2,0.2,0.2")
    assert code != 0 and "have 3 values and the network takes 1 channels" in err
    four = WeightsInfo(3, in_channels=4, preprocessing=Preprocessing(75, (0.5,) * 4, (0.5,) * 4))
    save_weights(InceptionV4(3, 4, init="torch"), tmp_path / "four.safetensors", four)
    code, _, err = outcome(capsys, *words, str(tmp_path / "four.safetensors"))
    assert code != 0 and "the network takes 4: give it tensors from Python" in err
