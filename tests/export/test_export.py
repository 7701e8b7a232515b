"""Exports: what is written, that it is compared, and what is said where a format cannot be had."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from exported import CLASSES, HOW, drawn, exported, folder, logits, onnx_file, quick_onnx, run, weights_file
from running import ROOT

from inception_v4.cli import main as cli
from inception_v4.export import exporting as export
from inception_v4.export import formats as export_formats
from inception_v4.export import mindir
from inception_v4.export.exporting import compare, export_model
from inception_v4.export.target import FORMAT_NAMES, OPSETS, ExportError, Target
from inception_v4.inference.network import accelerator_for, open_network
from inception_v4.inference.sessions import RUNTIMES, Session
from inception_v4.network.model import InceptionV4
from inception_v4.weights import WeightsInfo, read_weights, save_weights

__all__ = ["folder", "quick_onnx"]


def test_the_command_offers_every_format() -> None:
    assert set(FORMAT_NAMES) == set(export_formats.FORMATS)
    help_text = CliRunner().invoke(cli.cli, ["export", "--help"]).output
    assert all(name in help_text for name in FORMAT_NAMES) and "ckpt-file" not in help_text


def test_the_onnx_file_describes_itself_and_names_no_file_of_this_machine(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(onnx_file(folder)))
    described = json.loads({p.key: p.value for p in model.metadata_props}["inception_v4"])
    info = WeightsInfo.from_dict(described)
    assert info.class_names == CLASSES and info.preprocessing == HOW
    assert described["export"] == {"preprocess": False, "softmax": False, "batch_size": None, "device": None}
    assert model.opset_import[0].version == 13 and model.ir_version == 7
    shape = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, 75, 75] and model.graph.output[0].name == "logits"
    assert {node.op_type for node in model.graph.node} == {
        "Conv", "Relu", "Concat", "AveragePool", "MaxPool", "Squeeze", "Gemm",
    }  # fmt: skip
    convolutions = {node.output[0] for node in model.graph.node if node.op_type == "Conv"}
    pools = [node for node in model.graph.node if node.op_type == "AveragePool"]
    behind = [node for node in pools if node.input[0] in convolutions]
    assert (len(convolutions), len(pools), len(behind)) == (149, 15, 14), "fused, with the branches apart"
    content = onnx_file(folder).read_bytes()
    assert not [place for place in (str(ROOT), str(folder), "site-packages") if place.encode() in content]


def test_the_report_says_what_was_compared(folder: Path, quick_onnx: None, capsys) -> None:
    code, out, _ = run(capsys, "export", weights_file(folder), "-o", folder / "again.onnx")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "again.onnx: normalised float32 [N, 3, 75, 75] -> logits [N, 6]"
    assert lines[1].startswith("check: onnxruntime ") and "same first class on 6 of 6" in lines[1]
    assert lines[2].startswith(f"wrote {folder / 'again.onnx'} (16")
    assert not list(folder.glob(".again*"))


def test_a_file_that_computes_something_else_is_not_kept(folder: Path, quick_onnx: None, capsys) -> None:
    """The writer is fed other weights than the comparison: a single bias of 0.05 more."""
    weights = read_weights(weights_file(folder))
    tampered = InceptionV4(len(CLASSES))
    tampered.load_state_dict(weights.state)
    with torch.no_grad():
        tampered.last_linear.bias[2] += 0.05
    save_weights(tampered, folder / "tampered.safetensors", weights.info)
    output = folder / "tampered.onnx"
    code, out, _ = run(capsys, "export", folder / "tampered.safetensors", "-o", output)
    assert code == 1 and "differ by at most 5.0e-02" in out and "not kept" in out
    assert not output.exists() and not list(folder.glob(".tampered*"))
    code, _, _ = run(capsys, "export", folder / "tampered.safetensors", "-o", output, "--no-check")
    assert code == 0 and output.exists()


def test_a_comparison_can_fail_and_ties_are_none() -> None:
    expected = torch.tensor([[1.0, 1.0 + 1e-6, 0.0], [0.0, 2.0, 1.0]])
    assert compare(expected, expected + torch.tensor([2e-6, 0, 0]))[1]
    assert not compare(expected, expected.flip(1))[1]
    assert not compare(expected, torch.full_like(expected, float("nan")))[1]
    line, passed = compare(torch.ones(2, 3), torch.ones(2, 3))
    assert passed and "shows little" in line


@pytest.mark.slow
def test_preprocessing_and_softmax_inside_give_the_same(folder: Path) -> None:
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    file = exported(folder, "inside.onnx", Target(preprocess=True, softmax=True, opset=18))
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)" and session.get_inputs()[0].shape[1:] == [75, 75, 3]
    pictures = drawn(5)
    found = torch.from_numpy(session.run(None, {"image": pictures.permute(0, 2, 3, 1).numpy()})[0])
    expected = logits(pictures).softmax(1)
    assert (found - expected).abs().max() < 1e-5 and expected.amax(1).min() < 0.9
    network = open_network(str(file), accelerator_for("onnx", "cpu"), runtime="onnx")
    through = network.model(network.prepare(network.info.preprocessing)(pictures)).softmax(1)
    assert (through - expected).abs().max() < 1e-5


@pytest.mark.slow
def test_every_version_of_onnx_that_is_offered_fits_the_graph(folder: Path, tmp_path: Path) -> None:
    """Checked operator by operator in each, and run in the first and the last, with everything inside."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    model = onnx.load(str(exported(folder, "inside.onnx", Target(preprocess=True, softmax=True, opset=18))))
    pixels = {"image": drawn(5).permute(0, 2, 3, 1).numpy()}
    for opset in OPSETS:
        export_formats._tidy(model, opset)
        onnx.checker.check_model(model, full_check=True)
        if opset in (OPSETS[0], OPSETS[-1]):
            onnx.save(model, str(tmp_path / "x.onnx"))
            session = ort.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, pixels)[0])
            assert (found - logits(drawn(5)).softmax(1)).abs().max() < 1e-5
    model.graph.node.append(onnx.helper.make_node("Gelu", ["logits"], ["more"]))  # of version 20
    export_formats._tidy(model, 19)
    with pytest.raises(onnx.checker.ValidationError, match="Gelu"):
        onnx.checker.check_model(model)


