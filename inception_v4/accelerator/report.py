"""The state of this machine for `inception-v4 env`: what is installed, what is there, and what works by trying it."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inception_v4.accelerator.base import Accelerator, first_line
from inception_v4.accelerator.npu import installed

PACKAGES = ("torch", "torchvision", "timm", "torch-npu", "numpy", "Pillow", "simplejpeg", "safetensors")
BACKENDS = ("gloo", "nccl", "hccl", "xccl", "mpi", "ucc")
INSTRUCTIONS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "bf16", "fp16")
"""Those that decide the speed of a CPU in reduced precision."""


def collect(rows: Mapping[str, type[Accelerator]]) -> dict[str, Any]:
    """Versions, devices (or why they are absent), precisions, process-group back ends and the CPU."""
    import torch

    return {
        "versions": package_versions(),
        "commit": package_commit() or "none: installed, not a checkout",
        "devices": {kind: _describe(row) for kind, row in rows.items()},
        "backends": [name for name in BACKENDS if _has_backend(name)],
        "cpu": _instructions(),
        "threads": torch.get_num_threads(),
    }


def package_versions() -> dict[str, str]:
    """Of this package, Python and what results may depend on."""
    import torch

    from inception_v4 import __version__

    versions = {"inception-v4": __version__, "python": platform.python_version()}
    versions |= {name: installed(name) or "not installed" for name in PACKAGES}
    return versions | {"torch": torch.__version__}  # with the build, such as +cpu


def package_commit() -> str | None:
    """The git commit that the package is run from, `+changes` where files of it differ; None where there is none."""
    top = Path(__file__).parents[2]
    try:
        # The package may be installed below some other project's checkout.
        if Path(_git(top, "rev-parse", "--show-toplevel")).resolve() != top.resolve():
            return None
        changed = _git(top, "status", "--porcelain", "--untracked-files=no", "--", "inception_v4", "configs")
        return _git(top, "rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no checkout


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


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
