"""Safetensors files: PyTorch's and MindSpore's; ours carry their description in the metadata."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from inception_v4.files import parse_json
from inception_v4.weights.files.mindspore import is_mindspore, split
from inception_v4.weights.record import DAMAGED, METADATA_KEY, Raw, WeightsError, WeightsInfo


def read_safetensors(path: Path) -> Raw:
    """Tensors as views of the mapped file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            state = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path} is {DAMAGED} ({error})") from error
    info = _described(path, metadata)
    if is_mindspore(state):
        return replace(split(state), info=info)
    return Raw(state, info=info)


def _described(path: Path, metadata: dict[str, str]) -> dict[str, Any] | None:
    if METADATA_KEY not in metadata:
        return None
    try:
        values = parse_json(metadata[METADATA_KEY])
    except ValueError as error:
        raise WeightsError(f"{path}: its description is not JSON ({error}): {DAMAGED}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: its description is a {type(values).__name__}: {DAMAGED}")
    return values


def write_safetensors(state: dict[str, Tensor], path: Path, info: WeightsInfo) -> None:
    """Contiguous CPU tensors and how to use them; marked as PyTorch's or as MindSpore's, by their names."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    kind = "ms" if is_mindspore(state) else "pt"
    save_file(state, str(path), metadata={"format": kind, METADATA_KEY: info.to_json()})
    _sort_metadata(path)
    path.chmod(mode)  # the library makes files that only their owner can read


def _sort_metadata(path: Path) -> None:
    """The library writes the metadata in an order that differs from process to process: equal weights, equal bytes."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        sorted_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(sorted_header) <= length:  # else it was written in another style: it stays as it is
            file.seek(8)
            file.write(sorted_header.ljust(length))