def test_openvino_is_written_with_its_description(folder: Path, quick_onnx: None) -> None:
    pytest.importorskip("openvino")
    report = export_model(weights_file(folder), folder / "live.xml")
    assert report.passed and {p.name for p in report.files} == {"live.xml", "live.bin"}
    assert (folder / "live.bin").stat().st_size > 160e6, "float32, not halved"
    network = open_network(str(folder / "live.xml"), accelerator_for("openvino", "cpu"), runtime="openvino")
    assert network.info.class_names == CLASSES and network.info.preprocessing == HOW
    found = network.model(network.prepare(HOW)(drawn(3)))
    assert (found - logits(drawn(3))).abs().max() < 1e-4


@pytest.mark.slow
def test_fixed_batch_and_other_size(folder: Path) -> None:
    file = exported(folder, "fixed.pt2", Target(batch_size=2, image_size=80))
    network = open_network(str(file), accelerator_for("pt2", "cpu"), runtime="pt2")
    assert network.signature and network.signature.batch_size == 2 and network.info.preprocessing.image_size == 80
    pictures = torch.nn.functional.pad(drawn(5), (2, 3, 2, 3))
    images = network.prepare(network.info.preprocessing)(pictures)
    assert (network.model(images) - logits(pictures)).abs().max() < 1e-4, "5 pictures through a file for 2"


