"""`torch.export` programs (`.pt2`): what PyTorch would run while it opens one.

Such an archive holds pickles that PyTorch unpickles freely where its safe unpickler fails, shapes that it evaluates as
Python, and names that it puts into source code. Here only what this project writes passes: tensors as bytes, example
inputs that the safe unpickler takes, the operators of this network, and words where a program needs no more.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inception_v4.files import parse_json

if TYPE_CHECKING:
    from torch.export.pt2_archive import PT2ArchiveReader

_PROGRAM = "models/model.json"
_PICKLES = ("data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/model.pt")
"""The last two in files of older versions. PyTorch asks for the first whether it is listed or not."""

_TENSORS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_COMPILED = "data/aotinductor/"

_TERM = r"(?:Symbol\('\w+'(?:, \w+=True)*\)|\w+)"
_STRUCTURE = r"type|context|children_spec|null|\[\]|builtins\.(?:tuple|list|dict)"
_OPERATORS = (
    "_assert_tensor_metadata", "_to_copy", "adaptive_avg_pool2d", "add", "alias", "avg_pool2d", "cat", "clone",
    "contiguous", "conv2d", "convolution", "detach", "div", "flatten", "linear", "max_pool2d", "mean", "mul", "permute",
    "relu", "relu_", "reshape", "sigmoid", "softmax", "squeeze", "sub", "sym_size", "to", "unsqueeze", "view",
)  # fmt: skip
"""Of this network as versions of PyTorch write it: arithmetic, none of which opens a file."""

_FORMS = {
    "target": re.compile(rf"torch\.ops\.aten\.(?:{'|'.join(_OPERATORS)})\.\w+", re.ASCII),
    "guards_code": re.compile(r"L\['\w+'\]\.size\(\)\[\d+\] [<>=!]=? \d+", re.ASCII),
    "expr_str": re.compile(rf"{_TERM}(?: ?[-+*/]+ ?{_TERM})*", re.ASCII),
    **dict.fromkeys(("in_spec", "out_spec"), re.compile(rf'(?:[\[\]{{}}, :\d]|null|"(?:{_STRUCTURE})")*')),
}
"""What the text of some fields has to be: what they name is called, or they are evaluated."""

_WORD = re.compile(r"[\w.+-]*", re.ASCII)
"""What any other text has to be: without brackets nothing in it can be a call."""


def what_would_run(path: Path) -> str:
    """What PyTorch would unpickle or evaluate of a program from elsewhere, for people; empty for nothing.

    Raises:
        Exception: of many kinds, where it is no such archive, or damaged.
    """
    from torch.export.pt2_archive import PT2ArchiveReader

    with zipfile.ZipFile(path) as archive:
        # Also where the rest of it is new: PyTorch turns to its reader of old files when the other one fails.
        if "version" in archive.namelist():
            return "it is in the format of PyTorch 2.7, whose parts are unpickled"
    # As PyTorch reads it: two readers of one archive may find different files under a name.
    return next(_findings(PT2ArchiveReader(str(path))), "")


def _findings(archive: PT2ArchiveReader) -> Iterator[str]:
    names = archive.get_file_names()
    if any(name.startswith(_COMPILED) for name in names):
        yield "it holds compiled code besides the program"
    if (programs := [name for name in names if name.startswith("models/")]) != [_PROGRAM]:
        yield f"it holds the programs {programs}, not {_PROGRAM} alone"
    yield from (f"{name} would be unpickled freely" for name in _PICKLES if _is_unsafe(archive, name, names))
    for name in _TENSORS:
        if name in names:
            yield from (f"{name}: {finding}" for finding in _not_bytes(parse_json(archive.read_string(name))))
    yield from _not_plain(parse_json(archive.read_string(_PROGRAM)), "")


def _is_unsafe(archive: PT2ArchiveReader, name: str, names: list[str]) -> bool:
    """Whether PyTorch's safe unpickler, which it tries first, refuses a part, or finds other inputs than ours."""
    import torch

    if name not in names and name != _PICKLES[0]:
        return False
    content = archive.read_bytes(name)
    try:
        value = torch.load(io.BytesIO(content), weights_only=True) if content else ((), {})
    except Exception:  # whatever it is, PyTorch goes on with the other one
        return True
    return name == _PICKLES[0] and not _is_examples(value)


def _is_examples(value: Any) -> bool:
    """Whether it is inputs without names: those of others end up in source code."""
    from torch import Tensor

    match value:
        case (tuple() as inputs, dict() as named):
            return not named and all(type(part) is Tensor for part in inputs)
    return False


def _not_bytes(table: Any) -> Iterator[str]:
    """Tensors of a table that are not kept as their numbers."""
    for name, entry in table["config"].items():
        if entry["use_pickle"] is not False or not re.fullmatch(r"(?:weight|tensor)_\d+", entry["path_name"]):
            yield f"{name[:80]!r} is kept as a pickle"
    yield from _not_plain(table, "")


def _not_plain(value: Any, field: str) -> Iterator[str]:
    """Text in which there could be more than the kind of field needs."""
    if isinstance(value, str):
        if not _FORMS.get(field, _WORD).fullmatch(value):
            yield f"{field or 'a name'} is {value[:80]!r}"
    elif isinstance(value, list):
        for part in value:
            yield from _not_plain(part, field)
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _not_plain(name, "")
            if not (name == "metadata" and _is_remarks(part)):
                yield from _not_plain(part, name)


def _is_remarks(part: Any) -> bool:
    """Whether it is what an exporter notes of a node, for people: no arguments."""
    return isinstance(part, dict) and all(isinstance(text, str) for text in part.values())
