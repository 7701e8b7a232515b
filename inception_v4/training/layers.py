"""The layers of the network by timm's count, and the learning rate of each."""

from __future__ import annotations

import re

HEAD_LAYER = 20
"""Of timm's 21 layers of this network: the first three blocks are one, each other block is one, and the classifier."""


def layer_number(name: str) -> int:
    """The layer of a parameter by its name, from 0 at the input to `HEAD_LAYER`, as timm counts."""
    block = re.match(r"features\.(\d+)\.", name)
    return max(int(block[1]) - 2, 0) if block else HEAD_LAYER


def rate_scale(name: str, *, layer_decay: float | None, head: float) -> float:
    """The factor of the learning rate of a parameter."""
    layer = layer_number(name)
    return (layer_decay or 1.0) ** (HEAD_LAYER - layer) * (head if layer == HEAD_LAYER else 1.0)
