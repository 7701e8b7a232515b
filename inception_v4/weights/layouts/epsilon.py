"""BatchNorm parameters for another epsilon, with the same function."""

from __future__ import annotations

import torch
from torch import Tensor

from inception_v4.weights.names import UNITS

EPSILON = 1e-3
"""Of the paper's network, and of every program that has no setting for it."""


def shift_epsilon(state: dict[str, Tensor], held: float, wanted: float) -> dict[str, Tensor]:
    """The canonical state for networks whose BatchNorm adds `wanted` to the variance instead of `held`.

    The variance takes up the difference. Where it would fall below zero it becomes zero and gamma takes the rest, so
    that gamma / sqrt(variance + epsilon) stays what it was. Half precision cannot hold the shift, so it is widened.
    """
    if held == wanted:
        return state
    state = {name: tensor.to(widened(tensor)) for name, tensor in state.items()}
    changed = dict(state)
    for unit in UNITS:
        gamma, variance = state[f"{unit}.bn.weight"], state[f"{unit}.bn.running_var"]
        total = variance.double() + held
        short = total < wanted
        scale = torch.where(short, (wanted / total).sqrt(), 1.0)
        changed[f"{unit}.bn.running_var"] = torch.where(short, 0.0, total - wanted).to(variance.dtype)
        if short.any():
            changed[f"{unit}.bn.weight"] = (gamma.double() * scale).to(gamma.dtype)
    return changed


def moved(held: float, wanted: float) -> str:
    """What people are told of it."""
    return f"BatchNorm: variances moved from epsilon {held} to {wanted}, same function"


def widened(tensor: Tensor) -> torch.dtype:
    """float32 for half precision, else the tensor's own type."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
