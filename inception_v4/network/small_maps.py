"""Convolutions of small feature maps as products of matrices: the same sums, in a form that CPUs compute faster.

Pictures below some 140 pixels leave maps of a few places to the later blocks. There a kernel of seven taps meets mostly
padding, and oneDNN's convolutions, above all their gradients, stay far below the rate of its matrix products. A 1x1
convolution is such a product as it is. A row of n places under a kernel of k taps is one with a matrix of n x n blocks,
where the convolution multiplies n k. And an output of a single place is the product of its whole window.
"""

from __future__ import annotations

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from inception_v4.network.as_run import runs_in_channels_last

LARGEST_MAP = {torch.bfloat16: 8, torch.float32: 5}
"""Side of the largest map for which products were measured to be faster, by type (docs/performance.md). Networks in
float64 are for comparisons: they stay bit for bit what convolutions give."""

Pair = tuple[int, ...]


class Conv2d(nn.Conv2d):
    """torch's convolution without bias; on a CPU, small maps [B, C, h, w] in channels_last become products of matrices.

    Only as they are run: what is compiled, exported, scripted or traced is the convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._conv_forward(x, self.weight, self.bias)
        padding = self.padding
        assert isinstance(padding, tuple), "numbers, not words"
        return _convolve(x, self.weight, self.stride, padding)


@torch.fx.wrap
def _convolve(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    y = _by_product(x, weight, stride, padding) if _suits(x, weight) else None
    return F.conv2d(x, weight, None, stride, padding) if y is None else y


def _suits(x: Tensor, weight: Tensor) -> bool:
    if not runs_in_channels_last(x):
        return False
    if x.dtype != weight.dtype and not torch.is_autocast_enabled("cpu"):
        return False
    if max(x.shape[2:]) > LARGEST_MAP.get(x.dtype, 0):
        return False
    # A map of one place has both formats, but the weights show which one the network was given: in torch's own it is to
    # compute what torch's convolution does, bit for bit.
    return weight.stride()[1::2] == (1, weight.shape[1])


def _by_product(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor | None:
    """The output in channels_last, or None where a convolution is as good."""
    (height, width), (up, left) = weight.shape[2:], padding
    if stride == (1, 1):
        if height == width == 1:
            # Flattened in the order of memory, so that its gradient has the strides of the weight.
            return F.linear(x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1).flatten(1)).permute(0, 3, 1, 2)
        if height == 1 and x.shape[3] <= left + 1:
            return _rows(x.permute(0, 2, 3, 1), weight[:, :, 0]).permute(0, 3, 1, 2)
        if width == 1 and x.shape[2] <= up + 1:
            y = _rows(x.permute(0, 3, 2, 1), weight[..., 0])  # [B, w, h, O]
            return y.transpose(1, 2).contiguous().permute(0, 3, 1, 2)
    elif all((side + 2 * pad - 3) // 2 == 0 for side, pad in zip(x.shape[2:], padding, strict=True)):
        window = weight[:, :, up : up + x.shape[2], left : left + x.shape[3]]  # what is not padding
        x = x[:, :, : window.shape[2], : window.shape[3]]
        y = F.linear(x.permute(0, 2, 3, 1).flatten(1), window.permute(0, 2, 3, 1).flatten(1))
        return y.view(len(y), 1, 1, -1).permute(0, 3, 1, 2)
    return None


def _rows(x: Tensor, weight: Tensor) -> Tensor:
    """Rows [B, m, n, C] under a kernel [O, C, 2 r + 1] padded by r >= n - 1: [B, m, n, O]."""
    batch, rows, places, _ = x.shape
    middle, taps = weight.shape[2] // 2, weight.to(x.dtype).transpose(1, 2)  # [O, taps, C], as in channels_last
    # Place j reads place i by tap i - j + r.
    matrix = torch.stack([taps[:, middle - j : middle - j + places] for j in range(places)])
    return F.linear(x.reshape(batch, rows, -1), matrix.flatten(2).flatten(0, 1)).view(batch, rows, places, -1)
