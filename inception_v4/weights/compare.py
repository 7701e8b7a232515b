"""Whether two sets of weights are the same network, told from the numbers alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inception_v4.weights.names import COUNTER, HEAD, UNITS
from inception_v4.weights.record import Weights


def identical(one: dict[str, Tensor], other: dict[str, Tensor], dtype: torch.dtype | None = None) -> tuple[int, int]:
    """(number of bit-identical tensors, number of tensors), batch counters left out; `one` after a cast to `dtype`."""
    names = [name for name in one if COUNTER not in name]
    pairs = ((one[name] if dtype is None else one[name].to(dtype), other[name]) for name in names)
    return sum(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs), len(names)


def largest_difference(one: Weights, other: Weights) -> float:
    """The largest difference of any unit's kernel and shift, relative to its largest value.

    BatchNorm is folded in first, in float64, because layouts may write one function with different numbers.
    """
    largest = 0.0
    for unit in (*UNITS, None):
        for a, b in zip(_affine(one, unit), _affine(other, unit), strict=True):
            difference = float((a - b).abs_().max() / a.abs().max().clamp(min=1e-30))
            largest = max(largest, difference if math.isfinite(difference) else math.inf)
    return largest


def _affine(weights: Weights, unit: str | None) -> tuple[Tensor, Tensor]:
    """(kernel, shift) of a convolution unit, or of the classifier (None)."""
    state = weights.state
    if unit is None:
        return state[HEAD[0]].double(), state[HEAD[1]].double()
    leaves = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (state[f"{unit}.bn.{leaf}"].double() for leaf in leaves)
    scale = gamma / (variance + weights.info.bn_eps).sqrt()
    return state[f"{unit}.conv.weight"].double() * scale.view(-1, 1, 1, 1), beta - mean * scale
