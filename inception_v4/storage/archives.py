"""Archives from elsewhere, unpacked without trusting them: no member outside its folder, no links, no bombs."""

from __future__ import annotations

import hashlib
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from inception_v4.console import progress, say
from inception_v4.files import atomic_write, build_once, megabytes, require_room

MOST_EXPANSION = 200
"""Times its own size that an archive may grow to: pictures hardly shrink in one, and text shrinks to a tenth."""

SMALL = 1 << 28
"""Bytes that any archive may grow to."""

MOST_FILES = 50_000_000


class ArchiveError(ValueError):
    """An archive that is damaged, or that would write where it may not or more than it may; one line."""


def unpack_zip(archive: Path, folder: Path) -> Path:
    """The unpacked content of `archive`, in a folder inside `folder`; done once while the archive is unchanged.

    A single folder in the archive is itself the content.

    Raises:
        FileNotFoundError, ArchiveError: not there, not a ZIP file, damaged, or with members that are not plain files
            inside it, or grows to more than `MOST_EXPANSION` times its size.
        DiskFull: no room.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"no archive {archive}: check data_dir and data_zip")
    state = archive.stat()
    key = hashlib.sha256(repr((str(archive), state.st_size, state.st_mtime_ns)).encode()).hexdigest()[:12]
    content = build_once(folder / f"{archive.stem}-{key}", lambda part: _unpack(archive, part))
    inside = [path for path in content.iterdir() if path.name != "__MACOSX"]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and inside[0].name == archive.stem else content


def _unpack(archive: Path, part: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _require_harmless(archive, members)
            size = sum(member.file_size for member in members)
            require_room(part, size, f"unpacking {archive.name}")
            say(f"unpacking {archive} ({len(members)} files, {megabytes(size)})")
            with progress("unpacking, MB", size / 1e6) as count_on:
                for member in members:
                    _write_member(opened, member, part / member.filename)
                    count_on(member.file_size / 1e6)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ArchiveError(f"{archive} cannot be unpacked ({error}): fetch it again, or make it anew") from error


def _write_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Whole or not at all; never more than the archive declares."""
    if target.is_file() and target.stat().st_size == member.file_size:
        return  # by an interrupted run
    with opened.open(member) as packed, atomic_write(target) as temporary, open(temporary, "wb") as file:
        left = member.file_size
        while block := packed.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise zipfile.BadZipFile(f"{member.filename} has more bytes than it declares")
            file.write(block)


def _require_harmless(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    size, own, seen = 0, archive.stat().st_size, set()
    for member in members:
        name = member.filename
        kind = stat.S_IFMT(member.external_attr >> 16)
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0] or "\0" in name:
            raise ArchiveError(f"{archive} has a member {name!r} outside its folder: it is not unpacked")
        if kind not in (0, stat.S_IFREG):
            raise ArchiveError(f"{archive} has a member {name!r} that is a link or a device: it is not unpacked")
        if name in seen:
            raise ArchiveError(f"{archive} has two members {name!r}: it is not unpacked")
        seen.add(name)
        size += member.file_size
    if size > max(MOST_EXPANSION * own, SMALL) or len(members) > MOST_FILES:
        raise ArchiveError(
            f"{archive} of {megabytes(own)} would grow to {megabytes(size)} in {len(members)} files: more than "
            f"{MOST_EXPANSION} times its size is not unpacked"
        )
