"""MindSpore's `.ckpt` files, read and written without MindSpore; numpy only.

A file is a sequence of protobuf messages, one record per tensor (or per slice of a large one), little-endian:

    Checkpoint { repeated Value value = 1; }
    Value { string tag = 1; TensorProto tensor = 2; MapTensorProto maptensor = 3; }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }

and, where asked for, `crc_num` and ten bytes of big-endian CRC-32 of everything before. What `write` makes is byte for
byte what `mindspore.save_checkpoint` makes.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUMPY_TYPES = {
    "Bool": np.dtype("?"),
    "Int8": np.dtype("<i1"),
    "Int16": np.dtype("<i2"),
    "Int32": np.dtype("<i4"),
    "Int64": np.dtype("<i8"),
    "UInt8": np.dtype("<u1"),
    "UInt16": np.dtype("<u2"),
    "UInt32": np.dtype("<u4"),
    "UInt64": np.dtype("<u8"),
    "Float16": np.dtype("<f2"),
    "BFloat16": np.dtype("<u2"),
    "Float32": np.dtype("<f4"),
    "Float64": np.dtype("<f8"),
}
"""Type names in the file; numpy has no bfloat16, so its bits are held as unsigned integers."""

SLICE_BYTES = 512 << 20
_TEXT = "str"  # UTF-32, dims [0]
_MAP = "map"  # hash tables; listed but not read
_MOST_DIMENSIONS = 32  # numpy 1 has no more
_MOST_BYTES = 1 << 62
"""That dimensions other than 0 may ask for: numpy counts them also where there are no elements."""
_TRAILER = b"crc_num"
_TRAILER_BYTES = len(_TRAILER) + 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class DamagedCheckpoint(ValueError):
    """Bytes that are not a MindSpore checkpoint, or not a whole one."""


@dataclass(frozen=True)
class Value:
    """One tensor: a type name of `NUMPY_TYPES` and its elements (bits, for BFloat16)."""

    kind: str
    array: np.ndarray


@dataclass
class Record:
    """Where a tensor lies in the file: `parts` are (offset, length) of the slices of its content."""

    kind: str
    dims: tuple[int, ...]
    parts: list[tuple[int, int]]

    @property
    def nbytes(self) -> int:
        """Length of the content."""
        return sum(length for _, length in self.parts)


class Checkpoint:
    """The index of a file; tensors are read one at a time, so memory holds only what was asked for.

    Attributes:
        records: name -> `Record`, in the file's order.
    """

    def __init__(self, path: Path) -> None:
        """Read the index.

        Raises:
            DamagedCheckpoint: not such a file, cut off, or damaged as far as its structure or CRC tells.
        """
        self.path = path
        if not path.stat().st_size:
            raise DamagedCheckpoint("holds no tensors")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self.records = _index(data, _check_crc(data))
        for name, record in self.records.items():
            _check_size(name, record)

    def read(self, name: str) -> Value | str:
        """The tensor or text of one record, in memory of its own."""
        record = self.records[name]
        if record.kind == _MAP:
            raise DamagedCheckpoint(f"{name!r} is a hash table, not a tensor")
        content = np.empty(record.nbytes, np.uint8)
        start = 0
        with self.path.open("rb", buffering=0) as file:
            for offset, length in record.parts:
                file.seek(offset)
                _read_into(file, content.data[start : start + length])
                start += length
        if record.kind != _TEXT:
            return Value(record.kind, content.view(NUMPY_TYPES[record.kind]).reshape(record.dims))
        try:
            return content.tobytes().decode("utf-32-le")
        except UnicodeDecodeError as error:
            raise DamagedCheckpoint(f"{name!r} is no text ({error})") from error


def _read_into(file: io.RawIOBase, view: memoryview) -> None:
    while len(view):
        count = file.readinto(view)
        if not count:
            raise DamagedCheckpoint("the file ends inside a tensor")
        view = view[count:]


def _check_crc(data: mmap.mmap) -> int:
    """Where the records end; with a trailer, only after its CRC was found right."""
    end = len(data) - _TRAILER_BYTES
    if end < 0 or data[end : end + len(_TRAILER)] != _TRAILER:
        return len(data)
    crc = 0
    for start in range(0, end, 1 << 20):
        crc = zlib.crc32(data[start : min(start + (1 << 20), end)], crc)
    if crc != int.from_bytes(data[end + len(_TRAILER) :], "big"):
        raise DamagedCheckpoint("its CRC is not the one it was saved with")
    return end


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, offset, length) of the protobuf fields between two offsets; a number's own value has offset -1."""
    position = start
    while position < end:
        key, position = _number(data, position, end)
        wire = key & 7
        if wire == _VARINT:
            value, position = _number(data, position, end)
            yield key >> 3, -1, value
            continue
        if wire not in (_BYTES, _FIXED32, _FIXED64):
            raise DamagedCheckpoint(f"damaged at byte {position}: field type {wire}")
        length = 8 if wire == _FIXED64 else 4
        if wire == _BYTES:
            length, position = _number(data, position, end)
        if position + length > end:
            raise DamagedCheckpoint(f"cut off: byte {position} starts {length} bytes, {end - position} are left")
        yield key >> 3, position, length
        position += length


