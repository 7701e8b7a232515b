"""Live weights at 75 px and files exported from them, each made once for all tests."""

from __future__ import annotations

import io
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from live import enliven
from photos import photos
from PIL import Image
from temporary import once, shared_folder
from torch import Tensor

from inception_v4.cli import main as cli
from inception_v4.data.normalise import Normalise
from inception_v4.data.pictures import decode_picture
from inception_v4.data.shapes import draw_shape
from inception_v4.data.views import eval_transform
from inception_v4.export import formats as export_formats
from inception_v4.export.exporting import export_model
from inception_v4.export.plan import Plan
from inception_v4.export.target import Target
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import Preprocessing
from inception_v4.weights import WeightsInfo, save_weights

CLASSES = ("ape", "bear", "cat", "dog", "elk", "fox")
HOW = Preprocessing(image_size=75, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.25), interpolation="bilinear")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all modules of a session."""
    path = shared_folder(tmp_path_factory) / "exported"
    path.mkdir(exist_ok=True)
    return path


@cache
@torch.inference_mode(False)  # whoever asks first: others may differentiate
def network() -> InceptionV4:
    """Live weights whose first class depends on the picture: the head's bias takes out what all pictures share."""
    model = enliven(InceptionV4(len(CLASSES))).eval()
    normalise = Normalise(HOW)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(normalise(drawn(8))), pre_logits=True)
        model.last_linear.weight.mul_(20)
        model.last_linear.bias.copy_(-(model.last_linear.weight @ features.mean(0)))
    return model


@cache
@torch.inference_mode(False)
def drawn(count: int) -> Tensor:
    """Pictures, uint8 [count, 3, 75, 75]."""
    shapes = [draw_shape(("star", "circle", "triangle")[i % 3], i, 75) for i in range(count)]
    files = [io.BytesIO() for _ in shapes]
    for shape, file in zip(shapes, files, strict=True):
        Image.Image.save(shape, file, "PNG")
    return torch.stack([decode_picture(file.getvalue(), "drawn") for file in files])


@cache
@torch.inference_mode(False)
def photographs(count: int) -> Tensor:
    """Real photos as the network's transform makes them, uint8 [count, 3, 75, 75]."""
    transform = eval_transform(HOW)
    return torch.stack([transform(decode_picture(data, "photo")) for data in photos(count)])


@torch.inference_mode()
def logits(pictures: Tensor) -> Tensor:
    """Of the plain network in PyTorch."""
    return network()(Normalise(HOW)(pictures))


@cache
def weights_file(folder: Path) -> Path:
    info = WeightsInfo(len(CLASSES), CLASSES, HOW, source="tests")
    file = folder / "live.safetensors"
    return once(file, lambda: save_weights(network(), file, info))


@cache
def exported(folder: Path, name: str, target: Target = Target()) -> Path:  # noqa: B008 a frozen value
    """The live weights in `name`, exported and compared."""
    file, weights = folder / name, weights_file(folder)

    def export() -> None:
        report = export_model(weights, file, target)
        assert report.passed and report.files[0] == file, report.lines()

    return once(file, export)


def onnx_file(folder: Path) -> Path:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return exported(folder, "live.onnx")


@pytest.fixture
def quick_onnx(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX files are copies of one that was exported before, so that a test need not trace the network again."""
    ready = onnx_file(folder)

    def copy(plan: Plan, path: Path) -> None:
        shutil.copy(ready, path)

    monkeypatch.setattr(export_formats, "_write_onnx", copy)
    monkeypatch.setitem(export_formats.FORMATS, "onnx", export_formats.FORMATS["onnx"]._replace(write=copy))


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = cli.run([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err
