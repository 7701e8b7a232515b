"""The layout `tf-slim`: the variables of TensorFlow's original, dumped to `.npz`.

Kernels are HWIO, the classifier is [1536, classes], there is no gamma (TF-Slim trains with scale=False) and class 0
of 1001 is the background.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from inception_v4.weights.files.tfvariables import SCOPE
from inception_v4.weights.layouts.epsilon import EPSILON, shift_epsilon, widened
from inception_v4.weights.layouts.pytorch import note_counters, with_counters
from inception_v4.weights.names import HEAD, UNITS, difference
from inception_v4.weights.record import WeightsError, WeightsInfo

_LOGITS = {HEAD[0]: SCOPE + "Logits/Logits/weights", HEAD[1]: SCOPE + "Logits/Logits/biases"}
_LEAVES = {
    "conv.weight": "weights",
    "bn.bias": "BatchNorm/beta",
    "bn.running_mean": "BatchNorm/moving_mean",
    "bn.running_var": "BatchNorm/moving_variance",
}


def is_tfslim(names: Collection[str]) -> bool:
    """Scopes separated by slashes."""
    return any(name.startswith(SCOPE) for name in names)


def table() -> dict[str, str]:
    """Canonical name -> TF-Slim's variable, 598 of them."""
    names = {
        f"{unit}.{leaf}": f"{SCOPE}{scope}/{other}" for unit, scope in UNITS.items() for leaf, other in _LEAVES.items()
    }
    return names | _LOGITS


def decode(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Renamed and transposed; gamma is 1 where the file has none."""
    names = table()
    gammas = {f"{unit}.bn.weight": f"{SCOPE}{scope}/BatchNorm/gamma" for unit, scope in UNITS.items()}
    names |= {name: other for name, other in gammas.items() if other in state}
    missing, unexpected = set(names.values()) - state.keys(), state.keys() - set(names.values())
    if missing or unexpected:
        raise WeightsError(f"not a complete network of this layout: {difference(missing, unexpected)}")
    plain = {name: _from_tensorflow(state.pop(other)) for name, other in names.items()}
    absent = [name for name in gammas if name not in names]
    if absent:
        notes.append(f"gamma: {len(absent)} created as 1 (TF-Slim has none)")
    plain |= {name: torch.ones_like(plain[name.replace("weight", "bias")]) for name in absent}
    return with_counters(plain, notes)


def _from_tensorflow(tensor: Tensor) -> Tensor:
    """HWIO to OIHW, [in, out] to [out, in]."""
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    return tensor.t().contiguous() if tensor.ndim == 2 else tensor


def encode(state: dict[str, Tensor], info: WeightsInfo, notes: list[str]) -> dict[str, Tensor]:
    """Renamed and transposed; gamma moves into the kernels and means, which keeps the function.

    Half precision cannot hold the products, so it is widened.
    """
    shifted = {name: tensor.to(widened(tensor)) for name, tensor in shift_epsilon(state, info.bn_eps, EPSILON).items()}
    folded = 0
    for unit in UNITS:
        gamma = shifted[f"{unit}.bn.weight"]
        if bool((gamma != 1).any()):
            folded += 1
            for name, shape in ((f"{unit}.conv.weight", (-1, 1, 1, 1)), (f"{unit}.bn.running_mean", (-1,))):
                shifted[name] = (shifted[name].double() * gamma.double().view(shape)).to(shifted[name].dtype)
    if folded:
        notes.append(f"gamma: {folded} folded into kernels and means (TF-Slim has none), same function")
    note_counters(state, notes)
    return {other: _to_tensorflow(shifted[name]) for name, other in table().items()}


def _to_tensorflow(tensor: Tensor) -> Tensor:
    """OIHW to HWIO, [out, in] to [in, out]."""
    if tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0)
    return tensor.t() if tensor.ndim == 2 else tensor
