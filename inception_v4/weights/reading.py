"""Weights of any layout, brought to the canonical names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inception_v4.preprocessing import dated
from inception_v4.weights.files import containers
from inception_v4.weights.layouts.registry import LAYOUTS, layout_of
from inception_v4.weights.names import CANONICAL, FIRST_CONV, HEAD, difference, preview
from inception_v4.weights.record import Raw, Weights, WeightsError, WeightsInfo
from inception_v4.weights.source import Located, locate

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_weights(source: str | Path | Located, *, ema: bool | None = None, layout: str | None = None) -> Weights:
    """Read weights of any known layout; nothing of a file is executed.

    Args:
        source: a file (TensorFlow's also by their prefix), a run directory, `owner/name` or `hf-hub:owner/name` on the
            Hugging Face hub, or `pretrained`; or what `locate` has found of it.
        ema: take the moving average of the weights that training checkpoints may hold; by default only where it is in
            a TensorFlow checkpoint.
        layout: a key of `LAYOUTS`; by default it is recognised.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: not readable, not safe, not complete or not of this network.
    """
    if layout is not None and layout not in LAYOUTS:
        raise WeightsError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    located = source if isinstance(source, Located) else locate(source)
    raw = containers.read(located.path)
    notes: list[str] = []
    try:
        tensors = _choose(raw, ema, notes)
        layout = layout or layout_of(tensors)
        count = len(tensors)
        state = LAYOUTS[layout].decode(tensors, notes)
        _check_names(state)
        _check_shapes(state)
        described = raw.info or located.beside or {}
        info = _describe(state, layout, described, located)
    except (ValueError, RuntimeError) as error:  # tensors of sizes that do not go together fail in torch
        raise WeightsError(f"{located.origin}: {error}") from error
    if layout == "torch" and info.may_have_background:
        layout = "cadene"
    dropped = [f"{name}: {what}" for name, what in raw.extras.items()]
    return Weights(
        state,
        info,
        layout,
        dropped=dropped,
        notes=notes,
        training=raw.training,
        tensors=count,
        described="preprocessing" in described,
    )


def _choose(raw: Raw, ema: bool | None, notes: list[str]) -> dict[str, Tensor]:
    if ema is None and raw.prefers_ema and raw.ema is not None:
        notes.append(
            "ema: the moving averages of the weights are taken (for the plain ones: convert --no-ema, ema=False)"
        )
        return raw.ema
    if ema:
        if raw.ema is None:
            raise WeightsError("holds no moving average of the weights: leave ema off")
        return raw.ema
    if not raw.state and raw.ema:
        raise WeightsError("holds only a moving average of the weights: ask for it with ema")
    if raw.ema is not None:
        notes.append("ema: the file also holds a moving average of the weights, not taken (ask for it with ema)")
    return raw.state


def _check_names(state: dict[str, Tensor]) -> None:
    missing, unexpected = CANONICAL - state.keys(), state.keys() - CANONICAL
    if missing or unexpected:
        raise WeightsError(f"not exactly an Inception-v4: {difference(missing, unexpected)}")


def _check_shapes(state: dict[str, Tensor]) -> None:
    """Kinds and sizes that must agree whatever the number of classes and channels."""
    wrong = [name for name, tensor in state.items() if _wrong_kind(name, tensor)]
    for name, weight in state.items():
        if name.endswith(".conv.weight") and name not in wrong:
            unit = name.removesuffix("conv.weight")
            leaves = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
            wrong += [unit + leaf for leaf in leaves if state[unit + leaf].shape != weight.shape[:1]]
    weight, bias = (state[name] for name in HEAD)
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        wrong += HEAD
    if wrong:
        shapes = [f"{name} {tuple(state[name].shape)} {state[name].dtype}" for name in dict.fromkeys(wrong)]
        raise WeightsError(f"shapes that are not Inception-v4's: {preview(shapes)}")


def _wrong_kind(name: str, tensor: Tensor) -> bool:
    if name.endswith("num_batches_tracked"):
        return tensor.numel() != 1
    if tensor.dtype not in _FLOATS:
        return True
    return tensor.ndim != 4 if name.endswith(".conv.weight") else tensor.numel() == 0


def _describe(state: dict[str, Tensor], layout: str, described: dict[str, Any], located: Located) -> WeightsInfo:
    """What the file says about itself, else the usual for its layout; counts come from the tensors."""
    classes, channels = state[HEAD[0]].shape[0], state[FIRST_CONV].shape[1]
    # A description of this package without the order is of a time when there was only one.
    order = "text" if "extra" in described else LAYOUTS[layout].class_order
    usual = WeightsInfo(preprocessing=LAYOUTS[layout].preprocessing, class_order=order).with_channels(channels)
    values = usual.to_dict() | {"source": located.origin}
    values |= {name: value for name, value in described.items() if value not in (None, "")}
    if isinstance(values["preprocessing"], dict):
        given = {name: value for name, value in dated(values["preprocessing"]).items() if value is not None}
        values["preprocessing"] = usual.preprocessing.to_dict() | given
    names = values["class_names"]
    if not isinstance(names, (list, tuple)) or len(names) != classes:
        values["class_names"] = None
    info = WeightsInfo.from_dict(values | {"num_classes": classes, "in_channels": channels})
    if len(info.preprocessing.mean) != channels:
        raise WeightsError(f"{channels} input channels, but mean has {len(info.preprocessing.mean)} values")
    return info
