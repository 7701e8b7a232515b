"""Where the network takes forms that a CPU computes faster: the same sums in the commands' format, as they are run."""

from __future__ import annotations

import torch
from torch import Tensor


def runs_in_channels_last(x: Tensor) -> bool:
    """Whether `x` [B, C, H, W] is in channels_last on a CPU, and nothing compiles, exports or traces the operator."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return x.is_contiguous(memory_format=torch.channels_last)
