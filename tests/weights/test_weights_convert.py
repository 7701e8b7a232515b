"""Conversion of weights at full size: any to any, reports, optimizer state, speed and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pretrainedmodels
import pytest
import torch
from photos import photos
from running import ROOT
from weights_cases import equal, fresh, logits, network, state

from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.schema import Optimizer
from inception_v4.training.optim import RMSpropTF, parameter_groups
from inception_v4.weights import LAYOUTS, WeightsError, WeightsInfo, read_weights, save_weights
from inception_v4.weights.convert import convert_weights
from inception_v4.weights.files import msckpt
from inception_v4.weights.layouts import mindcv

INFO = WeightsInfo(class_names=tuple(f"class {i}" for i in range(1000)), preprocessing=Preprocessing(image_size=107))


@pytest.fixture(scope="module")
def folder(module_folder):
    """`net.safetensors` with 1000 named classes, `cadene.pth` with 1001."""
    path = module_folder("convert")
    save_weights(network(), path / "net.safetensors", INFO)
    torch.save(state(1001), path / "cadene.pth")
    return path


def said(report, text: str) -> bool:
    return any(text in line for line in report.lines())


def test_round_the_formats_and_back(folder):
    """A chain through every layout and back keeps the function and the description."""
    chain = [
        ("a.ckpt", "mindcv"), ("b.ckpt", "modelzoo"), ("c.safetensors", "mindcv"), ("d.npz", "tf-slim"),
        ("e.pth", "cadene"), ("f.safetensors", "torch"),
    ]  # fmt: skip
    source = folder / "net.safetensors"
    for name, layout in chain:
        report = convert_weights(source, folder / name, to=layout)
        assert report.passed
        assert report.layouts[1] == layout
        assert said(report, "none missing, none unmatched")
        source = folder / name
        if name == "a.ckpt":
            assert said(report, "747 of 747 identical")
            assert equal(read_weights(source).state, state())
            assert json.loads((folder / "a.ckpt.json").read_text())["preprocessing"]["image_size"] == 107
    final = read_weights(folder / "f.safetensors")
    assert final.info.class_names == INFO.class_names
    assert final.info.preprocessing == INFO.preprocessing
    model = fresh()
    model.load_state_dict(final.state)
    assert torch.allclose(logits(model), logits(network()), atol=2e-5)
    for name, _ in chain:
        (folder / name).unlink()


def test_outputs_are_compared_on_random_and_given_pictures(folder, tmp_path):
    pictures = [tmp_path / "0.jpg", tmp_path / "1.jpg"]
    for path, data in zip(pictures, photos(2), strict=True):
        path.write_bytes(data)
    report = convert_weights(folder / "net.safetensors", tmp_path / "a.ckpt", verify=pictures)
    assert report.passed
    assert said(report, "2 random pictures: logits differ by at most 0.0e+00")
    assert said(report, "2 given pictures: logits differ by at most 0.0e+00")


def test_a_damaged_result_does_not_pass(folder, tmp_path, monkeypatch):
    """The negative control: the file that is read back is not the one that was meant."""
    original = LAYOUTS["mindcv"].encode

    def wrong(weights, info, notes):
        tensors = original(weights, info, notes)
        return tensors | {"features.3.branch_0.bn.beta": tensors["features.3.branch_0.bn.beta"] + 0.1}

    monkeypatch.setitem(
        LAYOUTS, "mindcv", LAYOUTS["mindcv"].__class__(**{**LAYOUTS["mindcv"].__dict__, "encode": wrong})
    )
    report = convert_weights(folder / "net.safetensors", tmp_path / "a.ckpt", verify=True)
    assert not report.passed
    assert said(report, "746 of 747 identical") and said(report, "failed: ") and not said(report, "wrote ")
    assert not list(tmp_path.iterdir()), "it is not kept, nor anything beside it"
    (tmp_path / "a.ckpt").write_bytes(b"an earlier file")
    assert not convert_weights(folder / "net.safetensors", tmp_path / "a.ckpt").passed
    assert (tmp_path / "a.ckpt").read_bytes() == b"an earlier file"
    with pytest.raises(WeightsError, match=rf"^{tmp_path}/net-8e4777a0\.pth has SHA-256"):
        convert_weights(folder / "net.safetensors", tmp_path / "net-8e4777a0.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_description_of_the_file_that_is_replaced_does_not_stay(folder, tmp_path):
    (tmp_path / "a.safetensors.json").write_text("{}")
    convert_weights(folder / "net.safetensors", tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_background_class(folder, tmp_path):
    plain = convert_weights(folder / "cadene.pth", tmp_path / "a.ckpt", dtype="bf16")
    assert said(plain, "dropped: class 0 (background) of 1001")
    assert read_weights(tmp_path / "a.ckpt").info.num_classes == 1000
    kept = convert_weights(folder / "cadene.pth", tmp_path / "b.ckpt", classes="keep", dtype="bf16")
    assert read_weights(tmp_path / "b.ckpt").info.num_classes == 1001
    assert kept.passed
    convert_weights(folder / "cadene.pth", tmp_path / "c.pth", to="cadene", dtype="bf16")
    assert read_weights(tmp_path / "c.pth").info.num_classes == 1001
    convert_weights(folder / "cadene.pth", tmp_path / "d.pth", to="cadene", dtype="bf16", classes="drop-background")
    assert read_weights(tmp_path / "d.pth").info.num_classes == 1000


def test_cadene_s_own_network_loads_the_result(folder, tmp_path):
    convert_weights(folder / "cadene.pth", tmp_path / "a.pth", to="cadene")
    peer = pretrainedmodels.inceptionv4(num_classes=1001, pretrained=None).eval()
    peer.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
    assert torch.allclose(logits(peer, 299), logits(network(1001), 299), atol=1e-5)


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", "Float16"), ("bf16", "BFloat16")])
def test_half_precision(folder, tmp_path, dtype, kind):
    report = convert_weights(folder / "net.safetensors", tmp_path / "a.ckpt", dtype=dtype)
    assert report.passed
    assert said(report, "747 of 747 identical")
    assert {r.kind for r in msckpt.Checkpoint(tmp_path / "a.ckpt").records.values()} == {kind}
    expected = state()["last_linear.weight"].to({"fp16": torch.half, "bf16": torch.bfloat16}[dtype])
    assert torch.equal(read_weights(tmp_path / "a.ckpt").state["last_linear.weight"], expected)


def test_read_only_destination_is_replaced_whole(folder, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"old")
    path.chmod(0o400)
    convert_weights(folder / "net.safetensors", path, dtype="fp16")
    assert read_weights(path).layout == "mindcv"
    assert path.stat().st_mode & 0o777 != 0o400
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt", "a.ckpt.json"]


def test_refusals(folder, tmp_path):
    source = folder / "net.safetensors"
    for arguments, message in {
        (("a.onnx",), ()): r"no layout has the suffix '\.onnx'; use one of \.safetensors",
        (("a.pth",), (("to", "mindcv"),)): r"the layout mindcv is written to \.ckpt, \.safetensors, not '\.pth'",
        (("a.ckpt",), (("to", "caffe"),)): r"layout 'caffe' is not one of cadene, modelzoo",
        (("a.ckpt",), (("dtype", "int8"),)): r"dtype 'int8' is not one of fp32, fp16, bf16",
        (("a.npz",), (("dtype", "bf16"),)): r"npz cannot hold bf16",
        (("a.ckpt",), (("classes", "drop-background"),)): r"has 1000 classes, so no background class",
        (("a.ckpt",), (("with_optimizer", True),)): r"holds no optimizer state: name a training checkpoint",
        (("a.pth",), (("with_optimizer", True),)): r"goes to the layouts mindcv and modelzoo, not to torch",
        (("a.ckpt",), (("with_optimizer", True), ("ema", True))): r"not to their moving average",
    }.items():
        with pytest.raises(WeightsError, match=message):
            convert_weights(source, tmp_path / arguments[0][0], **dict(arguments[1]))
    with pytest.raises(WeightsError, match="is both source and destination"):
        convert_weights(source, source)
    assert list(tmp_path.iterdir()) == []


def test_not_finite_is_carried_and_said(tmp_path):
    bad = state() | {"features.2.bn.bias": torch.full((64,), float("nan"))}
    torch.save(bad, tmp_path / "a.pth")
    report = convert_weights(tmp_path / "a.pth", tmp_path / "a.ckpt")
    assert said(report, "NaN or infinity in 1 (features.2.bn.bias)")


def trained(optimizer_name: str):
    """A network after one step of its optimizer, and the optimizer."""
    torch.manual_seed(0)
    model = fresh(10)
    groups = parameter_groups(model, Optimizer(weight_decay_filter="no_norm_bias"))
    optimizer = {
        "momentum": lambda: torch.optim.SGD(groups, 0.1, momentum=0.9),
        "rmsproptf": lambda: RMSpropTF(groups, 0.1, alpha=0.9, eps=1.0, momentum=0.9),
        "rmsprop": lambda: torch.optim.RMSprop(groups, 0.1, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(groups, 0.1),
    }[optimizer_name]()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        ("momentum", {"moments": "momentum_buffer"}),
        ("rmsproptf", {"mean_square": "square_avg", "moment": "momentum_buffer"}),
    ],
)
def test_optimizer_state_goes_to_mindspore(tmp_path, name, slots):
    model, optimizer = trained(name)
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7, "ema": None}
    torch.save(checkpoint, tmp_path / "step-00000007.pt")
    report = convert_weights(tmp_path / "step-00000007.pt", tmp_path / "a.ckpt", with_optimizer=True)
    assert report.passed
    assert said(report, f"optimizer: {449 * len(slots)} tensors carried over")
    file = msckpt.Checkpoint(tmp_path / "a.ckpt")
    assert len(file.records) == 747 + 449 * len(slots) + 1
    assert file.read("global_step").array.tolist() == [7]
    names = mindcv.table()
    for parameter_name, parameter in model.named_parameters():
        for slot, key in slots.items():
            held = file.read(f"{slot}.{names[parameter_name]}").array
            assert (held == optimizer.state[parameter][key].numpy()).all()
    assert read_weights(tmp_path / "a.ckpt").info.num_classes == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rmsprop", "is another update"),
        pytest.param("adamw", "exp_avg.* no counterpart", marks=pytest.mark.slow),
    ],
)
def test_optimizers_without_a_counterpart(tmp_path, name, message):
    model, optimizer = trained(name)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=message):
        convert_weights(tmp_path / "a.pt", tmp_path / "a.ckpt", with_optimizer=True)
    nameless = optimizer.state_dict()
    for group in nameless["param_groups"]:
        del group["param_names"]
    torch.save({"model": model.state_dict(), "optimizer": nameless}, tmp_path / "b.pt")
    with pytest.raises(WeightsError, match="does not name its parameters"):
        convert_weights(tmp_path / "b.pt", tmp_path / "a.ckpt", with_optimizer=True)
    assert convert_weights(tmp_path / "a.pt", tmp_path / "a.ckpt").passed


MEASURE = """
import sys, time
import torch

def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts again from here
before, start = memory("VmRSS"), time.process_time()
from inception_v4.weights.convert import convert_weights
convert_weights(*sys.argv[1:])
print(time.process_time() - start, (memory("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures with Linux's /proc")
@pytest.mark.parametrize(
    "names", [("net.safetensors", "m.ckpt"), pytest.param(("own.ckpt", "n.safetensors"), marks=pytest.mark.slow)]
)
def test_quick_and_lean(folder, names):
    """Beyond the start of the interpreter and torch: under 2 s of CPU time, under 2.5 times the file of memory."""
    if names[0].endswith(".ckpt"):
        convert_weights(folder / "net.safetensors", folder / names[0])
    command = [sys.executable, "-c", MEASURE, *(str(folder / name) for name in names)]
    root = str(ROOT)
    environment = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seconds, peak = map(float, done.stdout.split())
    size = (folder / names[0]).stat().st_size
    print(f"{names[0]} -> {names[1]}: {seconds:.2f} s, peak {peak / size:.2f} times the file")
    assert seconds < 2
    assert peak < 2.5 * size
