"""Whether two programs compute the same network: pictures to compare them on, and how near is near."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from inception_v4.data.shapes import KINDS, draw_shape
from inception_v4.weights import WeightsInfo

BOUNDS = {"off": 1e-4, "bf16": 3e-2}
"""Largest `deviation` from float32 in PyTorch, by precision. Rounding costs 1e-6 and 5e-3."""


def check_pictures(info: WeightsInfo) -> Tensor:
    """Five pictures, uint8 [5, C, S, S]: drawn shapes where the network takes RGB, and noise."""
    size = info.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (5, info.in_channels, size, size), generator=generator, dtype=torch.uint8)
    if info.in_channels == 3:
        for row, kind in enumerate(KINDS[:3]):
            pictures[row] = torch.from_numpy(np.array(draw_shape(kind, row, size))).permute(2, 0, 1)
    return pictures


def deviation(expected: Tensor, actual: Tensor) -> float:
    """Of outputs [N, K], as a share of what is expected, as the benchmark's column has it."""
    return float((actual.float() - expected.float()).norm() / expected.float().norm())
