"""Weights to files that say how to use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from inception_v4.files import atomic_write
from inception_v4.weights.files import msckpt
from inception_v4.weights.files.mindspore import from_tensor
from inception_v4.weights.files.npz import write_npz
from inception_v4.weights.files.safetensor import write_safetensors
from inception_v4.weights.layouts.epsilon import EPSILON
from inception_v4.weights.layouts.registry import LAYOUTS
from inception_v4.weights.names import CANONICAL, HEAD, difference, wrapper_prefix
from inception_v4.weights.record import State, Weights, WeightsError, WeightsInfo
from inception_v4.weights.source import sidecar

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
    write_weights(Weights(state, info), path, layout="torch", dtype=dtype)
    return path


def write_weights(
    weights: Weights,
    path: Path,
    *,
    layout: str,
    dtype: torch.dtype | str | None = None,
    training: State | None = None,
) -> list[str]:
    """Write `weights` in a layout, whole or not at all; returns lines for people: what was changed.

    The description goes into the metadata of safetensors, and into `<path>.json` beside any other kind of file.

    Args:
        layout: a key of `LAYOUTS`.
        dtype: store floating-point tensors in this type; by default as they are.
        training: more entries under the layout's names (optimizer state), stored as they are.

    Raises:
        WeightsError: the layout cannot be written to such a file, or has no place for the type, or the type none for a
            value.
    """
    check_suffix(path, layout)
    if weights.info.stem != "standard" and layout != "torch":
        raise WeightsError(
            f"{path}: these weights have stem {weights.info.stem}, which the programs that read the layout {layout} do "
            "not know: write safetensors for this package, or export the network as onnx"
        )
    notes: list[str] = []
    state = dict(LAYOUTS[layout].encode(weights.state, weights.info, notes))
    stored = storage_type(dtype)
    for name in state:  # one by one, so that at most one tensor is in memory twice
        state[name] = as_stored(name, state[name], stored)
    state |= training or {}
    # The layouts of others have one epsilon each; ours says which.
    info = weights.info if layout == "torch" else replace(weights.info, bn_eps=EPSILON)
    with atomic_write(path) as temporary:
        _WRITERS[path.suffix](state, temporary, info)
    beside = sidecar(path)
    if path.suffix == ".safetensors":
        beside.unlink(missing_ok=True)  # it would speak about the file that was replaced
    else:
        with atomic_write(beside) as temporary:
            temporary.write_text(json.dumps(info.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return notes


def check_suffix(path: Path, layout: str) -> None:
    """Refuse a suffix that the layout's programs would not read."""
    if layout not in LAYOUTS:
        raise WeightsError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    allowed = LAYOUTS[layout].suffixes
    if path.suffix not in allowed:
        raise WeightsError(f"{path}: the layout {layout} is written to {', '.join(allowed)}, not {path.suffix!r}")


def layout_for(path: Path) -> str:
    """The layout that a suffix stands for when none is named."""
    usual = {".safetensors": "torch", ".pth": "torch", ".pt": "torch", ".bin": "torch"}
    usual |= {".ckpt": "mindcv", ".npz": "tf-slim"}
    if path.suffix not in usual:
        raise WeightsError(f"{path}: no layout has the suffix {path.suffix!r}; use one of {', '.join(usual)}")
    return usual[path.suffix]


def storage_type(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The type meant by `fp32`, `fp16` or `bf16`."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise WeightsError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[dtype] if isinstance(dtype, str) else dtype


def as_stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Contiguous and on the CPU; floating-point numbers in `dtype` (None: unchanged).

    Raises:
        WeightsError: a number that is finite and would become infinite.
    """
    stored = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
    if stored.dtype != tensor.dtype:
        _check_range(name, tensor.detach().cpu(), stored)
    return stored


def _check_range(name: str, given: Tensor, stored: Tensor) -> None:
    lost = given[~stored.float().isfinite()]
    beyond = lost[lost.isfinite()]
    if beyond.numel():
        remedy = "bf16 or fp32" if stored.dtype == torch.float16 else "the type that it has"
        raise WeightsError(
            f"{name} holds {float(beyond[0]):.6g}, and {str(stored.dtype).removeprefix('torch.')} ends at "
            f"{torch.finfo(stored.dtype).max:.6g}: write {remedy}"
        )


def _write_pickled(state: State, path: Path, info: WeightsInfo) -> None:
    # torch.save writes whole storages: a tensor that is a part of a larger one (a mapped file) gets its own.
    torch.save({n: t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for n, t in state.items()}, path)


def _write_mindspore(state: State, path: Path, info: WeightsInfo) -> None:
    msckpt.write_msckpt(path, {name: from_tensor(tensor) for name, tensor in state.items()})


_WRITERS: dict[str, Callable[[State, Path, WeightsInfo], None]] = {
    ".safetensors": write_safetensors,
    ".ckpt": _write_mindspore,
    ".npz": lambda state, path, info: write_npz(state, path),
    **dict.fromkeys((".pth", ".pt", ".bin"), _write_pickled),
}
