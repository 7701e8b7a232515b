"""Offline models for Ascend chips: the command line, the chip's preprocessing, and what happens without ATC."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from exported import HOW, drawn, folder, onnx_file, quick_onnx, run, weights_file

from inception_v4.data.normalise import Normalise
from inception_v4.export.exporting import intention
from inception_v4.export.om import OmTarget, aipp_config
from inception_v4.export.target import Target
from inception_v4.preprocessing import INCEPTION_MEAN, Preprocessing

__all__ = ["folder", "quick_onnx"]

STAND_IN = """#!{python}
import os, sys
options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
wanted = {{"framework", "model", "output", "input_format", "input_shape", "soc_version", "precision_mode",
          "output_type", "log"}}
assert set(options) - {{"insert_op_conf"}} == wanted, options
assert options["framework"] == "5" and options["input_format"] == "NCHW" and options["log"] == "error"
assert open(options["model"], "rb").read(2) == b"\\x08\\x07", "no ONNX file"
if "insert_op_conf" in options:
    assert open(options["insert_op_conf"]).read().startswith("aipp_op {{")
open("kernel_meta.log", "w").close()  # litter, as the real one leaves it
if os.environ.get("ATC_FAILS"):
    with open(options["output"] + ".om", "w") as file:
        file.write("half of it")
    print("ATC start working now.\\nE10001: Value [X] for parameter [soc_version] is invalid.\\nATC run failed")
    sys.exit(1)
with open(options["output"] + ".om", "w") as file:
    file.write(repr(sorted(options.items())))
print("ATC run success, welcome to the next use.")
"""


@pytest.fixture
def atc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for ATC on PATH that reads what it is given and writes it down."""
    program = tmp_path / "bin" / "atc"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return program


def words(folder: Path, output: Path, *more: object) -> tuple[object, ...]:
    return ("export", weights_file(folder), "--format", "om", "-o", output, "--soc-version", "Ascend310P3", *more)


def test_atc_gets_the_network_and_its_preprocessing(folder: Path, quick_onnx, atc, tmp_path: Path, capsys) -> None:
    output = tmp_path / "models" / "live.om"
    code, out, err = run(capsys, *words(folder, output, "--batch-size", 4, "--aipp"))
    assert code == 0, err
    assert {p.name for p in output.parent.iterdir()} == {"live.om", "live.onnx", "live.aipp.cfg", "live.om.json"}
    options = dict(eval(output.read_text()))
    assert options["input_shape"] == "image:4,3,75,75" and options["soc_version"] == "Ascend310P3"
    assert options["precision_mode"] == "force_fp16" and options["output_type"] == "FP32"
    assert "live.om: uint8 [4, 75, 75, 3] -> logits [4, 6]" in out and "same first class on 6 of 6" in out
    assert not list(Path.cwd().glob("kernel_meta.log"))


def test_aipp_computes_what_the_transform_computes() -> None:
    text = aipp_config(HOW)
    values = {name: float(value) for name, value in re.findall(r"(\w+): ([\d.e-]+)\n", text)}
    assert values["src_image_size_w"] == values["src_image_size_h"] == 75 and "input_format: RGB888_U8" in text
    pixels = drawn(2).float()
    channels = [
        (pixels[:, i] - values[f"mean_chn_{i}"] - values[f"min_chn_{i}"]) * values[f"var_reci_chn_{i}"]
        for i in range(3)
    ]
    expected = Normalise(HOW)(drawn(2))
    assert (torch.stack(channels, 1) - expected).abs().max() < 1e-5
    usual = aipp_config(Preprocessing(mean=INCEPTION_MEAN))
    assert "min_chn_0: 127.5\n" in usual and "var_reci_chn_0: 0.007843137255\n" in usual


def test_dry_run_prints_the_command_and_writes_nothing(folder: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    code, out, _ = run(capsys, *words(folder, tmp_path / "x.om", "--dry-run", "--aipp", "--image-size", 299))
    command = shlex.split(out)
    assert code == 0 and command[0] == "atc" and f"--output={tmp_path / 'x'}" in command
    assert "--input_shape=image:1,3,299,299" in command and f"--insert_op_conf={tmp_path / 'x.aipp.cfg'}" in command
    assert not list(tmp_path.iterdir())
    other = Target(om=OmTarget("Ascend910B3"), format="om")
    assert "--precision_mode=must_keep_origin_dtype" in intention(str(weights_file(folder)), "x.om", other)


def test_without_atc_the_rest_is_usable(folder: Path, quick_onnx, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run(capsys, *words(folder, tmp_path / "x.om", "--aipp"))
    assert code == 1 and len(err.splitlines()) == 1
    assert "atc is not on PATH" in err and "set_env.sh" in err and "--model=x.onnx" in err
    assert {p.name for p in tmp_path.iterdir()} == {"x.onnx", "x.aipp.cfg"}
    assert (tmp_path / "x.onnx").read_bytes() == onnx_file(folder).read_bytes()


def test_atcs_own_error_is_passed_on(folder: Path, quick_onnx, atc, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("ATC_FAILS", "1")
    code, _, err = run(capsys, *words(folder, tmp_path / "x.om"))
    assert code == 1 and "E10001: Value [X] for parameter [soc_version] is invalid." in err
    assert {p.name for p in tmp_path.iterdir()} == {"bin", "x.onnx"}, "no half-written x.om"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--soc-version", "310P3"), "give Ascend and the name that `npu-smi info` shows"),
        (("--soc-version", "Ascend310P3", "--with-preprocess"), "--aipp normalises"),
        (("--aipp",), "give --soc-version CHIP"),
    ],
)
def test_contradictions(folder: Path, tmp_path: Path, capsys, more: tuple[str, ...], message: str) -> None:
    code, _, err = run(capsys, "export", "w.safetensors", "--format", "om", "-o", tmp_path / "x.om", *more)
    assert code in (1, 2) and message in err and not list(tmp_path.iterdir())
