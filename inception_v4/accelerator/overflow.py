"""Memory that was too small: how devices say it, and how it is free again afterwards."""

from __future__ import annotations

import gc

from inception_v4.accelerator.base import Accelerator

_WORDS = ("out of memory", "_STATUS_ALLOC_FAILED")
"""Of errors that are no class of their own: torch-npu's and MPS's, and those of CUDA's libraries."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
    )


def release_memory(accelerator: Accelerator) -> None:
    """Give back what nothing refers to any more, and what torch keeps of it for later."""
    gc.collect()
    if accelerator.can_overflow:
        accelerator.module.empty_cache()
