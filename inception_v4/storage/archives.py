"""Archives from elsewhere, unpacked without trusting them: no member outside its folder, no links, no bombs."""

from __future__ import annotations

import errno
import hashlib
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from inception_v4.console import progress, say
from inception_v4.files import atomic_write, build_once, megabytes, remove_abandoned, require_room

MOST_EXPANSION = 200
"""Times its own size that an archive may grow to: pictures hardly shrink in one, and text shrinks to a tenth."""

SMALL = 1 << 28
"""Bytes that any archive may grow to."""

MOST_FILES = 50_000_000

_UNFIT = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ)
"""Of names that the file system does not take: too long, or a file's and a folder's at once."""
_SHOWN = 200


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
    with _opened(archive) as opened:
        members = [member for member in opened.infolist() if not member.filename.endswith("/")]
        _require_harmless(archive, members)
        size = sum(member.file_size for member in members)
        remove_abandoned(part)
        missing = sum(m.file_size for m in members if not _is_unpacked(part / m.filename, m.file_size))
        require_room(part, missing, f"unpacking {archive.name}")
        say(f"unpacking {archive} ({len(members)} files, {megabytes(size)})")
        with progress("unpacking, MB", size / 1e6) as count_on:
            for member in members:
                try:
                    _write_member(_content(archive, opened, member), member.file_size, part / member.filename)
                except OSError as error:
                    if error.errno not in _UNFIT:
                        raise
                    shown = f"{member.filename[:_SHOWN]!r} that is no file's name ({error.strerror})"
                    raise ArchiveError(f"{archive} has a member {shown}: it is not unpacked") from error
                count_on(member.file_size / 1e6)


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except Exception as error:  # zipfile raises almost anything on damaged bytes
        raise _damaged(archive, error) from error


def _content(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Piece by piece; never more than the archive declares."""
    left = member.file_size
    try:
        with opened.open(member) as packed:
            while block := packed.read(1 << 20):
                left -= len(block)
                if left < 0:
                    raise zipfile.BadZipFile(f"{member.filename[:_SHOWN]} has more bytes than it declares")
                yield block
    except Exception as error:  # as above; what goes wrong where the pieces are written is not raised in here
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> ArchiveError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ArchiveError(f"{archive} cannot be unpacked ({reason}): fetch it again, or make it anew")


def _is_unpacked(target: Path, size: int) -> bool:
    """By an interrupted run."""
    try:
        return target.is_file() and target.stat().st_size == size
    except OSError as error:
        if error.errno not in _UNFIT:
            raise
        return False


def _write_member(content: Iterator[bytes], size: int, target: Path) -> None:
    """Whole or not at all."""
    if _is_unpacked(target, size):
        return
    with atomic_write(target) as temporary, open(temporary, "wb") as file:
        file.writelines(content)


def _require_harmless(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    size, own, seen = 0, archive.stat().st_size, set()
    for member in members:
        name, shown = member.filename, repr(member.filename[:_SHOWN])
        kind = stat.S_IFMT(member.external_attr >> 16)
        path = PurePosixPath(name)
        unfit = not path.parts or ":" in path.parts[0] or any(word in name for word in ("\\", "\0"))
        if unfit or path.is_absolute() or ".." in path.parts:
            raise ArchiveError(f"{archive} has a member {shown} outside its folder: it is not unpacked")
        if kind not in (0, stat.S_IFREG):
            raise ArchiveError(f"{archive} has a member {shown} that is a link or a device: it is not unpacked")
        if name in seen:
            raise ArchiveError(f"{archive} has two members {shown}: it is not unpacked")
        seen.add(name)
        size += member.file_size
    if size > max(MOST_EXPANSION * own, SMALL) or len(members) > MOST_FILES:
        raise ArchiveError(
            f"{archive} of {megabytes(own)} would grow to {megabytes(size)} in {len(members)} files: more than "
            f"{MOST_EXPANSION} times its size is not unpacked"
        )
