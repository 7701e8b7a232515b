"""`.npz` dumps of TensorFlow checkpoints: the network's variables, and a list of the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inception_v4.weights.files.tfvariables import is_network, sort_variables
from inception_v4.weights.record import Raw, WeightsError


def read_npz(path: Path) -> Raw:
    """The network's variables; auxiliary head, optimizer slots and counters are only listed."""
    tensors, others = {}, []
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                plain = name.removesuffix(":0")
                if is_network(plain):
                    tensors[plain] = torch.from_numpy(np.ascontiguousarray(file[name]))
                else:
                    others.append(plain)
    except Exception as error:  # zipfile and numpy raise almost anything on damaged bytes
        raise WeightsError(f"{path} is truncated or damaged: dump it again ({error})") from error
    return sort_variables(tensors, others)


def write_npz(state: dict[str, Tensor], path: Path) -> None:
    """An uncompressed archive; numpy has no bfloat16, so that is an error."""
    if any(tensor.dtype == torch.bfloat16 for tensor in state.values()):
        raise WeightsError("npz cannot hold bf16: convert with dtype fp32 or fp16")
    with path.open("wb") as file:
        np.savez(file, **{name: tensor.numpy() for name, tensor in state.items()})  # type: ignore[arg-type]
