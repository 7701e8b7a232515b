"""Ascend NPUs through torch-npu. Layout, precision and optimizers have rules of their own; see docs/ascend.md."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from inception_v4.accelerator.base import DeviceError, first_line
from inception_v4.accelerator.devices import Indexed

if TYPE_CHECKING:
    import torch

DEVICE_FILES = "/dev/davinci[0-9]*"


def prepare_npu(*, wanted: bool) -> None:
    """Before torch's first import: no automatic import of torch-npu, and patience where an NPU is wanted.

    torch imports an installed torch-npu by itself, and where CANN is missing `import torch` then fails for
    everybody. That is switched off; `Npu.absence` imports torch-npu when an NPU is wanted, and explains a failure.
    HCCL's own limits, 120 s for the first connection and 1836 s for an operation, are short while one process
    still decodes or compiles.
    """
    if importlib.util.find_spec("torch_npu") is not None:
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    if wanted:
        os.environ.setdefault("HCCL_CONNECT_TIMEOUT", "1200")
        os.environ.setdefault("HCCL_EXEC_TIMEOUT", "3600")


class Npu(Indexed):
    """One Ascend NPU: contiguous tensors only, HF32 for TF32, HCCL for NCCL."""

    type = "npu"
    label = "Ascend NPU"
    backend = "cpu:gloo,npu:hccl"
    onnx_provider = "CANNExecutionProvider"
    bf16_pays = False
    likes_channels_last = False
    probing_is_free = False

    @classmethod
    def expected(cls) -> bool:
        return bool(glob.glob(DEVICE_FILES)) or "torch_npu" in sys.modules

    @classmethod
    def absence(cls) -> str | None:
        reason = _import_problem()
        if reason:
            return reason
        import torch

        if torch.get_device_module("npu").device_count() > 0:
            return None
        visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "not set")
        return (
            f"torch-npu is there, but no NPU is visible (ASCEND_RT_VISIBLE_DEVICES={visible}): "
            "`npu-smi info` shows the driver and the devices"
        )

    def activate(self, *, deterministic: bool = False, tf32: bool = True) -> None:
        super().activate(deterministic=deterministic)
        # With operators compiled just in time, or with internal formats, `.to` would turn the weights of
        # convolutions into a private layout. Both are the default on the first Ascend 910.
        self.module.set_compile_mode(jit_compile=False)
        self.module.config.allow_internal_format = False
        self.module.matmul.allow_hf32 = tf32
        self.module.conv.allow_hf32 = tf32

    def vendor_scaler(self, *, fused_optimizer: bool) -> Any | None:
        # torch's own scaler looks for infinities in one gradient after the other. Numbers on the first Ascend 910
        # saturate and raise a status flag instead; fused optimizers keep all gradients in one buffer.
        if not fused_optimizer and self._has_infinity():
            return None
        from torch_npu.npu.amp import GradScaler

        return GradScaler

    def _has_infinity(self) -> bool:
        from torch_npu.npu.utils import is_support_inf_nan

        return is_support_inf_nan()

    def memory_format(self, channels_last: bool | None = None) -> torch.memory_format:
        if channels_last:
            raise DeviceError("channels_last is impossible on Ascend NPUs: leave it out, or set it to false")
        return super().memory_format(False)

    @property
    def multi_tensor(self) -> bool:
        """As torch-npu decides it: not on the first Ascend 910."""
        return self._has_infinity()

    def ddp_options(self, *, fused_optimizer: bool = False) -> dict[str, Any]:
        # A fused optimizer moves the gradients into its own buffer: they cannot be views of DDP's buckets too.
        return {"gradient_as_bucket_view": not fused_optimizer}

    def fused_optimizer(self, name: str) -> Any | None:
        from torch_npu.optim import NpuFusedRMSpropTF, NpuFusedSGD

        optimizers = {
            "rmsproptf": NpuFusedRMSpropTF,
            "momentum": NpuFusedSGD,
            "nesterov": NpuFusedSGD,
            "sgd": NpuFusedSGD,
        }
        return _checked(optimizers[name]) if name in optimizers else None

    def compile_problem(self) -> str | None:
        """Training needs inductor, and inductor needs Ascend's Triton."""
        return None if installed("triton-ascend") else "it needs Ascend's Triton: `pip install triton-ascend`"

    def profiler(self, directory: str) -> Any:
        from torch_npu import profiler

        return self._profile(profiler, directory, activity="NPU")


