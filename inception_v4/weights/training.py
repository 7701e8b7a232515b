"""Optimizer state of this package's training checkpoints as MindSpore's optimizers keep it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inception_v4.weights.layouts import mindcv, modelzoo
from inception_v4.weights.names import HEAD
from inception_v4.weights.record import State, Weights, WeightsError

_NAMES = {"mindcv": mindcv.table, "modelzoo": modelzoo.table}
_SLOTS = {
    "momentum": {"momentum_buffer": "moments"},
    "rmsprop": {"square_avg": "mean_square", "momentum_buffer": "moment", "grad_avg": "mean_grad"},
}
"""PyTorch's name of a parameter's state -> prefix in MindSpore, for nn.Momentum and nn.RMSProp."""


def to_mindspore(weights: Weights, layout: str, notes: list[str]) -> State:
    """Entries `moments.*`, or `mean_square.*` and `moment.*`, and `global_step` for a MindSpore checkpoint.

    The two frameworks' updates agree: SGD with momentum is nn.Momentum, and RMSProp as TensorFlow defines it (epsilon
    under the root, learning rate inside the momentum) is nn.RMSProp. The learning rate is not carried: it belongs to
    the schedule there.

    Raises:
        WeightsError: a layout without optimizer state, an optimizer without a counterpart, or one of other shapes.
    """
    if layout not in _NAMES:
        raise WeightsError(f"optimizer state goes to the layouts {' and '.join(_NAMES)}, not to {layout}")
    optimizer = weights.training.get("optimizer")
    if not isinstance(optimizer, dict) or not optimizer.get("state"):
        raise WeightsError(
            "holds no optimizer state: name a training checkpoint (checkpoints/step-*.pt), or leave it out"
        )
    named = _by_name(optimizer)
    slots = _SLOTS[_kind(optimizer, named)]
    names = _NAMES[layout]()
    held = [
        (f"{prefix}.{names[name]}", name, state[slot].detach())
        for slot, prefix in slots.items()
        for name, state in named.items()
        if isinstance(state.get(slot), Tensor)
    ]
    entries = {entry: _fitted(name, tensor, weights.state[name]).contiguous() for entry, name, tensor in held}
    kinds = ", ".join(sorted({entry.split(".")[0] for entry in entries}))
    cut = any(entries[entry].shape != tensor.shape for entry, _, tensor in held)
    without = ", without the background class" if cut else ""
    notes.append(f"optimizer: {len(entries)} tensors carried over as {kinds}{without}")
    step = weights.training.get("step")
    if isinstance(step, int):
        entries["global_step"] = torch.tensor([step], dtype=torch.int32)
        notes.append(f"optimizer: global_step {step}")
    return entries


def _fitted(name: str, tensor: Tensor, parameter: Tensor) -> Tensor:
    """State of a parameter as the parameter is now: class 0 of the classifier may have been dropped from it."""
    if name in HEAD and len(tensor) == 1001 and len(parameter) == 1000:
        tensor = tensor[1:]
    if tensor.shape != parameter.shape:
        raise WeightsError(
            f"the optimizer state of {name} is {list(tensor.shape)}, the parameter {list(parameter.shape)}: leave the "
            "optimizer out"
        )
    return tensor


def _by_name(optimizer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Canonical parameter name -> its state."""
    named = {}
    for group in optimizer.get("param_groups", []):
        names = group.get("param_names")
        if names is None or len(names) != len(group["params"]):
            raise WeightsError("the optimizer state does not name its parameters: only this package's checkpoints do")
        for name, index in zip(names, group["params"], strict=True):
            named[name.removeprefix("module.").removeprefix("_orig_mod.")] = optimizer["state"].get(index, {})
    return named


def _kind(optimizer: dict[str, Any], named: dict[str, dict[str, Any]]) -> str:
    keys = {key for state in named.values() for key, value in state.items() if isinstance(value, Tensor)} - {"step"}
    if keys == {"momentum_buffer"}:
        return "momentum"
    if {"square_avg"} <= keys <= set(_SLOTS["rmsprop"]):
        # Only torch.optim's own optimizers have this setting; its RMSprop divides by sqrt(s) + eps.
        if any("differentiable" in group for group in optimizer["param_groups"]):
            raise WeightsError(
                "torch.optim.RMSprop is another update than MindSpore's RMSProp: leave the optimizer out"
            )
        return "rmsprop"
    held = ", ".join(sorted(keys)) or "nothing"
    raise WeightsError(f"optimizer state with {held} has no counterpart: Momentum and RMSProp can be carried over")
