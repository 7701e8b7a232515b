"""What every device can do, and the answers that hold for most of them. The base class is also the CPU's row."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import random
import shutil
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from inception_v4.accelerator.containers import memory_limits
from inception_v4.accelerator.glibc import keep_freed_memory

if TYPE_CHECKING:
    import torch

AMP_TYPES = ("off", "bf16", "fp16")

T = TypeVar("T")


class DeviceError(ValueError):
    """A device, or a property of it, that was asked for and is not there. One line: what, why and the remedy."""

    exit_code = 2
    """Of the command line: a setting is wrong."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class CopyStream:
    """Copies to the device beside its computation: `with stream: ahead = copy(...)`, later `stream.ready(ahead)`.

    Batches must be made ready in the order in which they were copied. Without `module` (`torch.cuda` and its like)
    it is the off state: the device does everything in order.
    """

    def __init__(self, module: Any = None) -> None:
        self._module = module
        self._stream = self._module.Stream() if module is not None else None
        self._context: Any = contextlib.nullcontext()
        self._copied: deque[Any] = deque()

    def __enter__(self) -> CopyStream:
        if self._stream is not None:
            self._context = self._module.stream(self._stream)
        self._context.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._stream is not None:
            # One event per batch: the next batch's copy, already under way, is not waited for.
            self._copied.append(self._stream.record_event())
        self._context.__exit__(*exception)

    def ready(self, batch: T) -> T:
        """`batch`, to be used from here on: the computing stream waits for its copy."""
        if self._stream is None:
            return batch
        current = self._module.current_stream()
        current.wait_event(self._copied.popleft())
        for tensor in _tensors(batch):
            # Its memory belongs to the copying stream, which must not reuse it while the other computes.
            tensor.record_stream(current)
        return batch


def _tensors(batch: Any) -> list[Any]:
    values = list(batch) if isinstance(batch, (tuple, list)) else list(getattr(batch, "__dict__", {"": batch}).values())
    return [value for value in values if hasattr(value, "record_stream") and value.device.type != "cpu"]


