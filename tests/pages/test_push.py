"""`push`: what it would push, what timm makes of it, and the whole way to a hub on loopback and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import yaml
from finding import HOW, NAMES, finder, pixels, scene
from loopback_hub import TOKEN, Hub, loopback_hub
from made_run import made, make_run, several_classes
from temporary import NewFolder

from inception_v4.cli.main import run
from inception_v4.data.normalise import Normalise
from inception_v4.inference.factory import open_model
from inception_v4.pages.hub import timm_config
from inception_v4.weights import WeightsInfo, read_weights, save_weights


@pytest.fixture(scope="module")
def finished(module_folder: NewFolder) -> Path:
    return made(module_folder("push"), per_class=3)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    with loopback_hub() as address:
        constants = {
            "ENDPOINT": address, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        }  # fmt: skip
        for name, value in constants.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield address


def test_a_dry_run_shows_what_would_be_pushed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "repository"
    assert run(["push", str(finished), "me/found", "--dry-run", f"-o{out}", "--license=apache-2.0"]) == 0
    shown = capsys.readouterr()
    names = [path.name for path in sorted(out.iterdir())]
    assert names == ["README.md", "accuracy.png", "config.json", "loss.png", "model.safetensors"]
    assert all(name in shown.out for name in names) and "nothing was pushed" in shown.err
    assert json.loads((out / "config.json").read_text())["label_names"] == list(NAMES)


@pytest.mark.slow
def test_timm_loads_what_is_pushed(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    assert run(["push", str(finished), "me/found", "--dry-run", f"-o{out}"]) == 0
    picture = Normalise(HOW)(pixels(scene("disc", 1, 1))[None])
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    ours = open_model(str(finished)).model
    with torch.inference_mode():
        assert torch.allclose(theirs(picture), ours(picture), atol=1e-4)
        assert theirs(picture).argmax() == NAMES.index("disc")
    how = timm.data.resolve_model_data_config(theirs)
    assert tuple(how["input_size"]) == (3, HOW.image_size, HOW.image_size) and how["crop_pct"] == HOW.crop_pct
    assert tuple(how["mean"]) == HOW.mean and how["interpolation"] == HOW.interpolation


def test_the_card_has_the_runs_own_figures_and_no_place_of_this_machine(finished: Path, tmp_path: Path) -> None:
    assert run(["push", str(finished), "me/found", "--dry-run", f"-o{tmp_path}"]) == 0
    card = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert [m["value"] for m in front["model-index"][0]["results"][0]["metrics"]] == [82.14, 100.0]
    assert (
        "82.14 %" in card and "bars, disc, nothing" in card and "| lr | 0.02 |" in card and "![Loss](loss.png)" in card
    )
    assert str(finished.parent) not in card and "data_dir" not in card
    assert not any(str(finished.parent) in path.read_text() for path in tmp_path.glob("*.json"))


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of huggingface_hub with a new httpx
def test_a_run_goes_to_the_hub_and_comes_back(
    hub: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["push", str(finished), "me/found", "--private"]) == 0
    assert capsys.readouterr().out.strip() == f"{hub}/me/found" and Hub.private == {"me/found": True}
    assert set(Hub.repositories["me/found"]) == {
        "README.md", "accuracy.png", "config.json", "loss.png", "model.safetensors"
    }  # fmt: skip
    assert not [path for path in finished.iterdir() if path.name.startswith(".repository")]
    back = read_weights("me/found")
    assert back.info.class_names == NAMES and back.info.preprocessing == HOW
    before = read_weights(str(finished)).state
    assert all(torch.equal(tensor, before[name]) for name, tensor in back.state.items())


def test_a_refusal_is_one_line(
    hub: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert run(["push", str(finished), "me/found"]) == 1
    assert "set HF_TOKEN" in capsys.readouterr().err and Hub.repositories == {}
    assert run(["push", str(finished), "found"]) == 2 and "owner/name" in capsys.readouterr().err
    unfinished = make_run(tmp_path / "run", finished.parent.parent / "pictures", None)
    assert run(["push", str(unfinished), "me/found"]) == 1 and "no best.safetensors" in capsys.readouterr().err


def test_grey_networks_are_grey_in_timm() -> None:
    config = timm_config(WeightsInfo(5, in_channels=1).with_channels(1))
    assert config["model_args"] == {"in_chans": 1} and config["pretrained_cfg"]["input_size"][0] == 1
    assert "label_names" not in config


def test_torch_hub_loads_the_network(tmp_path: Path) -> None:
    root = str(Path(__file__).parent.parent.parent)
    model = torch.hub.load(root, "inception_v4", source="local", ckpt_path=str(finder(tmp_path)))
    assert model.num_classes == len(NAMES)


def test_no_setting_says_where_things_lie(finished: Path, tmp_path: Path) -> None:
    places = {"ckpt_path": "/home/alice/base.safetensors", "teacher_ckpt": "/mnt/b/teacher.pth", "data_cache": "/mnt/c",
              "class_weights": "/srv/weights.txt", "upload_to": "s3://bucket/runs", "teacher": "resnet18"}  # fmt: skip
    told = make_run(tmp_path / "run", finished.parent.parent / "pictures", finished / "best.safetensors", **places)
    assert run(["push", str(told), "me/found", "--dry-run", f"-o{tmp_path / 'out'}"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| ckpt_path | base.safetensors |" in card and "| class_weights | weights.txt |" in card
    assert not [word for word in ("alice", "/mnt", "/srv", "s3:", "bucket") if word in card]


def test_a_card_of_several_classes_says_how_to_read_the_outputs(finished: Path, tmp_path: Path) -> None:
    weights = open_model(str(finished))
    save_weights(weights.model, tmp_path / "several.safetensors", weights.info.replace(multi_label=True))
    told = several_classes(make_run(tmp_path / "run", finished.parent.parent / "pictures", tmp_path /
                                    "several.safetensors", loss="bce", monitor="map"))  # fmt: skip
    assert run(["push", str(told), "me/found", "--dry-run", f"-o{tmp_path / 'out'}"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "sigmoid" in card and "| mAP | 90.00 % |" in card and "worst class" not in card
    (result,) = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "map", "name": "mAP", "value": 90.0}]
