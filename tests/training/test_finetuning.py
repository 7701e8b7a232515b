"""Fine-tuning prepares pictures as its weights need them, and says so; what was given wins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from photos import class_folders
from running import TINY, tiny
from temporary import NewFolder

from inception_v4.accelerator import select
from inception_v4.distributed import World
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, Preprocessing
from inception_v4.settings.recipes import build_config, load_config
from inception_v4.settings.schema import Network
from inception_v4.storage.lock import FolderLock
from inception_v4.training.loop import Loop
from inception_v4.training.parts import Start, start_network
from inception_v4.training.suit import suit_data
from inception_v4.training.train import prepare, train
from inception_v4.weights import Weights, WeightsInfo, read_weights, save_weights
from inception_v4.weights.source import sidecar
from inception_v4.weights.writing import write_weights

OWN = Preprocessing(
    image_size=107, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.9, interpolation="bilinear", antialias=False
)


@pytest.fixture(scope="module")
def weights(module_folder: NewFolder) -> Path:
    """One network in files of several layouts, those of others without a word about themselves."""
    folder = module_folder("weights")
    torch.manual_seed(0)
    model = InceptionV4(3)
    save_weights(model, folder / "ours.safetensors", WeightsInfo(3, preprocessing=OWN))
    for name, layout in (("mindcv.ckpt", "mindcv"), ("modelzoo.ckpt", "modelzoo"), ("timm.pth", "torch")):
        write_weights(Weights(model.state_dict(), WeightsInfo(3)), folder / name, layout=layout)
        sidecar(folder / name).unlink()
    return folder


def prepared(folder: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> tuple[Loop, list[str]]:
    """The parts of a run, and the lines it says about the preparation of pictures."""
    with FolderLock(print) as lock:
        loop = prepare(tiny(folder, init="torch", **changes), select("cpu"), World(), lock)
        loop.log.close()
    return loop, [line for line in capsys.readouterr().err.splitlines() if "prepared" in line]


@torch.inference_mode()
def test_weights_keep_their_function_where_a_recipe_has_another_epsilon(live_file: str) -> None:
    def start(epsilon: float) -> Start:
        network = Network(ckpt_path=live_file, bn_eps=epsilon, init="torch")
        return start_network(network, 2, seed=1, state=None, usual=Preprocessing(), given={})

    usual, other = start(1e-3), start(1e-5)
    assert any("from epsilon 0.001 to 1e-05" in line for line in other.messages)
    assert not any("epsilon" in line for line in usual.messages)
    pictures = torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = usual.model.double().eval()(pictures)
    torch.testing.assert_close(other.model.double().eval()(pictures), expected, rtol=1e-5, atol=1e-5)
    for module in usual.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-5
    assert (usual.model(pictures) - expected).abs().max() > 1e-4, "without the shift it is another function"


@pytest.mark.parametrize("name", ["mindcv.ckpt", "modelzoo.ckpt"])
def test_weights_of_mindspore_bring_their_mean_and_std(weights: Path, tmp_path: Path, capsys, name: str) -> None:
    loop, said = prepared(tmp_path, capsys, ckpt_path=str(weights / name))
    usual = read_weights(weights / name).info.preprocessing
    assert (usual.mean, usual.std, usual.antialias) == (IMAGENET_MEAN, IMAGENET_STD, False)
    assert loop.job.info.preprocessing == usual.replace(image_size=75)
    assert load_config(loop.folder.path / "config.yaml")[0].augmentation.preprocessing() == loop.job.info.preprocessing
    black = loop.job.learner.normalise(torch.zeros(1, 3, 75, 75, dtype=torch.uint8))
    expected = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(black[0, :, 40, 40], expected)
    assert len(said) == 1 and f"usual for {name.removesuffix('.ckpt')}" in said[0]


def test_everything_but_the_size_is_the_weights_and_is_written_into_the_run(
    weights: Path, tmp_path: Path, capsys
) -> None:
    loop, said = prepared(tmp_path, capsys, ckpt_path=str(weights / "ours.safetensors"))
    assert loop.job.info.preprocessing == OWN.replace(image_size=75)
    assert load_config(tmp_path / "config.yaml")[0].augmentation.preprocessing() == loop.job.info.preprocessing
    assert len(said) == 1 and "usual" not in said[0] and "(0.1, 0.2, 0.3)" in said[0]


def test_what_was_given_wins_and_what_was_not_does_not(weights: Path, tmp_path: Path, capsys) -> None:
    given = {"mean": INCEPTION_MEAN, "interpolation": "bicubic"}
    loop, said = prepared(tmp_path, capsys, ckpt_path=str(weights / "ours.safetensors"), **given)
    assert loop.job.info.preprocessing == OWN.replace(image_size=75, **given)
    assert "as you said: " in said[0] and "mean (0.5, 0.5, 0.5)" in said[0] and "interpolation bicubic" in said[0]


def test_weights_that_say_nothing_else_and_no_weights_at_all(weights: Path, tmp_path: Path, capsys) -> None:
    for number, path in enumerate((str(weights / "timm.pth"), None)):
        loop, said = prepared(tmp_path / str(number), capsys, ckpt_path=path)
        assert loop.job.info.preprocessing == Preprocessing(image_size=75) and len(said) == (path is not None)


def test_settings_chosen_for_the_data_and_smoke_count_as_nothing_given(weights: Path, tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", {"ape": 12, "bear": 12})
    asked = {"data_dir": str(photos), "ckpt_path": str(weights / "mindcv.ckpt"), "device": "cpu"}
    config, _ = suit_data(build_config(asked), asked)
    assert config.augmentation.given_preprocessing().keys() <= {"image_size"}
    smoke, _ = load_config("finetune", asked | {"smoke": "true"})
    assert smoke.augmentation.image_size == 75 and not smoke.augmentation.given_preprocessing()
    recipe, _ = load_config("imagenet_momentum_mindcv", {"smoke": "true", "image_size": "80"})
    assert recipe.augmentation.image_size == 80
    assert recipe.augmentation.given_preprocessing().keys() == {
        "image_size", "mean", "std", "interpolation", "antialias", "exif_rotation",
    }  # fmt: skip


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_it_began_without_its_first_weights(weights: Path, tmp_path: Path, capsys) -> None:
    first = tmp_path / "first.safetensors"
    first.write_bytes((weights / "ours.safetensors").read_bytes())
    settings = TINY | {"init": "torch", "ckpt_path": str(first), "output_dir": str(tmp_path / "run"), "max_steps": 1}
    train(build_config(settings))
    assert read_weights(tmp_path / "run").info.preprocessing == OWN.replace(image_size=75)
    first.unlink()
    loop, _ = prepared(tmp_path / "run", capsys, ckpt_path=str(first), max_steps=2, resume="auto")
    assert loop.job.learner.step == 1 and loop.job.info.preprocessing == OWN.replace(image_size=75)