class Accelerator:
    """One device of this process, and how it differs from others. Ask `select` for it."""

    type: ClassVar[str] = "cpu"
    """As in `torch.device`."""
    label: ClassVar[str] = "CPU"
    compile_cost: ClassVar[str] = "up to a minute for inference, 3 to 4 minutes for training, on two cores"
    backend: ClassVar[str] = "gloo"
    """Of the process group: whose tensors travel over what."""
    onnx_provider: ClassVar[str | None] = "CPUExecutionProvider"
    """What ONNX Runtime calls it; None where it has nothing for it."""
    pin_memory: ClassVar[bool] = False
    """Whether copies from page-locked memory are faster, and can run beside computation."""
    can_sync_bn_natively: ClassVar[bool] = False
    """Whether `torch.nn.SyncBatchNorm` runs."""
    likes_channels_last: ClassVar[bool] = True
    bf16_pays: ClassVar[bool] = True
    """Whether this network is faster in bfloat16 wherever the device has it natively; False also where nobody knows."""
    can_overflow: ClassVar[bool] = False
    """Whether what does not fit into memory is an error that can be caught; a machine swaps, or ends the process."""
    has_index: ClassVar[bool] = False
    probing_is_free: ClassVar[bool] = True
    """Whether asking for `absence` leaves no trace in the process."""

    def __init__(self, index: int | None = None) -> None:
        import torch

        self.device = torch.device(self.type) if index is None else torch.device(self.type, index)

    def __repr__(self) -> str:
        return f"Accelerator({str(self.device)!r})"

    @property
    def module(self) -> Any:
        """`torch.cpu`, `torch.cuda`, ...: the name space of this kind of device."""
        import torch

        return torch.get_device_module(self.type)

    # ---- is it there

    @classmethod
    def expected(cls) -> bool:
        """Whether the machine looks as if it had such a device, whatever its software."""
        return False

    @classmethod
    def absence(cls) -> str | None:
        """Why this kind of device cannot be used here, and the remedy; None when it can."""
        return None

    @classmethod
    def count(cls) -> int:
        """How many devices there are, where `absence` is None."""
        return 1

    def describe(self) -> str:
        """The device in words, for logs."""
        import torch

        name = torch.cpu.get_capabilities().get("cpu_name") if hasattr(torch.cpu, "get_capabilities") else None
        return f"{name or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"

    # ---- modes and precision

    def activate(self, *, deterministic: bool = False, tf32: bool = True) -> None:
        """Make this the device of the process and set its modes. Call before anything is moved to it.

        `tf32` allows shortened products in float32 (TF32, HF32); the CPU has none and stays exact.
        """
        import torch

        # The call imports torch's compiler, which takes as long as torch itself.
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic)
        if self.type == "cpu":
            keep_freed_memory()

    def amp_dtype(self, amp: str) -> torch.dtype | None:
        """The type that `amp` ("off", "bf16" or "fp16") computes in; None is off.

        Raises:
            DeviceError: the device cannot compute in it.
        """
        import torch

        if amp not in AMP_TYPES:
            raise DeviceError(f"amp {amp!r} is none of {', '.join(AMP_TYPES)}")
        if amp == "off":
            return None
        support = self.amp_support(amp)
        if support == "no":
            raise DeviceError(f"amp {amp} is not supported by {self.describe()}: use amp {_other(amp)}, or off")
        if support == "emulated":
            logging.getLogger(__name__).warning(
                "amp %s is emulated by this %s and slower than amp off", amp, self.label
            )
        return torch.bfloat16 if amp == "bf16" else torch.float16

    def amp_support(self, amp: str) -> str:
        """How the device computes in "bf16" or "fp16": "native", "emulated" (right, and slower than float32), "no"."""
        import torch

        from inception_v4.accelerator.onednn import multiplies_bf16

        if not torch.backends.mkldnn.is_available():
            return "emulated"
        mkldnn = torch.ops.mkldnn
        query = mkldnn._is_mkldnn_bf16_supported if amp == "bf16" else mkldnn._is_mkldnn_fp16_supported
        return "native" if query() and (amp != "bf16" or multiplies_bf16()) else "emulated"

    def autocast(self, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision in `dtype` (from `amp_dtype`) while it is open; None does nothing."""
        import torch

        return contextlib.nullcontext() if dtype is None else torch.autocast(self.type, dtype=dtype)

    def grad_scaler(
        self, dtype: torch.dtype | None, loss_scale: float | str = "dynamic", *, fused_optimizer: bool = False
    ) -> Any:
        """A GradScaler that can hold its scale constant and counts skipped steps; off unless `dtype` is float16.

        Args:
            dtype: from `amp_dtype`.
            loss_scale: "dynamic", or a number that the scale keeps. Steps that overflow are left out with both.
            fused_optimizer: whether the optimizer comes from `fused_optimizer`.

        Returns:
            `inception_v4.accelerator.scaler.counting`'s class over `torch.amp.GradScaler` or the vendor's.
        """
        import torch

        from inception_v4.accelerator.scaler import counting

        enabled = dtype is torch.float16
        vendor = self.vendor_scaler(fused_optimizer=fused_optimizer) if enabled else None
        options = {} if vendor else {"device": self.type}
        return counting(vendor or torch.amp.GradScaler)(loss_scale, enabled=enabled, **options)

    def vendor_scaler(self, *, fused_optimizer: bool) -> Any | None:
        """The GradScaler class that has to replace torch's own, if any."""
        return None

    def memory_format(self, channels_last: bool | None = None) -> torch.memory_format:
        """Channels-last or contiguous; None is what the device likes. What it cannot do is a DeviceError."""
        import torch

        wanted = self.likes_channels_last if channels_last is None else channels_last
        return torch.channels_last if wanted else torch.contiguous_format

    # ---- memory, order of work, random numbers

    def synchronize(self) -> None:
        """Wait until the device has done all its work."""
        self.module.synchronize()

    def memory(self) -> int | None:
        """Bytes that this process may fill: free device memory, or a share of the machine's; None where unknown."""
        if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
            return None
        total = min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *memory_limits()])
        return total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def used_memory(self) -> int | None:
        """Bytes in use now: of the device, by tensors; on the CPU by the process. None where nobody counts."""
        statm = "/proc/self/statm"
        if self.type != "cpu" or not os.path.exists(statm):
            return None
        with open(statm) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_memory(self) -> int | None:
        """Most bytes in use since the last reset, on the CPU since the process started; None where nobody counts."""
        status = "/proc/self/status"
        if self.type != "cpu" or not os.path.exists(status):
            return None
        with open(status) as file:
            return next((1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:")), None)

    def reset_peak_memory(self) -> None:
        """Start a new count for `peak_memory`."""

    def copy_stream(self) -> CopyStream:
        """For copies beside computation; in order on devices without streams."""
        return CopyStream()

    def seed(self, seed: int) -> None:
        """Seed Python's, numpy's and torch's generators, on the host and on every device."""
        import numpy as np
        import torch

        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    # ---- processes, optimizer, compiler, profiler

    @property
    def multi_tensor(self) -> bool:
        """Whether torch's foreach kernels pay off."""
        return False

    def process_group_options(self) -> dict[str, Any]:
        """Keywords for `torch.distributed.init_process_group` beside the back end's name and the time limit."""
        return {}

    def ddp_options(self, *, fused_optimizer: bool = False) -> dict[str, Any]:
        """Keywords for DistributedDataParallel, beside `device_ids`, that depend on the device."""
        return {"gradient_as_bucket_view": True}

    def fused_optimizer(self, name: str) -> Any | None:
        """The vendor's fused form of the optimizer `name` (as in the settings), a class; None where there is none."""
        return None

    def compile_problem(self) -> str | None:
        """What `torch.compile` lacks here, and the remedy; None where it has all it needs. On the CPU: a compiler."""
        if any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")):
            return None
        return "there is no C++ compiler on PATH: install g++"

    @property
    def can_compile(self) -> bool:
        """Whether `compile` works."""
        return self.compile_problem() is None

    def compile_notice(self, what: str) -> str:
        """A line for the person who waits while `what` compiles: how long it may take and that it is done once."""
        return (
            f"{what} compiles the network for this {self.label}, once: {self.compile_cost}, with nothing to see "
            "meanwhile; torch keeps the code (TORCHINDUCTOR_CACHE_DIR), so the same network starts sooner next time"
        )

    def compile(self, network: torch.nn.Module) -> Any:
        """`network` through `torch.compile`.

        Raises:
            DeviceError: the device has no compiler. torch itself would find out at the first step, in many lines.
        """
        import torch

        problem = self.compile_problem()
        if problem:
            raise DeviceError(f"compile is impossible on this {self.label}: {problem}, or leave --compile out")
        return torch.compile(network)

    def profiler(self, directory: str) -> Any:
        """A context manager with `.step()` that leaves a TensorBoard trace of steps 2 to 4 (from 0) in `directory`."""
        from torch import profiler

        return self._profile(profiler, directory)

    def _profile(self, profiler: Any, directory: str, *, activity: str | None = None) -> Any:
        activities = [profiler.ProfilerActivity.CPU]
        if activity:
            activities.append(getattr(profiler.ProfilerActivity, activity))
        return profiler.profile(
            activities=activities,
            schedule=profiler.schedule(wait=1, warmup=1, active=3, repeat=1),
            on_trace_ready=profiler.tensorboard_trace_handler(str(directory)),
        )


def _other(amp: str) -> str:
    return "fp16" if amp == "bf16" else "bf16"
