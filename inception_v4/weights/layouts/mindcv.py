"""The layout `mindcv`: MindCV's InceptionV4, 747 tensors in `.ckpt` or MindSpore's safetensors."""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import Tensor

from inception_v4.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from inception_v4.weights.layouts.epsilon import EPSILON, moved, shift_epsilon
from inception_v4.weights.layouts.pytorch import note_counters, with_counters
from inception_v4.weights.names import HEAD, UNITS, difference
from inception_v4.weights.record import WeightsError, WeightsInfo

PREPROCESSING = Preprocessing(
    mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=0.875, interpolation="bilinear", antialias=False
)

_LEAVES = {
    "conv.weight": "conv.weight",
    "bn.running_mean": "bn.moving_mean",
    "bn.running_var": "bn.moving_variance",
    "bn.weight": "bn.gamma",
    "bn.bias": "bn.beta",
}
"""In MindSpore's order."""

_STEM = {
    "features.0": "features.0.conv2d_1a_3x3",
    "features.1": "features.0.conv2d_2a_3x3",
    "features.2": "features.0.conv2d_2b_3x3",
    "features.3.conv": "features.0.mixed_3a_branch_1",
    "features.5.conv": "features.0.mixed_5a_branch_0",
}
_FORKS = {
    "1_0": "1",
    "1_1a": "1_1",
    "1_1b": "1_2",
    "2_0": "2.0",
    "2_1": "2.1",
    "2_2": "2.2",
    "2_3a": "2_1",
    "2_3b": "2_2",
}
"""The last blocks' branches that fork."""


def unit_name(unit: str) -> str:
    """MindCV's name of a convolution unit."""
    if unit in _STEM:
        return _STEM[unit]
    _, block, rest = unit.split(".", 2)
    if block == "4":
        return "features.0.mixed_4a_" + rest.replace("branch", "branch_")
    fork = rest.removeprefix("branch")
    return f"features.{int(block) - 5}.branch_{_FORKS.get(fork, fork)}"


def table() -> dict[str, str]:
    """Canonical name -> MindCV's name, 747 of them in MindSpore's order."""
    names = {f"{unit}.{leaf}": f"{unit_name(unit)}.{other}" for unit in UNITS for leaf, other in _LEAVES.items()}
    return names | dict(zip(HEAD, ("classifier.weight", "classifier.bias"), strict=True))


def is_mindcv(names: Collection[str]) -> bool:
    """Units below `features.0.conv2d_...` with the leaf `bn.gamma`."""
    return any(re.fullmatch(r"features\..*\.bn\.gamma", name) for name in names)


def decode(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Renamed; no number changes."""
    return with_counters(rename(state, table()), notes)


def rename(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of `state` under the keys of `names` instead of its values.

    Raises:
        WeightsError: a tensor is missing or has no place.
    """
    if not any(name.endswith("moving_mean") for name in state):
        raise WeightsError(
            "holds no BatchNorm statistics, as MindCV's optim_*.ckpt do: name the model's own .ckpt, which has them"
        )
    missing, unexpected = set(names.values()) - state.keys(), state.keys() - set(names.values())
    if missing or unexpected:
        raise WeightsError(f"not a complete network of this layout: {difference(missing, unexpected)}")
    return {name: state[other] for name, other in names.items()}


def encode(state: dict[str, Tensor], info: WeightsInfo, notes: list[str]) -> dict[str, Tensor]:
    """Renamed; BatchNorm's batch counters have no place there."""
    shifted = shift_epsilon(state, info.bn_eps, EPSILON)
    if shifted is not state:
        notes.append(moved(info.bn_eps, EPSILON))
    note_counters(state, notes)
    return {other: shifted[name] for name, other in table().items()}