def _checked(fused: Any) -> Any:
    """`fused`, one of torch-npu's flattening optimizers, with its conditions enforced.

    At its first step it moves all parameters and gradients into one buffer. So parameters must be contiguous,
    float32 or float16 and on the NPU, afterwards they may be changed in place only, and a gradient stays where it
    is: `zero_grad` fills it with zeros whatever `set_to_none` says. `zero_grad` belongs before the forward pass,
    because it may be what moves the parameters.
    """
    import torch

    class Checked(fused):
        def __init__(self, params: Iterable[Any], *args: Any, **options: Any) -> None:
            super().__init__(params, *args, **options)
            for param in (param for group in self.param_groups for param in group["params"]):
                if param.device.type != Npu.type or not param.is_contiguous():
                    raise DeviceError(f"fused_optimizer needs contiguous parameters on the NPU, not {param.device}")
                if param.dtype not in (torch.float32, torch.float16):
                    raise DeviceError(f"fused_optimizer needs float32 or float16 parameters, not {param.dtype}")

        def zero_grad(self, set_to_none: bool = False) -> None:
            super().zero_grad(set_to_none=False)

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            # The plain optimizer's state has neither all options (without `lr_in_momentum` the fused one would
            # silently compute something else) nor a count of steps.
            super().load_state_dict(state_dict)
            for group in self.param_groups:
                group.update(self.defaults | group)
            for state in self.state.values():
                state.setdefault("step", 0)

    Checked.__name__ = Checked.__qualname__ = fused.__name__
    return Checked


def _import_problem() -> str | None:
    """Why torch-npu cannot be imported, and the remedy; None once it is imported."""
    import torch

    if "torch_npu" in sys.modules:
        return None
    ours, theirs = _series(torch.__version__), installed("torch-npu")
    if importlib.util.find_spec("torch_npu") is None:
        return (
            f"torch-npu is not installed: install CANN, and `pip install 'torch-npu=={ours}.*'` (where there is none "
            "yet, an older torch too; docs/ascend.md has the pairs)"
        )
    if theirs and _series(theirs) != ours:
        return (
            f"torch-npu {theirs} does not fit torch {torch.__version__}: `pip install torch=={_release(theirs)} "
            f"torchvision torch-npu=={theirs}`, or `pip install 'torch-npu=={ours}.*'` where there is one"
        )
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    if torch.version.cuda and not _survives_import():
        return f"torch-npu cannot be loaded beside torch {torch.__version__}: install the CPU build of torch"
    try:
        import torch_npu  # noqa: F401
    except Exception as error:  # plain Exception, ImportError, OSError, RuntimeError: all of them have been seen
        return _explain(error)
    return None


def _survives_import() -> bool:
    """Whether a process lives through `import torch_npu`.

    Beside a CUDA build of torch it can be aborted, which no `except` catches. An ordinary exception counts as
    life: the caller meets and explains it.
    """
    script = "import contextlib, torch\nwith contextlib.suppress(Exception):\n import torch_npu"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def _explain(error: Exception) -> str:
    line = first_line(error)
    if "cannot open shared object" in line:
        return (
            f"torch-npu is installed, but CANN is not set up ({line}): install CANN and "
            "`source /usr/local/Ascend/ascend-toolkit/set_env.sh`"
        )
    if "Two accelerators" in line:
        return "torch-npu refuses a torch that sees a CUDA GPU too: install the CPU build of torch"
    if "ASCEND" in line:
        return f"CANN is not set up ({line}): `source` its set_env.sh"
    return f"torch-npu cannot be imported ({line})"


def installed(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> str:
    """`2.10.0.post4` is made for torch `2.10.0`."""
    return ".".join(version.split("+")[0].split(".")[:3])


def _series(version: str) -> str:
    return ".".join(version.split(".")[:2])
