"""Stems for small pictures, against timm's network with the same strides and borders; a file says which it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from in_process import outcome
from live import enliven
from photos import class_folders
from running import TINY, as_flags, tiny
from torch import Tensor, nn

from inception_v4.accelerator import select
from inception_v4.distributed import World
from inception_v4.inference.factory import create_model, open_model
from inception_v4.network.fusion import fuse
from inception_v4.network.model import InceptionV4
from inception_v4.pages.hub import timm_config
from inception_v4.preprocessing import STEMS, Preprocessing
from inception_v4.settings.recipes import ConfigError, build_config
from inception_v4.storage.lock import FolderLock
from inception_v4.training.smallest import last_map
from inception_v4.training.train import prepare
from inception_v4.weights import Weights, WeightsError, WeightsInfo, load_weights, read_weights, save_weights
from inception_v4.weights.writing import write_weights

SMALL = [name for name in STEMS if name != "standard"]


def peer(stem: str, weights: dict[str, Tensor]) -> nn.Module:
    """timm's network with the strides and borders that the stem stands for."""
    network = timm.create_model("inception_v4", num_classes=3).double()
    network.load_state_dict(weights)
    if stem == "stride1":
        network.features[0].conv.stride = (1, 1)
    else:
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.padding = (1, 1)  # those of the blocks have it already
            if isinstance(module, nn.MaxPool2d):
                module.padding = 1
    return network.eval()


def pictures(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side), dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize(("stem", "side"), [("stride1", 39), ("stride1", 52), ("padded", 16), ("padded", 33)])
def test_small_pictures_give_what_timms_layers_give(stem: str, side: int) -> None:
    model = enliven(InceptionV4(3, stem=stem).double()).eval()
    x = pictures(side)
    expected = peer(stem, model.state_dict())(x)
    assert (expected[0] - expected[1]).abs().max() > 1e-3, "two pictures do not differ: nothing would be seen"
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fuse(model)(x), expected, rtol=1e-10, atol=1e-10)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [len(m[0]) for m in maps] == [level["num_chs"] for level in model.feature_info]
    assert [level["reduction"] for level in model.feature_info] == (
        [1, 2, 4, 8, 16] if stem == "stride1" else [2, 4, 8, 16, 32]
    )


@torch.no_grad()
@pytest.mark.parametrize("stem", STEMS)
def test_the_smallest_size_is_the_smallest(stem: str) -> None:
    model, (_, _, smallest) = InceptionV4(3, stem=stem).eval(), STEMS[stem]
    for side in (smallest, smallest + 1, smallest + 20, smallest + 33):
        assert model.forward_features(torch.zeros(1, 3, side, side)).shape[-1] == last_map(side, stem)
    assert last_map(smallest, stem) == 1
    for network in (model, fuse(model)):
        with pytest.raises(ValueError, match=f"needs at least {smallest} a side"):
            network(torch.zeros(1, 3, smallest, smallest - 1))
    with pytest.raises(ValueError, match="stem 'wide' is not one of standard, stride1, padded"):
        InceptionV4(3, stem="wide")


@pytest.mark.parametrize("stem", SMALL)
def test_a_file_says_which_stem_it_has(tmp_path: Path, stem: str) -> None:
    model = enliven(InceptionV4(3, stem=stem))
    how = Preprocessing(STEMS[stem].smallest)
    path = save_weights(model, tmp_path / "small.safetensors", WeightsInfo(3, preprocessing=how, stem=stem))
    info = read_weights(path).info
    assert info.stem == stem and info.preprocessing == how
    assert open_model(str(path)).model.stem == create_model(ckpt_path=str(path)).stem == stem
    assert create_model(ckpt_path=str(path), stem="standard").stem == "standard"
    with pytest.raises(WeightsError, match=f"made for stem {stem}, the network has standard: set stem {stem}"):
        load_weights(InceptionV4(3), path)
    for name, layout in (("w.ckpt", "mindcv"), ("m.ckpt", "modelzoo"), ("w.npz", "tf-slim"), ("w.pth", "cadene")):
        with pytest.raises(WeightsError, match=f"these weights have stem {stem}, which .* write safetensors"):
            write_weights(Weights(model.state_dict(), info), tmp_path / name, layout=layout)
        assert not (tmp_path / name).exists()
    config = timm_config(info)
    assert config["architecture"] == "inception_v4_joined" and config["model_args"] == {"stem": stem}


