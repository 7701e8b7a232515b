"""What the figures of a benchmark depend on: the machine, its programs, and what is asked of them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from inception_v4 import __version__
from inception_v4.accelerator import Accelerator
from inception_v4.accelerator.npu import installed
from inception_v4.benchmark.contestants import TORCH_TYPES

PROGRAMS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")

MEASURED = ("load", "matrix_tflops")
"""Those of the conditions that differ from one time to the next on one machine."""


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What the figures depend on, as plain values."""
    return {
        "device": accelerator.describe(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: installed(name) for name in PROGRAMS},
        "inception-v4": __version__,
    }


def matrix_rates(accelerator: Accelerator) -> dict[str, float]:
    """TFLOP/s of a square matrix product in each precision that the device has, the ceiling of all figures."""
    precisions = ["fp32"]
    if accelerator.type != "cpu":
        precisions.append("tf32")
    if accelerator.amp_support("bf16") == "native":
        precisions.append("bf16")
    return {precision: round(_matrix_rate(accelerator, precision), 2) for precision in precisions}


def _matrix_rate(accelerator: Accelerator, precision: str) -> float:
    size = 2048 if accelerator.type == "cpu" else 8192
    accelerator.activate(tf32=precision != "fp32")
    a = torch.randn(size, size, device=accelerator.device).to(TORCH_TYPES[precision])
    torch.mm(a, a)
    accelerator.synchronize()
    seconds = min(seconds_per_call(accelerator, lambda: torch.mm(a, a), 0.2) for _ in range(5))
    return 2 * size**3 / seconds / 1e12


def seconds_per_call(accelerator: Accelerator, run: Callable[[], Any], least: float) -> float:
    """Mean over at least `least` seconds."""
    count, spent = 0, 0.0
    while count == 0 or spent < least:
        more = max(1, min(count, 64))
        started = time.perf_counter()
        for _ in range(more):
            run()
        accelerator.synchronize()
        spent += time.perf_counter() - started
        count += more
    return spent / count
