"""A stand-in for torch-npu over the simulated device: what this project uses of it, with the same names."""

from __future__ import annotations

import importlib.util
import os

if os.environ.get("NPU_SIMULATOR_CANN") == "0":
    raise ImportError("libhccl.so: cannot open shared object file: No such file or directory")

# As the real one: torch must not load this module again while it is being loaded.
_AUTOLOAD = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1")
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch  # noqa: E402

_spec = importlib.util.find_spec("_npu_simulator_hccl")
assert _spec is not None and _spec.origin is not None
torch.ops.load_library(_spec.origin.replace("_hccl", "_device"))
torch.utils.rename_privateuse1_backend("npu")

from torch_npu import npu  # noqa: E402

torch._register_device_module("npu", npu)
torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)

from torch_npu import _patches, optim, profiler  # noqa: E402, F401

_patches.apply()


def _autoload() -> None:
    """torch's entry point. Child processes inherit the switch as it was."""
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = _AUTOLOAD


_autoload()

# ---- what the real fused optimizers call


def get_npu_format(tensor: torch.Tensor) -> int:
    """2 is ND: nothing here has a private layout."""
    return 2


def npu_format_cast(tensor: torch.Tensor, layout: int) -> torch.Tensor:
    """`tensor`: every layout here is ND."""
    return tensor


def get_storage_size(tensor: torch.Tensor) -> int:
    """Elements of the storage."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def npu_change_data_ptr(tensor: torch.Tensor, buffer: torch.Tensor, offset: int) -> int:
    """Let `tensor` be a window into `buffer` from element `offset` on."""
    torch.ops.npu_simulator.move_into(tensor, buffer, offset)
    return 0