@pytest.mark.slow
def test_aoti(folder: Path) -> None:
    file = exported(folder, "compiled.pt2", Target(format="aoti"))
    network = open_network(str(file), accelerator_for("pt2", "cpu"), runtime="pt2")
    assert network.signature and network.signature.device == "cpu" and network.info.class_names == CLASSES
    assert "AOTInductor" in network.engine
    for count in (1, 2, 5):
        found = network.model(network.prepare(HOW)(drawn(count)))
        assert (found - logits(drawn(count))).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("output", "target", "message"),
    [
        ("x.tflite", Target(), r"'\.tflite' is no format: give --format onnx\|"),
        ("x.bin", Target(format="onnx"), r"files of the format onnx end in \.onnx"),
        ("x.onnx", Target(opset=11), "opset 11 is not supported: give 13 to 23"),
        ("x.mindir", Target(softmax=True), "leave out --with-preprocess and --with-softmax"),
        ("x.om", Target(), "give --soc-version, such as Ascend310P3"),
    ],
)
def test_what_cannot_be_had_is_said_before_the_work(tmp_path: Path, output: str, target: Target, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_model("nothing.safetensors", tmp_path / output, target)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = run(capsys, "export", "w.safetensors", "-o", tmp_path / "x.onnx")
    assert code == 1 and "pip install onnx onnxscript" in err and len(err.splitlines()) == 1


def test_mindir_without_mindspore_says_the_two_commands(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv(mindir.INTERPRETER, shutil.which("true") or "/bin/true")
    mindir.check_installed()
    fails = tmp_path / "python"
    fails.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'mindspore'\" >&2\nexit 1\n")
    fails.chmod(fails.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(mindir.INTERPRETER, str(fails))
    code, _, err = run(capsys, "export", "w.safetensors", "-o", tmp_path / "x.mindir")
    assert code == 1 and len(err.splitlines()) == 1 and "No module named 'mindspore'" in err
    assert "ms/bin/pip install mindspore mindcv" in err and f"export {mindir.INTERPRETER}=" in err
    monkeypatch.setenv(mindir.INTERPRETER, str(tmp_path / "nowhere"))
    assert run(capsys, "export", "w.safetensors", "-o", tmp_path / "x.mindir")[0] == 1


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get(mindir.INTERPRETER), reason=f"{mindir.INTERPRETER} names no MindSpore")
@pytest.mark.parametrize("batch_size", [None, 2])
def test_mindir(folder: Path, batch_size: int | None) -> None:
    report = export_model(weights_file(folder), folder / "live.mindir", Target(batch_size=batch_size))
    assert report.passed and report.checks[0].startswith("MindSpore: ")
    described = json.loads((folder / "live.mindir.json").read_text())
    assert described["class_names"] == list(CLASSES) and described["export"]["batch_size"] == batch_size
    assert os.access(folder / "live.mindir", os.R_OK | os.W_OK)
    with pytest.raises(mindir.MindSporeError, match="AIR can be made on an Ascend device only"):
        export_model(weights_file(folder), folder / "live.air")
    assert not (folder / "live.air").exists()


MINDSPORE = """#!{python}
import json, sys
if len(sys.argv) > 3:
    job = json.loads(sys.argv[3])
    assert job["file_format"] == "AIR" and job["batch_size"] == {batch}, job
    open(job["output"], "w").close()
"""
"""A stand-in for the interpreter with MindSpore on a machine that can make AIR files."""


@pytest.mark.parametrize(("asked", "batch"), [(None, 1), (4, 4)])
def test_an_air_file_says_the_batch_that_it_has(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, batch: int
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(MINDSPORE.format(python=sys.executable, batch=batch))
    stand_in.chmod(0o755)
    monkeypatch.setenv(mindir.INTERPRETER, str(stand_in))
    report = export_model(weights_file(folder), tmp_path / "x.air", Target(batch_size=asked))
    assert report.summary == f"x.air: normalised float32 [{batch}, 3, 75, 75] -> logits [{batch}, 6]"
    assert json.loads((tmp_path / "x.air.json").read_text())["export"]["batch_size"] == batch


@pytest.mark.parametrize(("runtime", "kind"), [("pt2", "meta"), ("onnx", "cpu"), ("openvino", "cpu")])
def test_pictures_are_compared_where_the_file_runs(monkeypatch: pytest.MonkeyPatch, runtime: str, kind: str) -> None:
    """`--device cuda` loads a .pt2 there, and no other; "meta" stands for a device that is not the processor."""
    seen = []

    def open_there(path: Path, device: str) -> Session:
        def run(images: torch.Tensor) -> torch.Tensor:
            seen.append((device, images.device.type))
            return torch.zeros(len(images), 6)

        return Session(run, None, (), None, "engine")

    monkeypatch.setitem(RUNTIMES, runtime, RUNTIMES[runtime]._replace(open=open_there))
    run_there, _ = export_formats._session(runtime, Path("x"), "meta")
    assert run_there(drawn(2).float()).device.type == "cpu" and seen == [(kind, kind)]


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_pt2_file_is_compared_on_the_device_that_was_asked_for(folder: Path, tmp_path: Path) -> None:
    report = export_model(weights_file(folder), tmp_path / "x.pt2", Target(device="cuda"))
    assert report.passed and "torch.export, cuda" in report.checks[0]


def test_the_modelzoos_line(folder: Path, quick_onnx: None, tmp_path: Path, capsys, monkeypatch) -> None:
    """`export.py --config_path C --ckpt_file W --device_target Ascend --file_format ONNX`."""
    monkeypatch.chdir(tmp_path)
    recipe = ROOT / "tests" / "fixtures" / "modelzoo_default_config.yaml"
    words = ["--config_path", recipe, "--ckpt_file", weights_file(folder), "--device_target", "Ascend"]
    words += ["--width=75", "--height=75", "--num_classes=6", "--file_name", "zoo"]
    code, _, err = run(capsys, "export", *words, "--file_format", "ONNX")
    assert code == 0 and (tmp_path / "zoo.onnx").is_file()
    assert "lr_max" in err and " -> no effect: an export does not depend on it" in err and "device_target" not in err
    code, _, err = run(capsys, "export", *words, "--file_format", "ONNX", "--width", "80")
    assert code == 2 and "75 and 80: the input is square" in err
    code, _, err = run(capsys, "export", *words, "--file_format", "OM")
    assert code == 2 and "choose one of MINDIR, AIR, ONNX" in err


def test_the_check_uses_the_network_before_fusing() -> None:
    """A mistake in fusing must show."""
    assert "fuse" not in vars(export)
