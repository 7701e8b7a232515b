"""Networks and files for the tests of weights: a real one with live signals, and tiny ones that only have the names."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from live import enliven
from torch import Tensor, nn

from inception_v4.network.model import InceptionV4
from inception_v4.weights.names import CANONICAL, COUNTER


def fresh(num_classes: int = 1000, in_channels: int = 3, **options: float) -> nn.Module:
    """A network in eval mode whose parameters are all zero: quicker than an initialised one."""
    with torch.device("meta"):
        model = InceptionV4(num_classes, in_channels, **options)
    model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    return model


@functools.cache
def network(num_classes: int = 1000) -> nn.Module:
    """Live weights, in eval mode; shared, so do not change it."""
    return enliven(fresh(num_classes))


def state(num_classes: int = 1000) -> dict[str, Tensor]:
    """The state dict of `network`, as a plain dict."""
    return dict(network(num_classes).state_dict())


def logits(model: nn.Module, size: int = 75, channels: int = 3) -> Tensor:
    """[2, classes] for two fixed random pictures."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(2, channels, size, size, generator=generator))


def tiny_state(num_classes: int = 1000, in_channels: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """All 896 names with two channels each: for everything that does not run the network."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in sorted(CANONICAL):
        if name.endswith(COUNTER):
            tensors[name] = torch.tensor(3)
        elif name.endswith("conv.weight"):
            fan_in = in_channels if name.startswith("features.0.") else 2
            tensors[name] = torch.randn(2, fan_in, 1, 3, generator=generator)
        elif name.startswith("last_linear"):
            shape = (num_classes, 2) if name.endswith("weight") else (num_classes,)
            tensors[name] = torch.randn(shape, generator=generator)
        else:
            tensors[name] = 0.5 + torch.rand(2, generator=generator)
    return tensors


def save(content: object, path: Path) -> Path:
    """`torch.save` that returns the path."""
    torch.save(content, path)
    return path


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Same names, types and bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
