"""Protocol buffers as they lie in a file: field numbers and their bytes, without a schema."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class FormatError(ValueError):
    """Bytes that do not have the structure they should have."""


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, its number or its bytes) of one message, in the file's order.

    Raises:
        FormatError: no message.
    """
    position = 0
    while position < len(data):
        key, position = number(data, position)
        wire = key & 7
        if wire == _VARINT:
            value, position = number(data, position)
            yield key >> 3, value
            continue
        if wire not in (_BYTES, _FIXED32, _FIXED64):
            raise FormatError(f"a field of type {wire}")
        length = 8 if wire == _FIXED64 else 4
        if wire == _BYTES:
            length, position = number(data, position)
        if position + length > len(data):
            raise FormatError(f"a field of {length} bytes where {len(data) - position} are left")
        content = data[position : position + length]
        yield key >> 3, content if wire == _BYTES else int.from_bytes(content, "little")
        position += length


def number(data: memoryview, position: int) -> tuple[int, int]:
    """A number of seven bits to a byte, low bits first, and the position behind it."""
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise FormatError("the end inside a number")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise FormatError("a number without end")


def message(value: int | memoryview) -> memoryview:
    """The bytes of a field that must have some."""
    if isinstance(value, int):
        raise FormatError("a number where a message should be")
    return value


def text(value: int | memoryview) -> str:
    """The text of a field."""
    try:
        return bytes(message(value)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("a name that is no text") from error


def whole(value: int | memoryview) -> int:
    """The number of a field that must be one."""
    if not isinstance(value, int):
        raise FormatError("bytes where a number should be")
    return value
