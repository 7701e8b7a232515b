"""The layout `modelzoo`: MindSpore ModelZoo's Inceptionv4, 755 tensors.

It has a BatchNorm before the classifier (`bn0`) and one behind it (`softmax.batchnorm`), and another epsilon in the
backbone. Both ways keep the function; the two extra BatchNorms are folded into the classifier on the way in and are
identities on the way out.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from inception_v4.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from inception_v4.weights.layouts import mindcv
from inception_v4.weights.layouts.epsilon import EPSILON, moved, shift_epsilon, widened
from inception_v4.weights.layouts.pytorch import note_counters, with_counters
from inception_v4.weights.names import HEAD, difference
from inception_v4.weights.record import WeightsError, WeightsInfo

PREPROCESSING = Preprocessing(
    mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=1.0, interpolation="bilinear", antialias=False
)
_BACKBONE_EPSILON = 1e-5
_NORMS = {"bn0": 1e-3, "softmax.batchnorm": 1e-5}
"""The BatchNorms around the classifier and their epsilons."""

_LEAVES = ("moving_mean", "moving_variance", "gamma", "beta")


def table() -> dict[str, str]:
    """Canonical name -> ModelZoo's name, for the 747 tensors that have one."""
    names = {}
    for name, other in mindcv.table().items():
        other = other.replace(".conv.weight", ".conv.conv.weight").replace(".bn.", ".conv.batchnorm.")
        names[name] = other.replace("classifier.", "softmax.dense.")
    return names


def is_modelzoo(names: Collection[str]) -> bool:
    """BatchNorm is `conv.batchnorm`."""
    return any(name.endswith(".conv.batchnorm.gamma") for name in names)


def decode(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The same function for a network with one linear classifier and epsilon 1e-3; computed in float64."""
    extra = [f"{norm}.{leaf}" for norm in _NORMS for leaf in _LEAVES]
    if not state.keys() >= set(extra) and any(name.endswith("moving_mean") for name in state):
        raise WeightsError(f"not a complete network of this layout: {difference(extra - state.keys(), ())}")
    norms = {name: state[name] for name in extra if name in state}
    renamed = mindcv.rename({name: tensor for name, tensor in state.items() if name not in norms}, table())
    folded = renamed | _fold(renamed, norms)
    notes.append("bn0 and softmax.batchnorm: folded into the classifier, same class probabilities")
    notes.append(moved(_BACKBONE_EPSILON, EPSILON))
    return with_counters(shift_epsilon(folded, _BACKBONE_EPSILON, EPSILON), notes)


def _fold(state: dict[str, Tensor], norms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Classifier y = W x + c between two affine maps: a1 (W (a0 x + b0) + c) + b1."""
    (a0, b0), (a1, b1) = (_affine(norms, norm) for norm in _NORMS)
    weight, bias = (state[name].double() for name in HEAD)
    if weight.shape != (len(a1), len(a0)) or bias.shape != a1.shape:
        raise WeightsError(f"softmax.dense {tuple(weight.shape)} does not fit its BatchNorms ({len(a0)}, {len(a1)})")
    folded = (a1[:, None] * weight * a0, a1 * (weight @ b0 + bias) + b1)
    return {name: tensor.to(widened(state[name])) for name, tensor in zip(HEAD, folded, strict=True)}


def _affine(norms: dict[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    """A BatchNorm in evaluation as (scale, shift)."""
    mean, variance, gamma, beta = (norms[f"{norm}.{leaf}"].double() for leaf in _LEAVES)
    if not mean.shape == variance.shape == gamma.shape == beta.shape or mean.ndim != 1:
        raise WeightsError(f"{norm} has parts of different sizes")
    scale = gamma / (variance + _NORMS[norm]).sqrt()
    return scale, beta - mean * scale


def encode(state: dict[str, Tensor], info: WeightsInfo, notes: list[str]) -> dict[str, Tensor]:
    """Renamed, variances for the other epsilon, and two BatchNorms that do nothing."""
    shifted = shift_epsilon(state, info.bn_eps, _BACKBONE_EPSILON)
    tensors = {other: shifted[name] for name, other in table().items()}
    classes, features = shifted[HEAD[0]].shape
    for (norm, epsilon), size in zip(_NORMS.items(), (features, classes), strict=True):
        values = {"moving_mean": 0.0, "moving_variance": 1 - epsilon, "gamma": 1.0, "beta": 0.0}
        tensors |= {
            f"{norm}.{leaf}": torch.full((size,), values[leaf], dtype=shifted[HEAD[0]].dtype) for leaf in _LEAVES
        }
    notes.append(moved(info.bn_eps, _BACKBONE_EPSILON))
    notes.append("bn0 and softmax.batchnorm: added as identities")
    note_counters(state, notes)
    return tensors
