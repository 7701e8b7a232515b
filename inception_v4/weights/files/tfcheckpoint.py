"""TensorFlow's checkpoints, read without TensorFlow: the single file of 2015 and `.index` with `.data-*`.

Both are sorted tables whose first entry, under the empty key, describes the file. The messages, of
tensorflow/core/util/saved_tensor_slice.proto and tensorflow/core/protobuf/tensor_bundle.proto, by field number:

    SavedTensorSlices { 1 meta { 1 tensor { 1 name, 2 shape, 3 type, 4 slice } }, 2 data { 1 name, 2 slice, 3 values } }
    BundleHeaderProto { 1 num_shards, 2 endianness }
    BundleEntryProto { 1 dtype, 2 shape, 3 shard_id, 4 offset, 5 size, 6 crc32c, 7 slices }
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from inception_v4.weights.files.crc32c import masked_crc32c
from inception_v4.weights.files.protobuf import FormatError, fields, message, text, whole
from inception_v4.weights.files.sstable import read_table
from inception_v4.weights.files.tfvariables import is_network, sort_variables
from inception_v4.weights.record import DAMAGED, Raw, WeightsError

_TYPES = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}
_VALUES = {1: 5, 2: 6}
"""Field of a TensorProto that holds packed values of a type."""

_MOST_DIMENSIONS = 8
_MOST_BYTES = 1 << 62

Entries = Iterator[tuple[bytes, memoryview]]


@dataclass(frozen=True)
class Variable:
    """What a checkpoint says about one variable; the last four are for `.data-*`."""

    kind: int
    shape: tuple[int, ...]
    slices: tuple[memoryview, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0


def read_tensorflow(path: Path) -> Raw:
    """The network's variables; auxiliary head, optimizer slots and counters are only listed.

    Args:
        path: the single file, or the `.index`, beside which the `.data-*` lie.

    Raises:
        WeightsError: damaged, incomplete, or of another network.
    """
    try:
        entries = read_table(path)
        key, header = next(entries, (None, memoryview(b"")))
        if key != b"":
            raise FormatError("it does not start with its description")
        first = next(fields(header), (0, 0))
        read = _read_single_file if first[0] == 1 and not isinstance(first[1], int) else _read_bundle
        tensors, others = read(path, header, entries)
    except FormatError as error:
        raise WeightsError(f"{path} is {DAMAGED} ({error})") from error
    if not tensors:
        shown = ", ".join(sorted(others)[:5]) or "no variables"
        raise WeightsError(f"{path} holds no InceptionV4/... variables of TF-Slim's network (it has {shown}, ...)")
    return replace(sort_variables(tensors, others), prefers_ema=True)


def _read_single_file(path: Path, header: memoryview, entries: Entries) -> tuple[dict[str, Tensor], list[str]]:
    """Every value lies in the table."""
    variables = dict(itertools.chain.from_iterable(map(_described, _field(header, 1))))
    tensors = {}
    for _, value in entries:
        for data in _field(value, 2):
            name = text(next(_field(data, 1), 0))
            if name not in variables:
                raise FormatError(f"values of {name[:80]!r}, which it does not list")
            if is_network(name):
                _check_whole(path, name, variables[name])
                tensors[name] = _packed(path, name, variables[name], data)
    others = [name for name in variables if not is_network(name)]
    if absent := sorted(variables.keys() - tensors.keys() - set(others)):
        raise FormatError(f"{len(absent)} variables without values, {absent[0][:80]!r} first")
    return tensors, others


def _described(meta: memoryview) -> Iterator[tuple[str, Variable]]:
    for tensor in _field(meta, 1):
        yield text(next(_field(tensor, 1), 0)), _variable(tensor, kind=3, shape=2, slices=4)


def _packed(path: Path, name: str, variable: Variable, data: memoryview) -> Tensor:
    if variable.kind not in _VALUES:
        raise _unusual(path, name, f"has type {variable.kind} of TensorFlow's list")
    values = [message(part) for proto in _field(data, 3) for part in _field(message(proto), _VALUES[variable.kind])]
    return _tensor(name, variable, bytearray().join(values))


def _read_bundle(path: Path, header: memoryview, entries: Entries) -> tuple[dict[str, Tensor], list[str]]:
    """The table says where in the files beside it the values lie."""
    described = {number: value for number, value in fields(header) if number < 3}
    if described.get(2, 0):
        raise WeightsError(f"{path} was written on a big-endian machine: save it again on another")
    shards = whole(described.get(1, 1))
    variables = {}
    for key, value in entries:
        if not key.startswith(b"\0"):  # those are the slices of partitioned variables
            variables[text(memoryview(key))] = _entry(value)
    wanted = [name for name in variables if is_network(name)]
    tensors = {}
    # In the order of the files, so that each is read once from front to back.
    for name in sorted(wanted, key=lambda name: (variables[name].shard, variables[name].offset)):
        _check_whole(path, name, variables[name])
        if variables[name].kind not in _TYPES:
            raise _unusual(path, name, f"has type {variables[name].kind} of TensorFlow's list")
        tensors[name] = _from_shard(path, name, variables[name], shards)
    return {name: tensors[name] for name in wanted}, [name for name in variables if name not in tensors]


def _entry(value: memoryview) -> Variable:
    found = {number: whole(content) for number, content in fields(value) if number in (3, 4, 5, 6)}
    shard, offset, size, crc = (found.get(number, 0) for number in (3, 4, 5, 6))
    described = _variable(value, kind=1, shape=2, slices=7)
    return replace(described, shard=shard, offset=offset, size=size, crc=crc)


def _from_shard(path: Path, name: str, variable: Variable, shards: int) -> Tensor:
    shard = path.with_name(f"{path.stem}.data-{variable.shard:05}-of-{shards:05}")
    if not shard.is_file():
        raise WeightsError(f"{path} needs {shard.name} beside it, which holds the numbers: copy or download it too")
    if variable.offset + variable.size > shard.stat().st_size:
        raise WeightsError(f"{shard} is {DAMAGED} ({name!r} lies behind its end)")
    with shard.open("rb") as file:
        file.seek(variable.offset)
        content = bytearray(file.read(variable.size))
    if masked_crc32c(content) != variable.crc:
        raise WeightsError(f"{shard} is {DAMAGED} ({name!r} does not have its checksum)")
    return _tensor(name, variable, content)


def _variable(data: memoryview, *, kind: int, shape: int, slices: int) -> Variable:
    """Type and shape of a message that has them under these field numbers."""
    found = {number: value for number, value in fields(data) if number in (kind, shape)}
    dims = [next(_numbers(message(dim), 1), 0) for dim in _field(message(found.get(shape, memoryview(b""))), 2)]
    return Variable(whole(found.get(kind, 0)), tuple(dims), tuple(map(message, _field(data, slices))))


def _check_whole(path: Path, name: str, variable: Variable) -> None:
    """Variables that a partitioner has cut into slices are not put together here."""
    extents = [extent for part in variable.slices for extent in _field(part, 1)]
    if len(variable.slices) > 1 or any(True for extent in extents for _ in _numbers(message(extent), 2)):
        raise _unusual(path, name, f"is partitioned into {len(variable.slices)} slices")


def _unusual(path: Path, name: str, what: str) -> WeightsError:
    return WeightsError(f"{path}: {name} {what}: restore it in TensorFlow and save it whole, as float32")


def _tensor(name: str, variable: Variable, content: bytearray) -> Tensor:
    dtype = _TYPES[variable.kind]
    # torch counts all dimensions also where one of them is 0.
    if (
        len(variable.shape) > _MOST_DIMENSIONS
        or math.prod(variable.shape) * dtype.itemsize != len(content)
        or math.prod(filter(None, variable.shape)) * dtype.itemsize > _MOST_BYTES
    ):
        raise FormatError(f"{name!r} has {len(content)} bytes, which are not {dtype} of shape {variable.shape[:8]}")
    if not content:
        return torch.empty(variable.shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).reshape(variable.shape)


def _field(data: int | memoryview, wanted: int) -> Iterator[memoryview]:
    """The bytes of every field with this number."""
    return (message(value) for number, value in fields(message(data)) if number == wanted)


def _numbers(data: memoryview, wanted: int) -> Iterator[int]:
    return (whole(value) for number, value in fields(data) if number == wanted)
