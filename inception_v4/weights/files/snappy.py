"""Snappy's raw format, decompressed; see google/snappy, format_description.txt."""

from __future__ import annotations

from inception_v4.weights.files.protobuf import FormatError, number

_LARGEST_RATIO = 32
"""A copy of up to 64 bytes takes at least 3: no block can grow by more than some 22 times."""


def decompress(data: memoryview) -> bytes:
    """The content of one compressed block.

    Raises:
        FormatError: damaged; nothing larger than the data can describe is allocated.
    """
    size, position = number(data, 0)
    if size > _LARGEST_RATIO * len(data):
        raise FormatError(f"a block of {len(data)} bytes that says it unpacks to {size}")
    output = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        if tag & 3 == 0:
            length, position = _literal_length(data, position, tag >> 2)
            if position + length > len(data):
                raise FormatError("a compressed block that ends inside a literal")
            output += data[position : position + length]
            position += length
        else:
            length, distance, position = _copy(data, position, tag)
            if not 0 < distance <= len(output):
                raise FormatError("a compressed block that copies from before its start")
            start = len(output) - distance
            piece = output[start : start + length]
            # A copy may overlap what it writes: it then repeats the last `distance` bytes.
            output += (piece * (length // len(piece) + 1))[:length]
        if len(output) > size:
            break
    if len(output) != size:
        raise FormatError(f"a compressed block that says {size} bytes and holds others")
    return bytes(output)


def _literal_length(data: memoryview, position: int, code: int) -> tuple[int, int]:
    """Length, and the position behind it; codes 60 to 63 stand for 1 to 4 bytes that hold it."""
    if code < 60:
        return code + 1, position
    end = position + code - 59
    return _little(data, position, end) + 1, end


def _copy(data: memoryview, position: int, tag: int) -> tuple[int, int, int]:
    """Length, distance back, and the position behind them."""
    if tag & 3 == 1:
        return (tag >> 2 & 7) + 4, (tag >> 5) << 8 | _little(data, position, position + 1), position + 1
    end = position + (2 if tag & 3 == 2 else 4)
    return (tag >> 2) + 1, _little(data, position, end), end


def _little(data: memoryview, start: int, end: int) -> int:
    if end > len(data):
        raise FormatError("a compressed block that ends inside a number")
    return int.from_bytes(data[start:end], "little")
