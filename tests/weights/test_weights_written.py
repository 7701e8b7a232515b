"""What is written for other programs computes the same there, and what a file has no place for is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from live import enliven
from PIL import Image
from weights_cases import fresh, logits, network, save, state, tiny_state

from inception_v4.cli.main import run
from inception_v4.settings.schema import Optimizer
from inception_v4.training.optim import parameter_groups
from inception_v4.weights import Weights, WeightsError, WeightsInfo, read_weights, save_weights, write_weights
from inception_v4.weights.convert import convert_weights
from inception_v4.weights.files import msckpt
from inception_v4.weights.layouts import mindcv


def test_timm_is_told_of_another_epsilon(tmp_path: Path) -> None:
    model = enliven(fresh(10, bn_eps=1e-5))
    source = save_weights(model, tmp_path / "a.safetensors", WeightsInfo(10, bn_eps=1e-5))
    report = convert_weights(source, tmp_path / "b.pth")
    assert report.passed and any("create its network with norm_eps=1e-05" in line for line in report.lines())
    with torch.device("meta"):
        peer = timm.create_model("inception_v4", num_classes=10, norm_eps=1e-5).eval()
    peer.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True), assign=True)
    assert torch.allclose(logits(peer), logits(model), rtol=1e-4, atol=1e-5)
    report = convert_weights(source, tmp_path / "c.pth", to="cadene")
    assert report.passed and any("variances moved from epsilon 1e-05 to 0.001" in line for line in report.lines())


def test_the_usual_epsilon_is_no_news(tmp_path: Path) -> None:
    assert write_weights(Weights(tiny_state(), WeightsInfo()), tmp_path / "a.pth", layout="torch") == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_to_tensorflow(tmp_path: Path, dtype: torch.dtype) -> None:
    """Its gamma is multiplied into kernels, which half precision cannot hold, and numpy has no bfloat16."""
    source = save_weights(network(10), tmp_path / "a.safetensors", WeightsInfo(10), dtype=dtype)
    report = convert_weights(source, tmp_path / "a.npz")
    assert report.passed, report.lines()
    with np.load(tmp_path / "a.npz") as file:
        assert {file[name].dtype for name in file.files} == {np.dtype("float32")}


def test_numbers_beyond_a_type_are_refused_by_name(tmp_path: Path) -> None:
    name = "features.2.bn.running_var"
    held = state(10) | {name: torch.full((64,), 65504.0)}
    assert convert_weights(save(held, tmp_path / "a.pth"), tmp_path / "a.ckpt", dtype="fp16").passed
    held[name] = held[name].clone()
    held[name][3] = 1e5
    source = save(held, tmp_path / "b.pth")
    message = r"^features\.2\.bn\.running_var holds 100000, and float16 ends at 65504: write bf16 or fp32$"
    with pytest.raises(WeightsError, match=message):
        convert_weights(source, tmp_path / "b.safetensors", dtype="fp16")
    assert not (tmp_path / "b.safetensors").exists()
    assert convert_weights(source, tmp_path / "c.safetensors", dtype="bf16").passed
    held[name][3] = float("inf")
    report = convert_weights(save(held, tmp_path / "d.pth"), tmp_path / "d.safetensors", dtype="fp16")
    assert any("NaN or infinity in 1" in line for line in report.lines()), "what was infinite stays so"


def test_the_background_class_leaves_the_optimizer_too(tmp_path: Path) -> None:
    model = fresh(1001)
    optimizer = torch.optim.SGD(parameter_groups(model, Optimizer()), 0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, tmp_path / "step.pt")
    report = convert_weights(tmp_path / "step.pt", tmp_path / "a.ckpt", with_optimizer=True)
    assert any("449 tensors carried over as moments, without the background class" in line for line in report.lines())
    file = msckpt.Checkpoint(tmp_path / "a.ckpt")
    for name in ("last_linear.weight", "last_linear.bias"):
        written = file.read(f"moments.{mindcv.table()[name]}").array
        held = optimizer.state[dict(model.named_parameters())[name]]["momentum_buffer"]
        assert np.array_equal(written, held[1:].numpy())
    assert read_weights(tmp_path / "a.ckpt").info.num_classes == 1000


def test_optimizer_state_of_other_shapes_is_refused(tmp_path: Path) -> None:
    model = fresh(10)
    optimizer = torch.optim.SGD(parameter_groups(model, Optimizer()), 0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = optimizer.state_dict()
    held["state"][0]["momentum_buffer"] = torch.zeros(3)
    torch.save({"model": model.state_dict(), "optimizer": held}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"the optimizer state of features\.0\.\S+ is \[3\], the parameter \[32"):
        convert_weights(tmp_path / "a.pt", tmp_path / "a.ckpt", with_optimizer=True)


def test_a_class_name_that_no_file_can_hold_is_refused_at_once() -> None:
    with pytest.raises(WeightsError, match=r"class name caf\\udce9 is not UTF-8: rename its folder.* convmv") as error:
        WeightsInfo(2, ("tea", os.fsdecode(b"caf\xe9")))
    str(error.value).encode()
    assert WeightsInfo(2, ("tea", "café")).class_names == ("tea", "café")


def test_a_run_with_such_a_class_folder_ends_before_its_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (b"tea", b"caf\xe9"):
        folder = tmp_path / "data" / os.fsdecode(name)
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (80, 80), (number, 9, 99)).save(folder / f"{number}.png")
    words = ["--data-dir", str(tmp_path / "data"), "--val-fraction", "0.5", "--image-size", "75", "--batch-size", "2"]
    words += ["--output-dir", str(tmp_path / "run"), "--workers", "0", "--device", "cpu", "--epochs", "1"]
    assert run(["train", *words]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1 and "class name caf\\udce9 is not UTF-8" in error[0] and "convmv" in error[0]
    assert not list((tmp_path / "run").glob("*"))
