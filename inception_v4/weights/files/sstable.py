"""Sorted tables of keys and values, LevelDB's file format, which TensorFlow's checkpoints use.

A file is a row of blocks, then an index block (key -> place of a block) and a footer of 48 bytes. Behind each block
come its compression (one byte: 0 none, 1 Snappy) and a masked CRC-32C of both. In a block each key is written as the
number of bytes it shares with the one before, and the rest. See google/leveldb, doc/table_format.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from inception_v4.weights.files.crc32c import masked_crc32c
from inception_v4.weights.files.protobuf import FormatError, number
from inception_v4.weights.files.snappy import decompress

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
"""The last eight bytes of every such file."""

_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_LONGEST_KEY = 4096


def read_table(path: Path) -> Iterator[tuple[bytes, memoryview]]:
    """(key, value) in the order of the keys; one block at a time is in memory.

    Raises:
        FormatError: not such a file, cut off or damaged.
    """
    with path.open("rb") as file:
        end = path.stat().st_size - _FOOTER_BYTES
        if end < 0:
            raise FormatError(f"{end + _FOOTER_BYTES} bytes are no table")
        file.seek(end)
        footer = memoryview(file.read(_FOOTER_BYTES))
        if footer[-len(MAGIC) :] != MAGIC:
            raise FormatError("no table's last bytes")
        _, _, position = _place(footer, 0)  # of the block about blocks, which TensorFlow leaves empty
        start, length, _ = _place(footer, position)
        free, last = 0, None
        for _, where in _entries(_block(file, start, length, end)):
            start, length, _ = _place(where, 0)
            if start < free:
                raise FormatError("blocks that overlap")
            free = start + length + _TRAILER_BYTES
            for key, value in _entries(_block(file, start, length, end)):
                if last is not None and key <= last:
                    raise FormatError("keys out of order")
                last = key
                yield key, value


def _place(data: memoryview, position: int) -> tuple[int, int, int]:
    """Offset and length of a block, and the position behind them."""
    offset, position = number(data, position)
    length, position = number(data, position)
    return offset, length, position


def _block(file: BinaryIO, offset: int, length: int, end: int) -> memoryview:
    if offset + length + _TRAILER_BYTES > end:
        raise FormatError(f"a block of {length} bytes at byte {offset}, behind the end")
    file.seek(offset)
    data = memoryview(file.read(length + _TRAILER_BYTES))
    stored = int.from_bytes(data[length + 1 :], "little")
    if len(data) != length + _TRAILER_BYTES or masked_crc32c(data[: length + 1]) != stored:
        raise FormatError(f"the block at byte {offset} does not have its checksum")
    kind = data[length]
    if kind not in (0, 1):
        raise FormatError(f"the block at byte {offset} has the unknown compression {kind}")
    return memoryview(decompress(data[:length])) if kind else data[:length]


def _entries(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """(key, value) of one block; its end lists the keys that are written in full."""
    end = len(block) - 4 * (1 + int.from_bytes(block[-4:], "little"))
    if len(block) < 4 or end < 0:
        raise FormatError("a block without its list of keys")
    entries, position, key = block[:end], 0, b""
    while position < end:
        shared, position = number(entries, position)
        rest, position = number(entries, position)
        length, position = number(entries, position)
        start = position + rest
        if shared > len(key) or start + length > end or shared + rest > _LONGEST_KEY:
            raise FormatError("an entry that does not fit its block")
        key = key[:shared] + bytes(entries[position:start])
        position = start + length
        yield key, entries[start:position]
