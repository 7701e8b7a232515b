"""Weights into a network, fitted to its classes and channels, with every change said."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from inception_v4.network.model import InceptionV4
from inception_v4.weights.names import FIRST_CONV, HEAD, difference, preview, wrapper_prefix
from inception_v4.weights.reading import read_weights
from inception_v4.weights.record import Weights, WeightsError, WeightsInfo

Classes = Literal["auto", "keep", "drop-background"]
Head = Literal["auto", "load", "reset"]


@dataclass
class LoadReport:
    """What `load_weights` did.

    Attributes:
        info: how to use the network as it is now (classes, preprocessing).
        messages: lines for people: what was adapted, dropped or newly initialised.
        layout: the row of `LAYOUTS` that was read.
    """

    info: WeightsInfo
    messages: list[str] = field(default_factory=list)
    layout: str = "torch"


def load_weights(
    model: nn.Module,
    source: str | Path | Weights,
    *,
    classes: Classes = "auto",
    ema: bool | None = None,
    head: Head = "auto",
    check_finite: bool = True,
) -> LoadReport:
    """Load weights of any known layout into `model`, in place.

    Args:
        model: any module with this network's state dict, also inside DDP or `torch.compile`.
        source: what `read_weights` takes, or what it returned.
        classes: of 1001-class weights, `drop-background` drops class 0, `keep` keeps it; `auto` drops it where the
            network has 1000 classes.
        ema: as in `read_weights`.
        head: `auto` keeps the network's own, newly initialised classifier where the number of classes differs;
            `load` makes that an error; `reset` always keeps the network's own.
        check_finite: refuse NaN and infinity.

    Raises:
        FileNotFoundError, WeightsError: as `read_weights`; or the weights do not fit the network.
    """
    weights = source if isinstance(source, Weights) else read_weights(source, ema=ema)
    named = model.state_dict()
    prefix = wrapper_prefix(named)
    target = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
    try:
        report = _fit(model, weights, target, classes=classes, head=head, check_finite=check_finite)
    except WeightsError as error:
        raise WeightsError(f"{weights.info.source or 'weights'}: {error}") from error
    model.load_state_dict({prefix + name: tensor for name, tensor in report[0].items()})
    return report[1]


def _fit(
    model: nn.Module, weights: Weights, target: dict[str, Tensor], *, classes: Classes, head: Head, check_finite: bool
) -> tuple[dict[str, Tensor], LoadReport]:
    """The state dict for the module, and the report."""
    weights = fit_background(weights, classes, target[HEAD[0]].shape[0] if HEAD[0] in target else None)
    messages = [*weights.notes, *weights.dropped]
    state, info = _fit_head(weights, target, head, messages)
    state, info = _fit_channels(state, info, target, messages)
    check_fit(state, target)
    _check_epsilon(model, info)
    _check_stem(model, info)
    if check_finite and (bad := not_finite(state)):
        raise WeightsError(f"NaN or infinity in {preview(bad)}: use another checkpoint, or pass check_finite=False")
    return state, LoadReport(info, messages, weights.layout)


def fit_background(weights: Weights, classes: Classes, wanted: int | None) -> Weights:
    """Drop TensorFlow's background class where asked, or where `auto` and the network has `wanted` = 1000 classes."""
    if classes not in ("auto", "keep", "drop-background"):
        raise WeightsError(f"classes {classes!r} is not one of auto, keep, drop-background")
    held = weights.info.num_classes
    if classes == "drop-background":
        if held != 1001:
            raise WeightsError(f"has {held} classes, so no background class to drop (those have 1001): leave it out")
        return weights.drop_background()
    if classes == "auto" and wanted == 1000 and weights.info.may_have_background:
        return weights.drop_background()
    if classes == "keep" and held == 1001 and wanted == 1000:
        raise WeightsError("1001 classes are to be kept, but the network has 1000: build it with num_classes=1001")
    return weights


def _fit_head(
    weights: Weights, target: dict[str, Tensor], head: Head, messages: list[str]
) -> tuple[dict[str, Tensor], WeightsInfo]:
    if head not in ("auto", "load", "reset"):
        raise WeightsError(f"head {head!r} is not one of auto, load, reset")
    state, info = dict(weights.state), weights.info
    own = {name: target[name] for name in HEAD if name in target}
    held, wanted = info.num_classes, own[HEAD[0]].shape[0] if own else 0
    if held == wanted and head != "reset":
        return state, info
    if head == "load":
        raise WeightsError(f"has {held} classes, the network {wanted}: build it with num_classes={held}")
    for name in HEAD:
        del state[name]
    fate = f"the network's own, newly initialised one for {wanted} classes stays" if own else "the network has none"
    messages.append(f"classifier of {held} classes not loaded: {fate}")
    return state | own, info.replace(class_names=None).with_head(wanted)


def _fit_channels(
    state: dict[str, Tensor], info: WeightsInfo, target: dict[str, Tensor], messages: list[str]
) -> tuple[dict[str, Tensor], WeightsInfo]:
    weight = state[FIRST_CONV]
    held, wanted = weight.shape[1], target[FIRST_CONV].shape[1]
    if held == wanted:
        return state, info
    how = "summed over" if wanted == 1 else "repeated and scaled from"
    messages.append(f"first convolution: {wanted} input channels, {how} {held}")
    return state | {FIRST_CONV: adapt_channels(weight, wanted)}, info.with_channels(wanted)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution for another number of input channels, with activations of the same size.

    Args:
        weight: [out, in, h, w].
        channels: new number of inputs. One: the sum over the old ones; else the old ones in turn, scaled by old / new.
    """
    held = weight.shape[1]
    full = weight.float()
    if channels == 1:
        return full.sum(1, keepdim=True).to(weight.dtype)
    repeated = full.repeat(1, math.ceil(channels / held), 1, 1)[:, :channels]
    return (repeated * (held / channels)).to(weight.dtype)


def check_fit(state: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Raise `WeightsError` unless `state` has the names and shapes of the state dict `target`."""
    missing, unexpected = target.keys() - state.keys(), state.keys() - target.keys()
    if missing or unexpected:
        raise WeightsError(f"does not fit the network: {difference(missing, unexpected)}")
    wrong = [
        f"{name} {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in target.items()
        if state[name].numel() != tensor.numel() or (tensor.ndim and state[name].shape != tensor.shape)
    ]
    if wrong:
        raise WeightsError(f"shapes that do not fit the network: {preview(wrong)}")


def _check_epsilon(model: nn.Module, info: WeightsInfo) -> None:
    held = {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    if any(not math.isclose(eps, info.bn_eps, rel_tol=1e-6) for eps in held):
        raise WeightsError(f"made for a BatchNorm epsilon of {info.bn_eps}, the network has {sorted(held)}: set bn_eps")


def _check_stem(model: nn.Module, info: WeightsInfo) -> None:
    held = next((module.stem for module in model.modules() if isinstance(module, InceptionV4)), info.stem)
    if held != info.stem:
        raise WeightsError(f"made for stem {info.stem}, the network has {held}: set stem {info.stem}")


def not_finite(state: dict[str, Tensor]) -> list[str]:
    """Names of the floating-point tensors that hold NaN or infinity."""
    extremes = {name: torch.stack(t.aminmax()) for name, t in state.items() if t.is_floating_point() and t.numel()}
    return [name for name, low_and_high in extremes.items() if not torch.isfinite(low_and_high).all()]
