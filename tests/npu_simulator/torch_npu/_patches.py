"""What importing torch-npu changes in torch: process group, module moves, data loaders, batch normalisation."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import dataloader
from torch_npu import npu


def apply() -> None:
    dist.Backend.register_backend("hccl", _hccl, extended_api=True, devices=["npu"])
    _refuse_private_layouts()
    _touch_device_in_loaders()
    _register_sync_batch_norm()


def _hccl(options: Any, _: Any) -> Any:
    import _npu_simulator_hccl

    gloo = dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size, options.timeout)
    return _npu_simulator_hccl.Hccl(gloo)


def _refuse_private_layouts() -> None:
    """The real one turns weights into a private layout, silently; here that is an error, for tests to see."""
    original = torch.nn.Module.to

    def to(self: torch.nn.Module, *args: Any, **options: Any) -> Any:
        device = torch._C._nn._parse_to(*args, **options)[0]
        if (
            device is not None
            and device.type == "npu"
            and (npu.modes["jit_compile"] or npu.modes["allow_internal_format"])
        ):
            raise RuntimeError("simulator: the weights would become FRACTAL_Z, set_compile_mode(False) comes first")
        return original(self, *args, **options)

    torch.nn.Module.to = to  # type: ignore[assignment, method-assign]


def _touch_device_in_loaders() -> None:
    """The real one synchronises before loader workers start: an error where there is no device."""
    loader: Any = dataloader._MultiProcessingDataLoaderIter
    original = loader.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        npu.synchronize()
        original(self, *args, **options)

    loader.__init__ = init


def _register_sync_batch_norm() -> None:
    """The kernels under torch.nn.SyncBatchNorm, which the CPU does not have."""
    library = torch.library.Library("aten", "IMPL")
    for name, function in (
        ("batch_norm_stats", _stats),
        ("batch_norm_gather_stats_with_counts", _gather_stats),
        ("batch_norm_elemt", _normalise),
        ("batch_norm_backward_reduce", _backward_reduce),
        ("batch_norm_backward_elemt", _backward_normalise),
    ):
        library.impl(name, function, "PrivateUse1")
    _patch_state.append(library)


_patch_state: list[Any] = []
_DIMS = (0, 2, 3)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values[None, :, None, None]


def _stats(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = torch.var_mean(x.float(), _DIMS, correction=0)
    return mean, (variance + eps).rsqrt()


def _gather_stats(
    x: Any, mean: Any, invstd: Any, running_mean: Any, running_var: Any, momentum: float, eps: float, counts: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    share = counts.view(-1, 1)
    total = share.sum()
    mean_all = (mean * share).sum(0) / total
    variance = ((invstd**-2 - eps + (mean - mean_all) ** 2) * share).sum(0) / total
    if running_mean is not None:
        running_mean.lerp_(mean_all, momentum)
        running_var.lerp_(variance * total / (total - 1), momentum)
    return mean_all, (variance + eps).rsqrt()


def _normalise(x: Any, weight: Any, bias: Any, mean: Any, invstd: Any, eps: float) -> torch.Tensor:
    return ((x - _wide(mean)) * _wide(invstd * weight) + _wide(bias)).to(x.dtype)


def _backward_reduce(
    gradient: Any, x: Any, mean: Any, invstd: Any, weight: Any, for_input: bool, for_weight: bool, for_bias: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    total = gradient.sum(_DIMS)
    moment = (gradient * (x - _wide(mean))).sum(_DIMS)
    return total, moment, moment * invstd, total


def _backward_normalise(
    gradient: Any, x: Any, mean: Any, invstd: Any, weight: Any, total: Any, moment: Any, counts: Any
) -> torch.Tensor:
    count = counts.sum()
    centred = (x - _wide(mean)) * _wide(invstd**2 * moment / count)
    return (gradient - _wide(total / count) - centred) * _wide(invstd * weight)