def test_what_a_description_says_of_the_stem() -> None:
    assert "stem" not in WeightsInfo().to_dict(), "files of the usual network stay as they were"
    assert WeightsInfo.from_dict({}).stem == "standard"
    with pytest.raises(WeightsError, match="stem 'wide' is not one of"):
        WeightsInfo.from_dict({"stem": "wide"})
    with pytest.raises(WeightsError, match=r"32 is too small.* at least 75 pixels, or another stem \(padded from 16\)"):
        WeightsInfo(preprocessing=Preprocessing(32))
    assert (
        WeightsInfo(stem="padded", preprocessing=Preprocessing(32)).with_stem("stride1").preprocessing.image_size == 39
    )


def test_settings_of_too_small_pictures_name_the_stems() -> None:
    with pytest.raises(ConfigError, match=r"image_size 32 .*at least 39 pixels with stem stride1.*padded from 16"):
        build_config({"image_size": 32, "stem": "stride1"})
    with pytest.raises(ConfigError, match=r"image_size 40 .*at least 75 .*stride1 from 39, padded from 16"):
        build_config({"image_size": "40-107"})
    assert build_config({"image_size": "40-107", "stem": "stride1"}).augmentation.first_image_size == 40
    assert build_config({"image_size": 32, "ckpt_path": "w.safetensors"}).augmentation.image_size == 32


def test_a_run_takes_the_stem_of_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = WeightsInfo(2, stem="padded", preprocessing=Preprocessing(32))
    start = str(save_weights(InceptionV4(2, stem="padded"), tmp_path / "small.safetensors", small))

    def stem_of(**settings: object) -> str:
        with FolderLock(print) as lock:
            folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
            loop = prepare(tiny(folder, init="torch", **settings), select("cpu"), World(), lock)
            loop.log.close()
        assert loop.job.info.stem == loop.job.learner.model.stem
        return loop.job.info.stem

    assert stem_of(ckpt_path=start, image_size=32) == "padded"
    assert stem_of(ckpt_path=start, image_size=40, stem="stride1") == "stride1"
    assert "stem stride1, as you said: these weights were trained with padded" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="image_size 32 is too small"):
        usual = save_weights(InceptionV4(2), tmp_path / "usual.safetensors", WeightsInfo(2))
        stem_of(ckpt_path=str(usual), image_size=32)


def test_from_training_to_an_exported_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = class_folders(tmp_path / "photos", {"ape": 8, "bear": 8}, size=40)
    settings = TINY | {
        "dataset": "folder", "data_dir": str(data), "stem": "padded", "image_size": "24-32", "epochs": 2,
        "output_dir": str(tmp_path / "run"), "init": "shallow",
    }  # fmt: skip
    code, _, err = outcome(capsys, "train", *as_flags(settings))
    assert code == 0, err
    best = tmp_path / "run" / "best.safetensors"
    assert read_weights(best).info.stem == "padded" and "stem: padded" in (tmp_path / "run/config.yaml").read_text()
    # A network after few steps names everything alike.
    live = save_weights(enliven(InceptionV4(2, stem="padded")), tmp_path / "live.safetensors", read_weights(best).info)
    code, _, err = outcome(capsys, "export", str(live), "--output", str(tmp_path / "small.onnx"))
    assert code == 0, err
    losses = []
    flags = ["--data-dir", str(data), "--device=cpu", "--workers=0", "--json", "--val-fraction=0.5"]
    for file in (live, tmp_path / "small.onnx"):
        code, out, err = outcome(capsys, "validate", "--ckpt-path", str(file), *flags)
        assert code == 0, err
        losses.append(json.loads(out)["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    code, _, err = outcome(capsys, "predict", str(data / "ape"), "--ckpt-path", str(live), "--device=cpu")
    assert code == 0, err
    for words in (
        ["predict", str(data / "ape")],
        ["validate", "--data-dir", str(data)],
        ["explain", str(data / "ape")],
    ):
        code, _, err = outcome(capsys, *words, "--ckpt-path", str(live), "--device=cpu", "--image-size=12")
        assert code != 0 and "image_size" in err.replace("--image-size", "image_size"), err
    again = as_flags(settings | {"stem": "stride1", "image_size": 40, "resume": "auto", "epochs": 3})
    code, _, err = outcome(capsys, "train", *again)
    assert code != 0 and "stem stride1: the run that goes on has padded: leave it out" in err
