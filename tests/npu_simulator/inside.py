"""Run by test_npu.py in a process where torch-npu is the simulator, with two devices. See `npu_simulator`."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from live import enliven
from timm.optim import RMSpropTF as TimmRMSpropTF
from torch import nn

from inception_v4 import accelerator
from inception_v4.accelerator import DeviceError, environment_report, select
from inception_v4.training.optim import RMSpropTF

accelerator.prepare_environment("npu")
npu = select("npu")
npu.activate()
import torch_npu  # noqa: E402

FIRST_910 = torch_npu.npu.FIRST_910
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def test_this_is_the_simulator():
    assert "npu_simulator" in torch_npu.__file__
    assert torch.accelerator.current_accelerator().type == "npu"


def test_devices_are_found_and_named():
    assert select("auto").device == torch.device("npu", 0)
    assert select("npu:1").device.index == 1 and select("npu", local_rank=1).device.index == 1
    with pytest.raises(DeviceError, match=r"'npu:2' does not exist: there are 2 \(npu:0 to npu:1\)"):
        select("npu:2")
    report = environment_report()
    assert report["auto"] == "npu" and "hccl" in report["backends"]
    assert report["versions"]["torch-npu"] == torch.__version__.split("+")[0] + "+simulator"
    assert report["devices"]["npu"] == {
        "available": True,
        "devices": [torch_npu.npu.CHIP] * 2,
        "amp": {"bf16": "no" if not torch_npu.npu.is_bf16_supported() else "native", "fp16": "native"},
        "compile": False,
    }


def test_modes_are_set_before_anything_is_moved():
    expected = {"jit_compile": False, "allow_internal_format": False}
    for tf32 in (False, True):
        npu.activate(tf32=tf32)
        assert torch_npu.npu.modes == expected | {"matmul.allow_hf32": tf32, "conv.allow_hf32": tf32}
    torch_npu.npu.set_compile_mode(jit_compile=True)
    try:
        with pytest.raises(RuntimeError, match="FRACTAL_Z"):  # the control: the order matters
            nn.Conv2d(1, 1, 1).to(npu.device)
    finally:
        npu.activate()
    nn.Conv2d(1, 1, 1).to(npu.device)


def test_what_the_device_refuses_is_refused_beforehand():
    assert npu.memory_format() is npu.memory_format(False) is torch.contiguous_format
    with pytest.raises(DeviceError, match="channels_last is impossible"):
        npu.memory_format(True)
    with pytest.raises(RuntimeError, match="Only contiguous_format"):  # the control: the device does refuse it
        torch.ones(1, 2, 3, 3).to(npu.device, memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="contiguous memory format"):
        torch.ones(1, 2, 3, 3, device=npu.device).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device=npu.device) + torch.ones(2)
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([torch.ones(2, device=npu.device), torch.ones(2)])


@pytest.mark.filterwarnings("ignore:NPUs have no float64")
def test_the_simulated_device_has_no_float64():
    assert torch.ones(2, device=npu.device).double().dtype is torch.float32


def test_bf16_is_an_error_on_the_first_910_and_works_elsewhere():
    if FIRST_910:
        with pytest.raises(DeviceError, match=f"amp bf16 is not supported by {torch_npu.npu.CHIP}: use amp fp16"):
            npu.amp_dtype("bf16")
    else:
        assert npu.amp_dtype("bf16") is torch.bfloat16
    assert npu.amp_dtype("fp16") is torch.float16


def learn(device, amp, *, network, steps=3, lr=0.05):
    """Losses and final state of a short training on `device`; the same function for every device."""
    device.seed(1)
    model = network().to(device.device, memory_format=device.memory_format(False))
    optimizer = TimmRMSpropTF(model.parameters(), lr=lr, alpha=0.9, eps=1.0, momentum=0.9)
    scaler = device.grad_scaler(AMP[amp])
    copier, losses = device.copy_stream(), []
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        batch = (torch.randn(4, 3, 75, 75, generator=generator), torch.randint(5, (4,), generator=generator))
        with copier:
            batch = tuple((t.pin_memory() if device.pin_memory else t).to(device.device) for t in batch)
        images, labels = copier.ready(batch)
        with device.autocast(AMP[amp]):
            output = model(images)
        loss = nn.functional.cross_entropy(output.float(), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    device.synchronize()
    return losses, {name: value.cpu() for name, value in model.state_dict().items()}


def small():
    layers = [nn.Conv2d(3, 8, 5, stride=3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1)]
    return enliven(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 5)))


def equal(one, other):
    return one[0] == other[0] and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.parametrize("amp", ["off", "fp16"] if FIRST_910 else ["off", "bf16", "fp16"])
def test_training_gives_what_the_cpu_gives_to_the_last_bit(amp):
    on_npu = learn(npu, amp, network=small)
    assert equal(on_npu, learn(select("cpu"), amp, network=small))
    assert not equal(on_npu, learn(select("cpu"), amp, network=small, lr=0.0501))  # the control


def test_peak_memory_is_counted():
    npu.reset_peak_memory()
    before = npu.peak_memory()
    large = torch.zeros(10_000_000, device=npu.device)
    assert npu.peak_memory() >= before + large.nbytes
    del large
    assert npu.peak_memory() >= before + 40_000_000
    npu.reset_peak_memory()
    assert npu.peak_memory() < before + 40_000_000 < npu.memory()


# ---- loss scaling


def overflowing_step(scaler, optimizer, weight, gradient):
    optimizer.zero_grad()
    (scaler.scale(weight.sum()) * torch.tensor(gradient, device=npu.device)).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("loss_scale", ["dynamic", 128.0])
@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_overflow_are_left_out_and_counted(loss_scale, fused):
    scaler = npu.grad_scaler(torch.float16, loss_scale, fused_optimizer=fused)
    vendor = isinstance(scaler, torch_npu.npu.amp.GradScaler)
    assert vendor == (fused or FIRST_910)
    weight = nn.Parameter(torch.ones(2, device=npu.device))
    optimizer = (npu.fused_optimizer("sgd") if fused else torch.optim.SGD)([weight], lr=0.5)
    start = 65536.0 if loss_scale == "dynamic" else loss_scale
    for gradient, expected in ((1.0, 0.5), (float("inf"), 0.5), (1.0, 0.0)):
        overflowing_step(scaler, optimizer, weight, gradient)
        assert weight.tolist() == [expected] * 2
    assert scaler.skipped() == 1
    assert scaler.get_scale() == (start / 2 if loss_scale == "dynamic" else start)
    state = scaler.state_dict()
    other = npu.grad_scaler(torch.float16, loss_scale, fused_optimizer=not fused)
    other.load_state_dict({k: v for k, v in state.items() if k != "dynamic"})  # as saved on another device
    assert other.get_scale() == scaler.get_scale() and other.skipped() == 1


# ---- fused optimizers


def fused_and_reference(name, reference, options):
    fused = npu.fused_optimizer(name)
    models = [enliven(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3))) for _ in range(2)]
    models[0].to(npu.device)
    return models, [fused(models[0].parameters(), **options), reference(models[1].parameters(), **options)]


@pytest.mark.parametrize(
    ("name", "reference", "options"),
    [
        ("rmsproptf", TimmRMSpropTF, {"lr": 0.05, "alpha": 0.9, "eps": 1.0, "momentum": 0.9, "weight_decay": 1e-2}),
        ("momentum", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}),
        ("nesterov", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ],
)
def test_fused_optimizers_do_what_the_plain_ones_do(name, reference, options):
    models, optimizers = fused_and_reference(name, reference, options)
    for step in range(4):
        images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            model(images.to(next(model.parameters()).device)).square().mean().backward()
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.detach().cpu(), other.detach(), rtol=1e-5, atol=1e-6)


def some_steps(model, optimizer, steps):
    for step in steps:
        images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images.to(next(model.parameters()).device)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "plain", "options"),
    [
        ("rmsproptf", RMSpropTF, {"lr": 0.05, "alpha": 0.9, "eps": 1.0, "momentum": 0.9, "weight_decay": 1e-2}),
        ("momentum", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}),
    ],
)
def test_a_checkpoint_moves_between_fused_and_plain_optimizers(name, plain, options, tmp_path):
    starts, optimizers = fused_and_reference(name, plain, options)
    whole, _ = fused_and_reference(name, plain, options)
    some_steps(whole[1], plain(whole[1].parameters(), **options), range(4))
    ends, others = fused_and_reference(name, plain, options)
    for start, optimizer, end, other in zip(starts, optimizers, reversed(ends), reversed(others), strict=True):
        some_steps(start, optimizer, range(2))
        torch.save([start.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
        weights, state = torch.load(tmp_path / "state.pt", map_location="cpu")
        end.load_state_dict(weights)
        other.load_state_dict(state)
        some_steps(end, other, range(2, 4))
        for one, expected in zip(end.parameters(), whole[1].parameters(), strict=True):
            torch.testing.assert_close(one.detach().cpu(), expected.detach(), rtol=1e-5, atol=1e-6)


def test_the_conditions_of_fused_optimizers_are_checked():
    assert npu.fused_optimizer("adamw") is None
    fused = npu.fused_optimizer("rmsproptf")
    assert fused.__name__ == "NpuFusedRMSpropTF"
    for parameter, message in (
        (torch.ones(2, 3, device=npu.device).t(), "contiguous"),
        (torch.ones(2), "on the NPU, not cpu"),
        (torch.ones(2, device=npu.device, dtype=torch.bfloat16), "float32 or float16"),
    ):
        with pytest.raises(DeviceError, match=message):
            fused([nn.Parameter(parameter)], lr=0.1)
    assert npu.ddp_options() == {"gradient_as_bucket_view": True}
    assert npu.ddp_options(fused_optimizer=True) == {"gradient_as_bucket_view": False}


# ---- the rest


def test_the_profiler_leaves_a_trace(tmp_path):
    with npu.profiler(tmp_path) as profiler:
        for _ in range(6):
            torch.ones(8, device=npu.device).sum()
            profiler.step()
    assert list(tmp_path.glob("*.json"))


def test_deterministic_and_seeded():
    npu.activate(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    npu.activate()
    npu.seed(5)
    first = torch.rand(3, device=npu.device)
    npu.seed(5)
    assert torch.equal(torch.rand(3, device=npu.device), first)
    generator = torch.Generator(device=npu.device).manual_seed(4)
    assert not torch.equal(*(torch.rand(3, device=npu.device, generator=generator) for _ in range(2)))


class _OnDevice(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.zeros(1, device=npu.device)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="workers are not forked by default")
def test_a_loader_worker_must_not_touch_the_device():
    loader = torch.utils.data.DataLoader(_OnDevice(), num_workers=1)
    with pytest.raises(RuntimeError, match="forked subprocess"):
        next(iter(loader))


def test_a_checkpoint_travels_between_devices(tmp_path):
    model = small().to(npu.device)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for place in ("cpu", "npu:1"):
        loaded = torch.load(tmp_path / "weights.pt", map_location=place)
        assert {str(value.device) for value in loaded.values()} == {place}
        assert all(torch.equal(value.cpu(), loaded[name].cpu()) for name, value in model.state_dict().items())


assert "RANK" not in os.environ