def _number(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """A number of seven bits to a byte, low bits first, and the position behind it."""
    result = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise DamagedCheckpoint(f"cut off at byte {position}")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise DamagedCheckpoint(f"damaged at byte {position}: a number without end")


def _text(data: mmap.mmap, offset: int, length: int) -> str:
    try:
        return data[offset : offset + length].decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedCheckpoint(f"damaged at byte {offset}: a name that is no text") from error


def _index(data: mmap.mmap, end: int) -> dict[str, Record]:
    records: dict[str, Record] = {}
    last = None
    for number, offset, length in _fields(data, 0, end):
        if number != 1 or offset < 0:
            raise DamagedCheckpoint(f"damaged: field {number} where a record should start")
        name, record = _value(data, offset, offset + length)
        if name not in records:
            records[name] = record
        elif name == last and (record.kind, record.dims) == (records[name].kind, records[name].dims):
            records[name].parts += record.parts  # the next slice of a large tensor
        else:
            raise DamagedCheckpoint(f"holds {name!r} twice")
        last = name
    return records


def _value(data: mmap.mmap, start: int, end: int) -> tuple[str, Record]:
    name, record = None, None
    for number, offset, length in _fields(data, start, end):
        if offset >= 0 and number == 1:
            name = _text(data, offset, length)
        elif offset >= 0 and number == 2:
            record = _tensor(data, offset, offset + length)
        elif offset >= 0 and number == 3:
            record = Record(_MAP, (), [(offset, length)])
    if not name or record is None:
        raise DamagedCheckpoint(f"damaged before byte {end}: a record without a name or a tensor")
    return name, record


def _tensor(data: mmap.mmap, start: int, end: int) -> Record:
    kind, dims, parts = None, [], None
    for number, offset, length in _fields(data, start, end):
        if offset < 0 and number == 1:
            dims.append(length)
        elif offset >= 0 and number == 2:
            kind = _text(data, offset, length)
        elif offset >= 0 and number == 3:
            parts = [(offset, length)]
    if kind is None or parts is None:
        raise DamagedCheckpoint(f"damaged before byte {end}: a tensor without type or content")
    return Record(kind, tuple(dims), parts)


def _check_size(name: str, record: Record) -> None:
    """The content must have the length that type and dimensions ask for."""
    if record.kind == _MAP:
        return
    if record.kind == _TEXT:
        if record.nbytes % 4:
            raise DamagedCheckpoint(f"{name!r} is a text of {record.nbytes} bytes, no multiple of 4")
        return
    if record.kind not in NUMPY_TYPES:
        raise DamagedCheckpoint(f"{name!r} has the unknown type {record.kind[:20]!r}")
    if record.dims == (0,) and record.nbytes == NUMPY_TYPES[record.kind].itemsize:
        record.dims = ()  # another way to write a scalar
    itemsize = NUMPY_TYPES[record.kind].itemsize
    if len(record.dims) > _MOST_DIMENSIONS or math.prod(filter(None, record.dims)) * itemsize > _MOST_BYTES:
        raise DamagedCheckpoint(f"{name!r} has impossible dimensions ({len(record.dims)}, {list(record.dims)[:4]})")
    expected = math.prod(record.dims) * itemsize
    if record.nbytes != expected:
        shape = f"{record.kind}{list(record.dims)[:8]}"
        raise DamagedCheckpoint(f"{name!r} has {record.nbytes} bytes, {shape} needs {expected}: a part is missing")


def write_msckpt(path: Path, values: Mapping[str, Value | str], *, crc: bool = False) -> None:
    """Write a checkpoint; with `crc`, MindSpore's `crc_check` finds its trailer.

    Tensors without elements are left out, as MindSpore leaves them out.
    """
    checksum = 0
    with path.open("wb") as file:
        for name, value in values.items():
            for header, content in _records(name, value):
                for block in (header, content):
                    file.write(block)
                    checksum = zlib.crc32(block, checksum) if crc else 0
        if crc:
            file.write(_TRAILER + checksum.to_bytes(_TRAILER_BYTES - len(_TRAILER), "big"))
        file.flush()
        os.fsync(file.fileno())


def _records(name: str, value: Value | str) -> list[tuple[bytes, memoryview]]:
    """(header, content) of each record of one value."""
    if isinstance(value, str):
        return [_record(name, _TEXT, (0,), memoryview(value.encode("utf-32-le")))]
    array = np.ascontiguousarray(value.array).reshape(value.array.shape)
    if array.dtype != NUMPY_TYPES[value.kind]:
        raise ValueError(f"{name!r}: an array of {array.dtype} cannot be stored as {value.kind}")
    if not array.size:
        return []
    view = array.reshape(-1).view(np.uint8).data
    starts = range(0, len(view), SLICE_BYTES)
    return [_record(name, value.kind, array.shape, view[i : i + SLICE_BYTES]) for i in starts]


def _record(name: str, kind: str, dims: tuple[int, ...], content: memoryview) -> tuple[bytes, memoryview]:
    tensor = b"".join(b"\x08" + _varint(dim) for dim in dims) + _field(b"\x12", kind.encode())
    tensor += b"\x1a" + _varint(len(content))
    tag = _field(b"\x0a", name.encode())
    body = tag + b"\x12" + _varint(len(tensor) + len(content)) + tensor
    return b"\x0a" + _varint(len(body) + len(content)) + body, content


def _field(key: bytes, content: bytes) -> bytes:
    return key + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
