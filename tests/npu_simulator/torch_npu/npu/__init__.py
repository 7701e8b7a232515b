"""`torch.npu`: devices, modes, streams and memory of the simulated NPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch_npu.npu import amp, utils  # noqa: F401

CHIP = os.environ.get("NPU_SIMULATOR_CHIP", "Ascend910B3")
FIRST_910 = CHIP in ("Ascend910", "Ascend910A")

modes: dict[str, Any] = {
    # The first Ascend 910 compiles operators just in time and keeps private layouts unless it is told not to.
    "jit_compile": FIRST_910,
    "allow_internal_format": FIRST_910,
    "matmul.allow_hf32": False,
    "conv.allow_hf32": True,
}
"""What has been set; for tests to look at."""


class _Modes:
    def __init__(self, prefix: str, *, readable: bool) -> None:
        self.__dict__.update(prefix=prefix, readable=readable)

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, but got {type(value).__name__}")
        modes[self.prefix + name] = value

    def __getattr__(self, name: str) -> Any:
        if not self.readable:
            raise AttributeError(name)
        return modes[self.prefix + name]


config = _Modes("", readable=False)  # the real one can be written only
matmul = _Modes("matmul.", readable=True)
conv = _Modes("conv.", readable=True)


def set_compile_mode(jit_compile: bool = False) -> None:
    modes["jit_compile"] = jit_compile


def is_jit_compile_false() -> bool:
    return not modes["jit_compile"]


def device_count() -> int:
    return int(os.environ.get("NPU_SIMULATOR_DEVICES", "1"))


def is_available() -> bool:
    return device_count() > 0


def is_initialized() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    return False


def get_device_name(device_name: Any = None) -> str:
    return CHIP


def is_bf16_supported(including_emulation: bool = False) -> bool:
    return not FIRST_910


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.float32] + ([torch.bfloat16] if is_bf16_supported() else [])


def set_device(device: Any) -> None:
    torch.accelerator.set_device_index(torch.device("npu", device) if isinstance(device, int) else device)


def current_device() -> int:
    return torch.accelerator.current_device_index()


@contextlib.contextmanager
def device(device: Any) -> Iterator[None]:
    before = current_device()
    set_device(device)
    try:
        yield
    finally:
        set_device(before)


def synchronize(device: Any = None) -> None:
    if not is_available():
        raise RuntimeError("No NPUs are available")


class Stream(torch.Stream):
    def __new__(cls, device: Any = None, priority: int = 0) -> Stream:
        return super().__new__(cls, device="npu" if device is None else device, priority=priority)


def current_stream(device: Any = None) -> torch.Stream:
    return torch.accelerator.current_stream()


@contextlib.contextmanager
def stream(stream: torch.Stream) -> Iterator[None]:
    before = current_stream()
    torch.accelerator.set_stream(stream)
    try:
        yield
    finally:
        torch.accelerator.set_stream(before)


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and all: a card of 64 GiB."""
    return 2**36 - memory_allocated(), 2**36


def memory_allocated(device: Any = None) -> int:
    return torch.accelerator.memory_allocated()


def max_memory_allocated(device: Any = None) -> int:
    return torch.accelerator.max_memory_allocated()


def empty_cache() -> None:
    """Nothing is kept for later: what is freed is the host's again at once."""


def reset_peak_memory_stats(device: Any = None) -> None:
    torch.accelerator.reset_peak_memory_stats()


def manual_seed_all(seed: int) -> None:
    """Operations without a generator draw from the CPU's, which `torch.manual_seed` seeds."""
