"""8-bit files that are kept: made anew for whatever decides what is in them, of everything that the weights say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import HOW, drawn, folder, network
from huggingface_hub import constants
from weights_cases import tiny_state

from inception_v4.data.shapes import draw_shape
from inception_v4.export import eight_bit
from inception_v4.export import formats as export_formats
from inception_v4.export.eight_bit import eight_bit_file
from inception_v4.export.exporting import ExportReport
from inception_v4.export.plan import Plan
from inception_v4.export.target import Target
from inception_v4.inference.network import Signature, accelerator_for, open_network
from inception_v4.network.model import InceptionV4
from inception_v4.weights import WeightsInfo
from inception_v4.weights.source import Located

__all__ = ["folder"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    path = tmp_path / "calibration"
    path.mkdir()
    for number in range(10):
        draw_shape(("star", "circle", "triangle")[number % 3], number, 75).save(path / f"{number}.png")
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Located]:
    """Of what files were made, without making them: what is in them is not the question."""
    pytest.importorskip("onnxruntime")
    sources: list[Located] = []

    def write(source: Located, path: Path, target: Target) -> ExportReport:
        sources.append(source)
        path.write_bytes(b"8 bits")
        return ExportReport("", checks=["as it should be"])

    monkeypatch.setattr(eight_bit, "export_model", write)
    return sources


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "net.pth"
    torch.save(tiny_state(3), path)
    return path


def test_a_kept_file_is_of_the_same_weights_pictures_programs_and_processor(
    weights: Path, pictures: Path, made: list[Located], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_anew(calibration: object = pictures) -> bool:
        """Whether the first of two times makes one; the second never does."""
        counts = [len(made)]
        for _ in range(2):
            eight_bit_file(str(weights), runtime="onnx", pictures=str(calibration), image_size=None)
            counts.append(len(made))
        assert counts[1] == counts[2]
        return counts[0] < counts[1]

    assert made_anew()
    for change in (
        lambda: (pictures / "0.png").write_bytes(b"another picture"),
        lambda: os.utime(pictures / "1.png", (1, 1)),
        lambda: (pictures / "2.png").rename(pictures / "20.png"),
        lambda: (tmp_path / "net.pth.json").write_text(json.dumps({"class_names": ["a", "b", "c"]})),
        lambda: monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another"),
        lambda: monkeypatch.setattr(eight_bit, "installed", lambda name: f"{name} 0.0"),
    ):
        change()
        assert made_anew()
    (pictures / "notes.txt").write_text("no picture")
    assert not made_anew()
    monkeypatch.chdir(pictures.parent)
    assert not made_anew("calibration"), "the same folder, called otherwise"
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(pictures, tmp_path / "elsewhere" / "calibration")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert made_anew("calibration"), "another folder, called the same"


def test_the_runs_settings_say_which_pictures(
    weights: Path, pictures: Path, made: list[Located], monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in (0.2, 0.2, 0.5):
        (weights.parent / "config.yaml").write_text(f"dataset: folder\ndata_dir: {pictures}\nval_fraction: {split}\n")
        monkeypatch.setattr(eight_bit, "_training_pictures", lambda located: "pictures")
        eight_bit_file(str(weights), runtime="onnx", pictures=None, image_size=None)
    assert len(made) == 2


def in_hub_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, weights: Path, config: dict[str, Any]) -> str:
    """The name of a hub repository that was downloaded before."""
    snapshot = cache / "models--someone--shapes" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "models--someone--shapes" / "refs").mkdir()
    (cache / "models--someone--shapes" / "refs" / "main").write_text("0123")
    shutil.copy(weights, snapshot / "pytorch_model.bin")
    (snapshot / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "hf-hub:someone/shapes"


CONFIG = {
    "pretrained_cfg": {"mean": list(HOW.mean), "std": list(HOW.std), "input_size": [3, 75, 75]},
    "label_names": ["ant", "bee", "cow"],
}


def test_what_a_hub_repository_says_is_handed_on(
    weights: Path, pictures: Path, made: list[Located], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = in_hub_cache(tmp_path / "hub", monkeypatch, weights, CONFIG)
    eight_bit_file(source, runtime="onnx", pictures=str(pictures), image_size=None)
    assert made[0].beside and made[0].beside["class_names"] == ["ant", "bee", "cow"]


@pytest.mark.slow
def test_an_8_bit_file_of_a_hub_repository_says_what_that_says(
    folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("inception_v4.export.exporting.AGREEMENT", 0.0)  # random weights: ties decide
    torch.save(network().state_dict(), tmp_path / "bare.pth")
    names = [f"class {number}" for number in range(6)]
    source = in_hub_cache(tmp_path / "hub", monkeypatch, tmp_path / "bare.pth", CONFIG | {"label_names": names})
    path, _ = eight_bit_file(source, runtime="onnx", pictures=str(pictures), image_size=None)
    info = open_network(path, accelerator_for("onnx", "cpu"), runtime="onnx").info
    assert info.class_names == tuple(names)
    assert (info.preprocessing.mean, info.preprocessing.std) == (HOW.mean, HOW.std)
    assert info.preprocessing.image_size == 75


def convolution(path: Path, batch: int) -> None:
    """An ONNX file of one convolution that takes `batch` pictures and no other number."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    kernel = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "kernel"], ["logits"])], "one",
        [helper.make_tensor_value_info("image", kind, [batch, 3, 75, 75])],
        [helper.make_tensor_value_info("logits", kind, [batch, 4, 73, 73])],
        [onnx.numpy_helper.from_array(kernel, "kernel")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), str(path))


@pytest.mark.parametrize(("batch", "count"), [(3, 5), (8, 5), (5, 5), (2, 1)])
def test_any_number_of_pictures_goes_through_a_file_of_a_fixed_batch(tmp_path: Path, batch: int, count: int) -> None:
    ort = pytest.importorskip("onnxruntime")
    path = tmp_path / "one.onnx"
    convolution(path, batch)
    with torch.device("meta"):
        model = InceptionV4(3)
    plan = Plan(model, WeightsInfo(3, preprocessing=HOW), Signature(batch_size=batch), Target())
    images = plan.inputs(drawn(batch))
    exact = ort.InferenceSession(str(path)).run(None, {"image": images.numpy()})[0]
    export_formats._quantise(plan, path, drawn(count))
    session = ort.InferenceSession(str(path))
    assert "inception_v4" in session.get_modelmeta().custom_metadata_map
    rounded = session.run(None, {"image": images.numpy()})[0]
    assert 0 < np.abs(rounded - exact).mean() < 0.05 * np.abs(exact).mean(), "8 bits, and the same function"


def test_pictures_that_fill_up_a_batch_are_of_the_same_ones() -> None:
    def parts(size: int | None) -> list[list[int]]:
        return [part.tolist() for part in export_formats._calibration_batches(torch.arange(5), size)]

    assert parts(None) == [[0, 1, 2, 3, 4]] and parts(5) == [[0, 1, 2, 3, 4]]
    assert parts(3) == [[0, 1, 2], [3, 4, 0]] and parts(12) == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]]
