"""CUDA, Apple and Intel GPUs."""

from __future__ import annotations

import importlib.util
import os
import platform
import warnings
from typing import Any

from inception_v4.accelerator.base import Accelerator, CopyStream, DeviceError, first_line


class Indexed(Accelerator):
    """What cuda, npu and xpu share: several devices, streams, page-locked and counted memory, SyncBatchNorm."""

    pin_memory = True
    can_sync_bn_natively = True
    has_index = True
    can_overflow = True

    @classmethod
    def count(cls) -> int:
        import torch

        return torch.get_device_module(cls.type).device_count()

    def describe(self) -> str:
        return self.module.get_device_name(self.device.index)

    def activate(self, *, deterministic: bool = False, tf32: bool = True) -> None:
        super().activate(deterministic=deterministic)
        self.module.set_device(self.device)

    def amp_support(self, amp: str) -> str:
        return "native" if amp == "fp16" or self.module.is_bf16_supported() else "no"

    def memory(self) -> int | None:
        return int(self.module.mem_get_info(self.device)[0])

    def used_memory(self) -> int | None:
        return self.module.memory_allocated()

    def peak_memory(self) -> int | None:
        return self.module.max_memory_allocated()

    def reset_peak_memory(self) -> None:
        self.module.reset_peak_memory_stats()

    def process_group_options(self) -> dict[str, Any]:
        return {"device_id": self.device}

    def copy_stream(self) -> CopyStream:
        return CopyStream(self.module)

    @property
    def multi_tensor(self) -> bool:
        return True

    compile_cost = "a minute or more"

    def compile_problem(self) -> str | None:
        """Inductor writes Triton kernels for GPUs."""
        if importlib.util.find_spec("triton") is not None:
            return None
        return "Triton is not installed: reinstall torch, whose wheels for this device bring it"


class Cuda(Indexed):
    """NVIDIA GPUs, and AMD's under a ROCm build of torch."""

    type = "cuda"
    label = "CUDA GPU"
    backend = "cpu:gloo,cuda:nccl"
    onnx_provider = "CUDAExecutionProvider"

    @classmethod
    def absence(cls) -> str | None:
        import torch

        if not torch.backends.cuda.is_built():
            return f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch"
        with warnings.catch_warnings():  # an unusable driver is explained by the exception below
            warnings.simplefilter("ignore")
            if torch.cuda.is_available() and torch.cuda.device_count():
                return None
            try:
                torch.cuda.init()
            except (RuntimeError, AssertionError) as error:
                return f"{first_line(error)} (torch is built for CUDA {torch.version.cuda or torch.version.hip})"
        return f"no GPU is visible (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})"

    def activate(self, *, deterministic: bool = False, tf32: bool = True) -> None:
        import torch

        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        super().activate(deterministic=deterministic)
        # This pair keeps torch's older and newer TF32 settings consistent. After setting only the newer ones torch
        # raises where a library still reads the older.
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = not deterministic

    def amp_support(self, amp: str) -> str:
        if amp == "bf16" and not self.module.is_bf16_supported(including_emulation=False):
            return "emulated" if self.module.is_bf16_supported() else "no"
        return "native"

    def profiler(self, directory: str) -> Any:
        from torch import profiler

        return self._profile(profiler, directory, activity="CUDA")


class Mps(Accelerator):
    """Apple GPUs. Written from torch's documentation: no machine of this project's tests has one."""

    type = "mps"
    label = "Apple GPU"
    bf16_pays = False
    can_overflow = True
    onnx_provider = "CoreMLExecutionProvider"
    likes_channels_last = False

    @classmethod
    def absence(cls) -> str | None:
        import torch

        if not torch.backends.mps.is_built():
            return f"torch {torch.__version__} is built without MPS, which exists for macOS only"
        return None if torch.backends.mps.is_available() else "MPS needs an Apple GPU and macOS 14 or later"

    def describe(self) -> str:
        return f"Apple GPU ({platform.machine()}, macOS {platform.mac_ver()[0]})"

    def amp_support(self, amp: str) -> str:
        return "native"

    def ddp_options(self, *, fused_optimizer: bool = False) -> dict[str, Any]:
        raise DeviceError("mps is one device for one process: start without torchrun, or use the CPU")

    def compile_problem(self) -> str | None:
        return "torch's compiler for Metal is not finished: use another device"


class Xpu(Indexed):
    """Intel GPUs. Written from torch's documentation: no machine of this project's tests has one."""

    type = "xpu"
    label = "Intel GPU"
    bf16_pays = False
    backend = "cpu:gloo,xpu:xccl"
    onnx_provider = None

    @classmethod
    def absence(cls) -> str | None:
        import torch

        if not torch.xpu._is_compiled():
            return f"torch {torch.__version__} is built without XPU: install the XPU build of torch"
        return None if torch.xpu.is_available() else "no Intel GPU is visible: install Intel's GPU driver"

    def profiler(self, directory: str) -> Any:
        from torch import profiler

        return self._profile(profiler, directory, activity="XPU")
