"""Weights to files that say how to use them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from inception_v4.weights.containers import METADATA_KEY
from inception_v4.weights.files import replacing
from inception_v4.weights.names import CANONICAL, HEAD, difference, wrapper_prefix
from inception_v4.weights.record import WeightsError, WeightsInfo

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def save_weights(
    model: nn.Module, path: str | Path, info: WeightsInfo, *, dtype: torch.dtype | str | None = None
) -> Path:
    """Write the parameters of `model` as safetensors with `info` in the metadata; returns the path.

    Args:
        model: any module with this network's state dict, also inside DDP or `torch.compile`.
        path: must end in `.safetensors`; replaced as a whole or not at all.
        info: how to use the weights.
        dtype: store floating-point tensors in this type (`fp32`, `fp16`, `bf16`); by default as they are.

    Raises:
        WeightsError: another suffix, another network, or an `info` that does not fit it.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} must end in .safetensors; convert_weights writes the other formats")
    named = model.state_dict()
    prefix = wrapper_prefix(named)
    state = {name.removeprefix(prefix): tensor.detach() for name, tensor in named.items()}
    if state.keys() != CANONICAL:
        wrong = difference(CANONICAL - state.keys(), state.keys() - CANONICAL)
        raise WeightsError(f"the module is not exactly an Inception-v4: {wrong}")
    if info.num_classes != state[HEAD[0]].shape[0]:
        raise WeightsError(f"info says {info.num_classes} classes, the module has {state[HEAD[0]].shape[0]}")
    write_safetensors(cast(state, dtype), path, {"format": "pt", METADATA_KEY: info.to_json()})
    return path


def cast(state: dict[str, Tensor], dtype: torch.dtype | str | None) -> dict[str, Tensor]:
    """Contiguous CPU tensors, floating-point ones in `dtype` (None: unchanged)."""
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise WeightsError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    return {
        name: tensor.to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in state.items()
    }


def write_safetensors(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """One safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(state, str(temporary), metadata=metadata)
