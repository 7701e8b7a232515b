"""The part of MATLAB's file format (level 5) that ImageNet's `meta.mat` uses: structures, text and numbers.

Format: "MAT-File Format", The MathWorks, chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_STRUCT, _CHAR = 2, 4
_LAST_NUMERIC = 15


def read_mat(data: bytes) -> dict[str, Any]:
    """Variables by name: a structure array is a list of dicts, text a str, one number a scalar, others an array.

    Raises:
        ValueError: not such a file, or a kind of variable that is not read here.
    """
    if data[126:128] != b"IM":
        raise ValueError("not a little-endian MATLAB 5 file")
    try:
        return dict(_variable(content) for _, content in _elements(data[_HEADER:]))
    except (struct.error, zlib.error, KeyError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"damaged MATLAB file ({error})") from error


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each data element in `data`; compressed ones are opened."""
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from("<II", data, position)
        if kind >> 16:  # small element: size and type share four bytes, four bytes of content follow
            yield kind & 0xFFFF, data[position + 4 : position + 4 + (kind >> 16)]
            position += 8
            continue
        content = data[position + 8 : position + 8 + size]
        if kind == _COMPRESSED:
            yield from _elements(zlib.decompress(content))
            position += 8 + size
        else:
            yield kind, content
            position += 8 + -(-size // 8) * 8


def _variable(content: bytes) -> tuple[str, Any]:
    """Name and value of a matrix element."""
    if not content:
        return "", np.zeros((0, 0))
    parts = list(_elements(content))
    kind = parts[0][1][0]
    shape = np.frombuffer(parts[1][1], "<i4").tolist()
    name = parts[2][1].decode("latin-1")
    if kind == _STRUCT:
        return name, _structures(parts, math.prod(shape))
    if kind == _CHAR:
        return name, parts[3][1].decode(_TEXT[parts[3][0]])
    if kind > _LAST_NUMERIC or kind < _CHAR:
        raise ValueError(f"variable {name!r} is of class {kind}, which is not read here")
    values = np.frombuffer(parts[3][1], _NUMBERS[parts[3][0]])
    return name, values[0].item() if values.size == 1 else values.reshape(shape, order="F")


def _structures(parts: list[tuple[int, bytes]], count: int) -> list[dict[str, Any]]:
    width = struct.unpack("<i", parts[3][1])[0]
    table = parts[4][1]
    names = [table[i : i + width].rstrip(b"\0").decode("latin-1") for i in range(0, len(table), width)]
    values = [_variable(content)[1] for _, content in parts[5:]]
    if count * len(names) != len(values):
        raise ValueError(f"damaged MATLAB file ({len(values)} values for {count} structures)")
    rows = range(0, len(values), len(names))
    return [dict(zip(names, values[row : row + len(names)], strict=True)) for row in rows]
