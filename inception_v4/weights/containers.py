"""Which kind of file holds the tensors, decided by content and not by suffix."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from inception_v4.weights.record import WeightsError

METADATA_KEY = "inception_v4"
"""Key of our JSON in a safetensors file's metadata."""

_HEAD = 512
_DAMAGED = "truncated or damaged: copy or download it again"
_TF_TABLE_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_MINDSPORE_ENCRYPTED = tuple((0x7F3A5ED8 + i).to_bytes(4, "little") for i in range(3))
_TEXT_FILES = (
    (rb"\s*(<!doctype html|<html|<\?xml)", "a web page, not weights: the download failed; get the file itself"),
    (rb"version https://git-lfs", "a git-lfs pointer, not weights: run `git lfs pull` where it came from"),
    (rb"\s*[\[{]\s*\"", "JSON text, not weights: name the weights file beside it"),
)
_FOREIGN = (
    (rb"\x89HDF", "an HDF5 file: dump the TensorFlow checkpoint to .npz instead (docs/conversion.md)"),
    (rb"\x1f\x8b", "a gzip archive: unpack it first"),
    (rb"7z\xbc\xaf|Rar!", "an archive: unpack it first"),
)


@dataclass
class Raw:
    """The content of one file, still under its own names.

    Attributes:
        state: parameters; ema: their moving average, where the file has one.
        info: our own description, where the file has one.
        training: optimizer state in the file's own form, by entry.
        extras: name -> short description of everything else.
    """

    state: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    info: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)


def sniff(path: Path) -> str:
    """`safetensors`, `torch`, `mindspore` or `npz`.

    Raises:
        WeightsError: anything else, said what it is and what to do.
    """
    size = path.stat().st_size
    if size == 0:
        raise WeightsError(f"{path} is empty: copy or download it again")
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if head.startswith(_MINDSPORE_ENCRYPTED):
        raise WeightsError(f"{path} is an encrypted MindSpore checkpoint: save it again without enc_key")
    for patterns in (_TEXT_FILES, _FOREIGN):
        for pattern, meaning in patterns:
            if re.match(pattern, head, re.IGNORECASE):
                raise WeightsError(f"{path} is {meaning}")
    if tail == _TF_TABLE_MAGIC:
        raise WeightsError(f"{path} is a TensorFlow checkpoint: dump it to .npz first (docs/conversion.md)")
    if head.startswith(b"\x80"):
        return "torch"
    if head.startswith(b"\n"):
        return "mindspore"
    raise WeightsError(f"{path} is no weights file ({size} bytes that start with {head[:8]!r}): {_DAMAGED}")


def _sniff_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise WeightsError(f"{path} is {_DAMAGED}") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(f"{path} is a TorchScript program: save the state dict of its module instead")
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise WeightsError(f"{path} is a zip archive without weights: unpack it first")


def read_safetensors(path: Path) -> Raw:
    """Tensors as views of the mapped file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            state = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} is {_DAMAGED} ({error})") from error
    return Raw(state, info=_described(path, metadata))


def _described(path: Path, metadata: dict[str, str]) -> dict[str, Any] | None:
    if METADATA_KEY not in metadata:
        return None
    try:
        values = json.loads(metadata[METADATA_KEY])
    except ValueError as error:
        raise WeightsError(f"{path}: its description is not JSON ({error}): {_DAMAGED}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: its description is a {type(values).__name__}: {_DAMAGED}")
    return values


def read(path: Path) -> Raw:
    """The content of `path`, whatever kind of file it is.

    Raises:
        WeightsError: damaged, unsafe or not a weights file.
    """
    return CONTAINERS[sniff(path)](path)


def _read_torch(path: Path) -> Raw:
    from inception_v4.weights.pickled import read_pickled

    return read_pickled(path)


CONTAINERS: dict[str, Callable[[Path], Raw]] = {
    "safetensors": read_safetensors,
    "torch": _read_torch,
}
