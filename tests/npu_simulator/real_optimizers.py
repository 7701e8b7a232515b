"""Run by test_npu_wheel.py: the real torch-npu's Python files for optimizers and loss scaling on the simulator.

They are loaded from the unpacked wheel in place of the stand-in's, under their own names. What they call in
torch-npu's compiled part (storage sizes, formats, moving a tensor into a buffer) is the simulator's.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import types
import warnings
from pathlib import Path

from inception_v4 import accelerator

accelerator.prepare_environment("npu")
npu = accelerator.select("npu")
npu.activate()

import torch  # noqa: E402
import torch_npu  # noqa: E402
from timm.optim import RMSpropTF  # noqa: E402
from torch import nn  # noqa: E402

sys.path.append(str(Path(__file__).parent.parent))
from live import enliven  # noqa: E402

from inception_v4.training.optim import RMSpropTF as OwnRMSpropTF  # noqa: E402

REAL = Path(os.environ["TORCH_NPU_WHEEL"]) / "torch_npu"


def package(name: str, folder: Path) -> types.ModuleType:
    """An empty package whose submodules come from `folder` of the real wheel."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module
    return module


def load_real() -> None:
    for name in [name for name in sys.modules if name.startswith(("torch_npu.optim", "torch_npu.npu.amp"))]:
        del sys.modules[name]
    for name in ("_init", "_init/common"):
        package("torch_npu." + name.replace("/", "."), REAL / name)
    utils = package("torch_npu.utils", REAL / "utils")
    combine = importlib.import_module("torch_npu.utils.combine_tensors")
    utils.npu_combine_tensors = combine.npu_combine_tensors  # type: ignore[attr-defined]
    utils.get_part_combined_tensor = combine.get_part_combined_tensor  # type: ignore[attr-defined]
    torch_npu.utils = utils
    optim = package("torch_npu.optim", REAL / "optim")
    for file, name in (("npu_fused_rmsprop_tf", "NpuFusedRMSpropTF"), ("npu_fused_sgd", "NpuFusedSGD")):
        setattr(optim, name, getattr(importlib.import_module(f"torch_npu.optim.{file}"), name))
    amp = package("torch_npu.npu.amp", REAL / "npu" / "amp")
    amp.GradScaler = importlib.import_module("torch_npu.npu.amp.grad_scaler").GradScaler  # type: ignore[attr-defined]
    torch_npu.npu.FloatTensor = torch.Tensor


def network() -> nn.Module:
    return enliven(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3)))


def real(name: str) -> type:
    fused = npu.fused_optimizer(name)
    assert str(REAL) in sys.modules[fused.__mro__[1].__module__].__file__, "not the real class"
    return fused


def train(name: str, reference: type, options: dict[str, float], *, scaled: bool) -> None:
    models = [network().to(npu.device), network()]
    optimizers = [real(name)(models[0].parameters(), **options), reference(models[1].parameters(), **options)]
    dtype = torch.float16 if scaled else None
    scalers = [npu.grad_scaler(dtype, fused_optimizer=True), accelerator.select("cpu").grad_scaler(dtype)]
    for step in range(5):
        images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        if scaled and step == 2:
            images[0, 0, 0, 0] = float("inf")  # this step overflows
        for model, optimizer, scaler in zip(models, optimizers, scalers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            loss = model(images.to(next(model.parameters()).device)).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert scalers[0].skipped() == scalers[1].skipped() == (1 if scaled else 0)
    assert scalers[0].get_scale() == scalers[1].get_scale()
    require_equal(*models)


def require_equal(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach().cpu(), rtol=1e-5, atol=1e-6)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        model(images.to(next(model.parameters()).device)).square().mean().backward()
        optimizer.step()


def resume(name: str, plain: type, options: dict[str, float]) -> None:
    """Two steps with one of them, saved, and two more with the other, are four steps with the plain one."""
    whole = network()
    steps(whole, plain(whole.parameters(), **options), range(4))
    kinds = {"fused": (real(name), npu.device), "plain": (plain, "cpu")}
    for first, second in (("fused", "fused"), ("fused", "plain"), ("plain", "fused")):
        (one, place), (other, target) = kinds[first], kinds[second]
        start, end, file = network().to(place), network().to(target), io.BytesIO()
        optimizer = one(start.parameters(), **options)
        steps(start, optimizer, range(2))
        torch.save([start.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        weights, state = torch.load(file, map_location="cpu")
        end.load_state_dict(weights)
        optimizer = other(end.parameters(), **options)
        optimizer.load_state_dict(state)
        steps(end, optimizer, range(2, 4))
        require_equal(end, whole)


load_real()
warnings.simplefilter("ignore")  # of deprecated calls in the real files
rmsprop = {"lr": 0.05, "alpha": 0.9, "eps": 1.0, "momentum": 0.9, "weight_decay": 1e-2}
train("momentum", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}, scaled=False)
train("nesterov", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}, scaled=False)
train("rmsproptf", RMSpropTF, rmsprop, scaled=False)
train("rmsproptf", RMSpropTF, rmsprop, scaled=True)
resume("rmsproptf", OwnRMSpropTF, rmsprop)
resume("momentum", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2})
print("equal: momentum nesterov rmsproptf, scaled rmsproptf, resumed rmsproptf momentum")
