"""Which kind of file holds the tensors, decided by content and not by suffix."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from inception_v4.weights.files.mindspore import read_mindspore
from inception_v4.weights.files.npz import read_npz
from inception_v4.weights.files.pickled import read_pickled
from inception_v4.weights.files.safetensor import read_safetensors
from inception_v4.weights.files.sstable import MAGIC as TABLE_MAGIC
from inception_v4.weights.files.tfcheckpoint import read_tensorflow
from inception_v4.weights.record import DAMAGED, Raw, WeightsError

_HEAD = 512
_MINDSPORE_ENCRYPTED = tuple((0x7F3A5ED8 + i).to_bytes(4, "little") for i in range(3))
_TEXT_FILES = (
    (rb"\s*(<!doctype html|<html|<\?xml)", "a web page, not weights: the download failed; get the file itself"),
    (rb"version https://git-lfs", "a git-lfs pointer, not weights: run `git lfs pull` where it came from"),
    (rb"\s*[\[{]\s*\"", "JSON text, not weights: name the weights file beside it"),
)
_FOREIGN = (
    (rb"\x89HDF", "an HDF5 file: dump the TensorFlow checkpoint to .npz, or give its .ckpt or .index"),
    (rb"\x1f\x8b", "a gzip archive: unpack it first"),
    (rb"7z\xbc\xaf|Rar!", "an archive: unpack it first"),
)


def sniff(path: Path) -> str:
    """`safetensors`, `torch`, `mindspore`, `npz` or `tensorflow`.

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
    if tail == TABLE_MAGIC:
        return "tensorflow"
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
    if head.startswith(b"\x80"):
        return "torch"
    if head.startswith(b"\n"):
        return "mindspore"
    raise WeightsError(f"{path} is no weights file ({size} bytes that start with {head[:8]!r}): {DAMAGED}")


def _sniff_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # zipfile raises almost anything on damaged bytes
        raise WeightsError(f"{path} is {DAMAGED}") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(f"{path} is a TorchScript program: save the state dict of its module instead")
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise WeightsError(f"{path} is a zip archive without weights: unpack it first")


def read(path: Path) -> Raw:
    """The content of `path`, whatever kind of file it is.

    Raises:
        WeightsError: damaged, unsafe or not a weights file.
    """
    return CONTAINERS[sniff(path)](path)


CONTAINERS: dict[str, Callable[[Path], Raw]] = {
    "safetensors": read_safetensors,
    "torch": read_pickled,
    "mindspore": read_mindspore,
    "npz": read_npz,
    "tensorflow": read_tensorflow,
}
