"""Exports with 8-bit convolutions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from exported import CLASSES, drawn, exported, folder, logits, onnx_file, weights_file
from exported import network as live_network
from temporary import NewFolder

from inception_v4.cli.main import run
from inception_v4.data.pictures import CorruptImage
from inception_v4.data.shapes import draw_shape
from inception_v4.export.exporting import compare_rounded, export_model
from inception_v4.export.plan import calibration_pictures
from inception_v4.export.quantization import draw_pictures
from inception_v4.export.target import ExportError, Target
from inception_v4.inference.network import accelerator_for, open_network, runtime_for
from inception_v4.weights import read_weights

__all__ = ["folder"]


@pytest.fixture(scope="module")
def pictures(module_folder: NewFolder) -> Path:
    """A folder of drawn shapes like those that `exported.drawn` draws."""
    path = module_folder("calibration")
    for number in range(24):
        kind = ("star", "circle", "triangle")[number % 3]
        (path / kind).mkdir(exist_ok=True)
        draw_shape(kind, 100 + number, 75).save(path / kind / f"{number}.png")
    return path


def network_bias() -> torch.Tensor:
    return live_network().last_linear.bias.detach()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8.onnx", "int8.xml"])
def test_an_8_bit_file_is_small_and_says_nearly_what_the_network_says(folder: Path, pictures: Path, name: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    if name.endswith(".xml"):
        pytest.importorskip("openvino")
    # These random weights see little of a picture, and their head takes out what all pictures share: no classes are
    # compared, but what stands before the bias.
    path = exported(folder, name, Target(calibrate=str(pictures), check=False))
    weights = path if name.endswith(".onnx") else path.with_suffix(".bin")
    assert weights.stat().st_size < 0.3 * onnx_file(folder).stat().st_size
    assert not list(folder.glob(f".*{path.stem}*")), "nothing is left beside it"
    runtime = runtime_for(str(path), None)
    network = open_network(str(path), accelerator_for(runtime, "cpu"), runtime=runtime, device="cpu")
    assert network.info.class_names == CLASSES
    images = drawn(12)
    outputs = network.model(network.prepare(network.info.preprocessing)(images))
    expected = logits(images)
    difference = float((outputs - expected).norm() / (expected - network_bias()).norm())
    assert 1e-4 < difference < 0.2, "8 bits, and the same function"


@pytest.mark.slow
def test_the_report_counts_the_pictures_on_which_both_agree(folder: Path, pictures: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    report = export_model(weights_file(folder), folder / "counted.onnx", Target(calibrate=str(pictures)))
    assert any("8-bit outputs differ by" in line and "of 5" in line for line in report.checks)


def test_another_function_is_not_taken_for_rounding() -> None:
    expected = torch.eye(20)
    assert compare_rounded(expected, expected + 0.1)[1]
    line, passed = compare_rounded(expected, expected.flip(0))
    assert not passed and "on 0 of 20" in line


def test_ranges_and_comparison_take_different_pictures_of_all_classes(
    folder: Path, pictures: Path, tmp_path: Path
) -> None:
    info = read_weights(weights_file(folder)).info
    parts = calibration_pictures(str(pictures), info)
    assert [part.shape for part in parts] == [(20, 3, 75, 75), (4, 3, 75, 75)]
    for number in range(80):  # in sorted order the first classes would fill both parts
        (tmp_path / f"{number:03}").mkdir()
        for picture in range(6):
            (tmp_path / f"{number:03}" / f"{picture}.png").touch()
    ranges, compared = draw_pictures(tmp_path, ranges=256, compared=64)
    assert (len(set(ranges)), len(set(compared))) == (256, 64) and not set(ranges) & set(compared)
    assert len({Path(file).parent for file in ranges}) == 80
    assert len({Path(file).parent for file in compared}) == 64
    assert {int(Path(file).parent.name) // 20 for file in compared} == {0, 1, 2, 3}, "not the first classes only"
    assert (ranges, compared) == draw_pictures(tmp_path, ranges=256, compared=64)
    assert compared != draw_pictures(tmp_path, ranges=256, compared=64, seed=1)[1]


def test_few_pictures_are_shared(pictures: Path, tmp_path: Path) -> None:
    picture = next(pictures.rglob("*.png")).read_bytes()
    for count, expected in ((1, (1, 0)), (2, (1, 1)), (3, (2, 1)), (10, (8, 2))):
        while len(list(tmp_path.iterdir())) < count:
            (tmp_path / f"{len(list(tmp_path.iterdir()))}.png").write_bytes(picture)
        assert tuple(map(len, draw_pictures(tmp_path, ranges=256, compared=64))) == expected


def test_what_cannot_be_is_refused(folder: Path, pictures: Path, tmp_path: Path) -> None:
    source = weights_file(folder)
    with pytest.raises(ExportError, match="onnx and openvino, not pt2"):
        export_model(source, tmp_path / "x.pt2", Target(calibrate=str(pictures)))
    with pytest.raises(ExportError, match="no pictures"):
        export_model(source, tmp_path / "x.onnx", Target(calibrate=str(tmp_path)))
    for name in ("broken.jpg", "also.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(CorruptImage, match=r"(broken|also)\.jpg"):
        export_model(source, tmp_path / "x.onnx", Target(calibrate=str(tmp_path)))
    assert {p.name for p in tmp_path.iterdir()} == {"broken.jpg", "also.jpg"}


@pytest.fixture(scope="module")
def trained(module_folder: NewFolder, pictures: Path) -> Path:
    """What a run leaves, as far as 8 bits concern: weights, and settings that say which pictures it learned from."""
    run_directory = module_folder("run")
    shutil.copy(weights_file(run_directory), run_directory / "best.safetensors")
    settings = f"dataset: folder\ndata_dir: {pictures}\nval_fraction: 0.2\n"
    (run_directory / "config.yaml").write_text(settings)
    return run_directory


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_int8_takes_ranges_from_the_runs_pictures_once_and_again_for_other_weights(
    trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("inception_v4.export.exporting.AGREEMENT", 0.0)  # random weights: ties decide
    picture = next((pictures / "star").iterdir())
    words = ["predict", str(picture), "--ckpt-path", str(trained), "--int8", "--runtime", "onnx", "--json"]
    assert run(words) == 0
    said = capsys.readouterr()
    assert "ranges from the run's training pictures: onnxruntime" in said.err and "8-bit outputs differ by" in said.err
    (entry,) = [path for path in (trained / "int8").iterdir() if not path.name.startswith(".")]
    made = (entry / "network.onnx").stat().st_mtime_ns
    first = json.loads(said.out)
    assert run([*words[:3], str(trained), *words[4:]]) == 0
    assert json.loads(capsys.readouterr().out) == first and (entry / "network.onnx").stat().st_mtime_ns == made
    (entry / "network.onnx").write_bytes((entry / "network.onnx").read_bytes()[:-9])
    assert run(words) == 0
    assert (entry / "network.onnx").stat().st_mtime_ns != made, "what is cut short is made anew"
    capsys.readouterr()
    command = [
        "validate",
        "--ckpt-path",
        str(trained),
        "--int8",
        "--runtime",
        "onnx",
        "--data-dir",
        str(pictures),
        "--num-classes",
        "6",
        "--json",
    ]
    assert run([*command, "--workers", "0"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] == 3 and result["weights"].endswith("network.onnx")


def test_int8_without_pictures_says_what_to_give(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.safetensors"
    shutil.copy(trained / "best.safetensors", alone)
    words = ["predict", "x.jpg", "--ckpt-path", str(alone), "--int8"]
    assert run(words) == 2 and "give --calibration FOLDER" in last_line(capsys)
    assert run([*words, "--runtime", "torch"]) == 2 and "computed by openvino and onnx" in last_line(capsys)
    assert run([*words[:-1], "--calibration", "x"]) == 2 and "--calibration is for --int8" in last_line(capsys)
    assert not (tmp_path / "int8").exists()
