"""Tables of contents of tar files, made by reading their headers alone. Nothing is unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

END = bytes(1024)
"""What a complete tar file ends with."""


class Member(NamedTuple):
    """A plain file in an archive: its name, where its content begins, and its size in bytes."""

    name: str
    offset: int
    size: int


def tar_members(archive: Path) -> Iterator[Member]:
    """The plain files in an archive, in its order; whatever else is in it (folders, links) is passed over.

    Raises:
        ValueError: it is compressed, cut short or damaged.
    """
    if not has_end(archive):
        raise ValueError(f"{archive} is no tar file, is compressed, or its end is missing: fetch or pack it again")
    yield from inner_members(archive, Member("", 0, archive.stat().st_size))


def has_end(archive: Path) -> bool:
    """Whether the end is there: a tar that ends after a whole member looks complete, only the closing zeros tell."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - len(END)))
        return file.read() == END


class _Within:
    """A file up to a place in it, for tarfile: a header that says otherwise makes it neither read nor go elsewhere."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        self._file, self._end, self.tell = file, end, file.tell

    def read(self, size: int) -> bytes:
        if size < 0:
            raise tarfile.ReadError(f"a header of {size} bytes")
        # Not even asked for: Python takes the memory before it reads.
        return self._file.read(min(size, max(self._end - self.tell(), 0)))

    def seek(self, place: int) -> int:
        if not 0 <= place <= self._end:
            raise tarfile.ReadError(f"a header says that the next one is at {place}, the end is at {self._end}")
        return self._file.seek(place)


def inner_members(archive: Path, outer: Member) -> Iterator[Member]:
    """The plain files of a tar file that lies in `archive` at `outer`, with offsets in `archive` itself."""
    last, end = outer.offset, outer.offset + outer.size
    try:
        with archive.open("rb") as file:
            file.seek(outer.offset)
            with tarfile.open(fileobj=_Within(file, end), mode="r:") as tar:  # type: ignore[call-overload]
                for member in tar:
                    # A pax header may say a size below 0, and the next header would be one that was read before.
                    if member.size < 0 or member.offset_data <= last:
                        raise tarfile.ReadError(f"{member.name[:200]!r} has {member.size} bytes")
                    last = member.offset_data
                    if member.isreg() and not member.issparse():
                        if member.offset_data + member.size > end:
                            raise tarfile.ReadError(f"{member.name[:200]!r} goes beyond the end")
                        yield Member(member.name, member.offset_data, member.size)
                    vars(tar)["members"].clear()  # else all of a large archive's stay in memory
    except (tarfile.TarError, ValueError) as error:  # ValueError: numbers of pax headers that are none
        raise ValueError(
            f"{archive}{outer.name and f': {outer.name}'} is damaged ({error}): fetch or pack it again"
        ) from error
