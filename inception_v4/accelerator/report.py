"""The state of this machine for `inception-v4 env`: what is installed, what is there, and what works by trying it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from inception_v4.accelerator.base import Accelerator, first_line
from inception_v4.accelerator.npu import installed

PACKAGES = ("torch", "torchvision", "timm", "torch-npu", "numpy")
BACKENDS = ("gloo", "nccl", "hccl", "xccl", "mpi", "ucc")
INSTRUCTIONS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "bf16", "fp16")
"""Those that decide the speed of a CPU in reduced precision."""


def collect(rows: Mapping[str, type[Accelerator]]) -> dict[str, Any]:
    """Versions, devices (or why they are absent), precisions, process-group back ends and the CPU."""
    import torch

    from inception_v4 import __version__

    versions = {"inception-v4": __version__, "python": platform.python_version()}
    versions |= {name: installed(name) or "not installed" for name in PACKAGES}
    return {
        "versions": versions | {"torch": torch.__version__},  # with the build, such as +cpu
        "devices": {kind: _describe(row) for kind, row in rows.items()},
        "backends": [name for name in BACKENDS if _has_backend(name)],
        "cpu": _instructions(),
        "threads": torch.get_num_threads(),
    }


def _describe(row: type[Accelerator]) -> dict[str, Any]:
    reason = row.absence()
    if reason:
        return {"available": False, "reason": reason}
    devices = [row(i) if row.has_index else row() for i in range(row.count())]
    return {
        "available": True,
        "devices": [device.describe() for device in devices],
        "amp": {amp: _try_amp(devices[0], amp) for amp in ("bf16", "fp16")},
        "compile": devices[0].can_compile,
    }


def _try_amp(accelerator: Accelerator, amp: str) -> str:
    """Outcome of a small convolution with its gradient: `native`, `emulated`, or why it does not work."""
    import torch

    try:
        support = accelerator.amp_support(amp)
        if support == "no":
            return support
        dtype = torch.bfloat16 if amp == "bf16" else torch.float16
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 2))
        layers.to(accelerator.device)
        with accelerator.autocast(dtype):
            output = layers(torch.ones(1, 3, 8, 8, device=accelerator.device))
        output.float().sum().backward()
        accelerator.synchronize()
    except (RuntimeError, ValueError) as error:
        return f"no: {first_line(error)}"
    return support if output.dtype is dtype else f"no: it computes in {output.dtype} instead"


def _has_backend(name: str) -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_backend_available(name)


def _instructions() -> list[str]:
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):
        return [torch.backends.cpu.get_cpu_capability()]
    has = torch.cpu.get_capabilities()
    return [name for name in INSTRUCTIONS if has.get(name)]
