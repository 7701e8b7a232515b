"""Which variables of a TensorFlow graph are TF-Slim's network, and what the others are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from torch import Tensor

from inception_v4.weights.record import Raw

SCOPE = "InceptionV4/"
_AVERAGE = "/ExponentialMovingAverage"
_NETWORK = re.compile(rf"{SCOPE}(?!AuxLogits).*/(weights|biases|BatchNorm/\w+)({_AVERAGE})?")


def is_network(name: str) -> bool:
    """A variable of the network or its moving average; not the auxiliary head, optimizer slots and counters."""
    return _NETWORK.fullmatch(name) is not None


def sort_variables(tensors: dict[str, Tensor], others: Iterable[str]) -> Raw:
    """The network's variables, their averages, and a list of the rest by kind."""
    state = {name: tensor for name, tensor in tensors.items() if not name.endswith(_AVERAGE)}
    average = {name.removesuffix(_AVERAGE): tensor for name, tensor in tensors.items() if name.endswith(_AVERAGE)}
    counts = Counter("AuxLogits/*" if "AuxLogits" in name else name.rsplit("/", 1)[-1] for name in others)
    extras = {kind: f"{count} variables" for kind, count in counts.items()}
    return Raw(state, ema=state | average if average else None, extras=extras)
