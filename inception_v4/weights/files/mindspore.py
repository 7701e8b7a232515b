"""MindSpore's files as a source and a target of tensors: what belongs to the network, what to training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inception_v4.weights.files import msckpt
from inception_v4.weights.record import DAMAGED, Raw, WeightsError

_NETWORK = re.compile(r"(ema\.)?(features|classifier|bn0|softmax)\.")
"""The first parts of MindCV's and the ModelZoo's names, alone or in MindCV's moving average."""

_KINDS = {
    torch.float32: "Float32",
    torch.float64: "Float64",
    torch.float16: "Float16",
    torch.bfloat16: "BFloat16",
    torch.int64: "Int64",
    torch.int32: "Int32",
    torch.bool: "Bool",
}


def is_mindspore(names: Iterable[str]) -> bool:
    """BatchNorm is spelled `gamma`, `beta`, `moving_mean`, `moving_variance`."""
    return any(name.endswith((".gamma", ".moving_mean")) for name in names)


def read_mindspore(path: Path) -> Raw:
    """The network's tensors of a `.ckpt`; optimizer state and counters are only listed."""
    try:
        file = msckpt.Checkpoint(path)
        named = {name: to_tensor(_numbers(file, name)) for name in file.records if _NETWORK.match(name)}
    except msckpt.DamagedCheckpoint as error:
        raise WeightsError(f"{path} is {DAMAGED} ({error})") from error
    return split(named, (name for name in file.records if name not in named))


def split(tensors: dict[str, Tensor], others: Iterable[str] = ()) -> Raw:
    """Separate the network, its moving average and everything else, which is listed by kind."""
    network = {name: tensor for name, tensor in tensors.items() if _NETWORK.match(name)}
    state = {name: tensor for name, tensor in network.items() if not name.startswith("ema.")}
    average = {name.removeprefix("ema."): tensor for name, tensor in network.items() if name.startswith("ema.")}
    rest = [*others, *(name for name in tensors if name not in network)]
    return Raw(state, ema=average or None, extras=_by_kind(rest))


def _by_kind(names: Iterable[str]) -> dict[str, str]:
    """`moments.features...` 449 times as one line; `global_step` and the like by themselves."""
    counts = Counter(f"{name.split('.')[0]}.*" if "." in name else name for name in names)
    return {kind: f"{count} entries" if kind.endswith(".*") else "training state" for kind, count in counts.items()}


def _numbers(file: msckpt.Checkpoint, name: str) -> msckpt.Value:
    value = file.read(name)
    if isinstance(value, str):
        raise msckpt.DamagedCheckpoint(f"{name[:80]!r} is a text ({value[:20]!r}) where a tensor should be")
    return value


def to_tensor(value: msckpt.Value) -> Tensor:
    """Shares memory with the array."""
    if value.kind == "BFloat16":
        return torch.from_numpy(value.array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value.array)


def from_tensor(tensor: Tensor) -> msckpt.Value:
    """Shares memory with the tensor, which must be contiguous and on the CPU."""
    if tensor.dtype not in _KINDS:
        raise WeightsError(f"{tensor.dtype} has no type in a MindSpore checkpoint: convert with dtype fp32")
    bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    array = bits.detach().numpy()
    return msckpt.Value(_KINDS[tensor.dtype], array.view("<u2") if tensor.dtype == torch.bfloat16 else array)
