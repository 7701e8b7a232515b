"""The layouts `torch` (timm's names, which are ours) and `cadene` (the same with 1001 classes or 2017's spellings)."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import Tensor

from inception_v4.weights.layouts.epsilon import EPSILON, moved, shift_epsilon
from inception_v4.weights.names import CANONICAL, COUNTER, modernise, wrapper_prefix
from inception_v4.weights.record import WeightsInfo

_STATISTICS = re.compile(r"\bfeatures\.\d+\..*\bbn\.running_mean$")
_AVERAGE_COUNTER = "n_averaged"  # torch.optim.swa_utils.AveragedModel


def is_torch(names: Collection[str]) -> bool:
    """Units below `features.N`, BatchNorm with `running_mean`."""
    return any(_STATISTICS.search(name) for name in names)


def is_cadene(names: Collection[str]) -> bool:
    """One of the spellings that only the 2017 files have."""
    return is_torch(names) and any(modernise(name) != name for name in names)


def decode(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Without wrappers' prefixes, in today's spelling, with BatchNorm's counters."""
    prefix = wrapper_prefix(state)
    if prefix:
        notes.append(f"names: prefix {prefix!r} removed")
    plain = {name.removeprefix(prefix): value for name, value in state.items()}
    plain.pop(_AVERAGE_COUNTER, None)
    modern = {modernise(name): value for name, value in plain.items()}
    if set(modern) != set(plain):
        notes.append("names: old spellings (block, classif) rewritten")
    return with_counters(modern, notes)


def with_counters(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Add BatchNorm's batch counters, as 0, to files older than them or from other frameworks."""
    absent = [name for name in CANONICAL if name.endswith(COUNTER) and name not in state]
    if absent:
        notes.append(f"{COUNTER}: {len(absent)} counters created as 0")
    return state | {name: torch.tensor(0) for name in sorted(absent)}


def note_counters(state: dict[str, Tensor], notes: list[str]) -> None:
    """Say that batch counters have no place in a layout, where they hold anything."""
    counted = [name for name, tensor in state.items() if name.endswith(COUNTER) and tensor.any()]
    if counted:
        notes.append(f"{COUNTER}: {len(counted)} counters dropped (the layout has none)")


def encode(state: dict[str, Tensor], info: WeightsInfo, notes: list[str]) -> dict[str, Tensor]:
    """The canonical state as it is; timm's network takes another epsilon as a setting, and nothing from the file."""
    if info.bn_eps != EPSILON:
        notes.append(
            f"bn_eps: stays {info.bn_eps}; timm does not read that: create its network with norm_eps={info.bn_eps}"
        )
    return state


def encode_cadene(state: dict[str, Tensor], info: WeightsInfo, notes: list[str]) -> dict[str, Tensor]:
    """For the one epsilon of Cadene's network, whose own loader of pretrained weights wants 1001 classes."""
    shifted = shift_epsilon(state, info.bn_eps, EPSILON)
    if shifted is not state:
        notes.append(moved(info.bn_eps, EPSILON))
    if info.num_classes != 1001:
        notes.append(f"classes: load into inceptionv4(num_classes={info.num_classes}, pretrained=None)")
    return shifted
