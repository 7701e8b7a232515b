"""The 3x3 average of the Inception blocks. On a CPU its gradient in bfloat16 is a sum over windows too.

torch's own kernel adds the nine shares of a gradient to the map one by one, each time rounded to bfloat16. The sum over
the windows that a place belongs to is the same one: in a third of the time, and half as far from float64's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from inception_v4.network.as_run import runs_in_channels_last


class AvgPool(nn.AvgPool2d):
    """[B, C, H, W] to the same shape; padding does not count, as in TensorFlow."""

    def __init__(self) -> None:
        super().__init__(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return _average(x)
        return _average_as_run(x)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


@torch.fx.wrap
def _average_as_run(x: Tensor) -> Tensor:
    """What is compiled, exported, traced or in torch's own format is torch's operator, bit for bit."""
    if not runs_in_channels_last(x) or x.dtype != torch.bfloat16 or not x.requires_grad:
        return _average(x)
    average: Tensor = _Average.apply(x)
    return average


class _Average(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _average(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Nothing but the gradient is needed."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        places = _sums(gradients[0].new_ones(1, 1, *gradients[0].shape[2:]))  # of each window, without padding
        return _sums(gradients[0] / places)


def _sums(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, divisor_override=1)
