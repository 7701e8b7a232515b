"""ImageNet's own archives (ILSVRC2012) to class folders, without trusting what is in them.

Only plain picture files with the expected names leave an archive. The work goes on where it was interrupted, and
the finished folder appears at once under its name.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from inception_v4.console import progress, say, track
from inception_v4.data.packed import Contents
from inception_v4.data.tars import has_end, inner_members, tar_members
from inception_v4.files import DiskFull, build_once

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"

_MEGABYTE = 1e6


def extract_train(root: Path, destination: Path) -> None:
    """`ILSVRC2012_img_train.tar` (a tar of one tar per class) in `root` to `destination/<wnid>/`."""
    build_once(destination, lambda part: _extract_train(_existing(root / TRAIN_TAR), part))


def extract_val(root: Path, destination: Path) -> None:
    """`ILSVRC2012_img_val.tar` in `root` to `destination/<wnid>/`, with the development kit's ground truth."""
    build_once(destination, lambda part: _extract_val(_existing(root / VAL_TAR), _val_wnids(root), part))


def train_contents(root: Path) -> Contents:
    """Where each picture begins in `ILSVRC2012_img_train.tar`, which is a tar file of one tar file per class."""
    archive = _existing(root / TRAIN_TAR)
    classes = [(_plain_name(archive, outer.name, r"(n\d{8})\.tar"), outer) for outer in tar_members(archive)]
    number = {wnid: place for place, wnid in enumerate(sorted(wnid for wnid, _ in classes))}
    rows: list[tuple[int, int, int, int, str]] = []
    for wnid, outer in track(classes, f"reading the contents of {archive.name}"):
        for picture in inner_members(archive, outer):
            name = _plain_name(archive, picture.name, r"(n\d{8}_\d+\.JPEG)")
            rows.append((0, picture.offset, picture.size, number[wnid], name))
    return Contents.of([(TRAIN_TAR, archive.stat().st_size)], list(number), rows)


def val_contents(root: Path) -> Contents:
    """Where each picture begins in `ILSVRC2012_img_val.tar`, with the development kit's ground truth."""
    archive, wnids = _existing(root / VAL_TAR), _val_wnids(root)
    number = {wnid: place for place, wnid in enumerate(sorted(set(wnids)))}
    rows = []
    for member in tar_members(archive):
        name, wnid = _val_picture(archive, member.name, wnids)
        rows.append((0, member.offset, member.size, number[wnid], name))
    _require_all(archive, len(rows), wnids)
    return Contents.of([(VAL_TAR, archive.stat().st_size)], list(number), rows)


def _extract_train(archive: Path, part: Path) -> None:
    with _checked(archive, part) as outer, _unpacking(archive) as count_on:
        for member in outer:
            wnid = _plain_name(archive, _regular(archive, member), r"(n\d{8})\.tar")
            with tarfile.open(fileobj=_open(outer, member), mode="r:") as inner:
                for picture in inner:
                    name = _plain_name(archive, _regular(archive, picture), r"(n\d{8}_\d+\.JPEG)")
                    _write(_open(inner, picture), part / wnid / name, picture.size)
                    count_on(picture.size / _MEGABYTE)


def _extract_val(archive: Path, wnids: list[str], part: Path) -> None:
    seen = 0
    with _checked(archive, part) as outer, _unpacking(archive) as count_on:
        for picture in outer:
            name, wnid = _val_picture(archive, _regular(archive, picture), wnids)
            _write(_open(outer, picture), part / wnid / name, picture.size)
            seen += 1
            count_on(picture.size / _MEGABYTE)
    _require_all(archive, seen, wnids)


def _val_picture(archive: Path, member: str, wnids: list[str]) -> tuple[str, str]:
    """Name and class of a validation picture."""
    name = _plain_name(archive, member, r"(ILSVRC2012_val_\d{8}\.JPEG)")
    number = int(name[-13:-5])
    if not 1 <= number <= len(wnids):
        raise ValueError(f"{archive}: no ground truth for {name}: the development kit is another year's")
    return name, wnids[number - 1]


def _require_all(archive: Path, seen: int, wnids: list[str]) -> None:
    if seen != len(wnids):
        raise ValueError(f"{archive} holds {seen} pictures, the ground truth {len(wnids)}: fetch it again")


@contextmanager
def _unpacking(archive: Path) -> Iterator[Callable[..., None]]:
    """Says how much there is to do, and on a terminal how far it is; gives a function that counts megabytes."""
    size = archive.stat().st_size
    say(f"unpacking {archive} ({size / 1e9:.1f} GB); what an interrupted run unpacked is kept")
    with progress("unpacking, MB", size / _MEGABYTE) as count_on:
        yield count_on


@contextmanager
def _checked(archive: Path, part: Path) -> Iterator[tarfile.TarFile]:
    """The open archive, after looking at its end and at the free space; its errors name it."""
    size = archive.stat().st_size
    free = shutil.disk_usage(part).free
    if not any(part.iterdir()) and free < size:
        raise DiskFull(
            f"unpacking {archive.name} needs {size / 1e9:.1f} GB, {part.parent} has {free / 1e9:.1f} GB free"
        )
    if not has_end(archive):
        raise ValueError(f"{archive} is incomplete (its end is missing): fetch it again")
    try:
        with tarfile.open(archive, "r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is damaged ({error}): fetch it again") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"the disk is full while unpacking {archive.name} into {part.parent}: "
            "make room and run again, it goes on where it stopped"
        ) from error


def _regular(archive: Path, member: tarfile.TarInfo) -> str:
    """The name of a plain file; anything else is refused."""
    if not member.isreg():
        raise _unexpected(archive, member.name)
    return member.name


def _plain_name(archive: Path, member: str, pattern: str) -> str:
    """The expected part of a member's name; a file that is called otherwise is refused."""
    match = re.fullmatch(rf"(?:\./)?{pattern}", member)
    if not match:
        raise _unexpected(archive, member)
    return match[1]


def _unexpected(archive: Path, member: str) -> ValueError:
    return ValueError(f"{archive} has an unexpected member {member!r}: it is not ImageNet's original archive")


def _open(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # regular files have content
    return file


def _write(content: IO[bytes], path: Path, size: int) -> None:
    """Atomically, unless an earlier run did it."""
    if path.is_file() and path.stat().st_size == size:
        return
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        shutil.copyfileobj(content, file)
    os.replace(temporary, path)


def _existing(archive: Path) -> Path:
    if not archive.is_file():
        raise FileNotFoundError(f"extract: there is no {archive.name} in {archive.parent}")
    return archive


def _val_wnids(root: Path) -> list[str]:
    """Class of each validation picture, by its number."""
    truth = _devkit_file(root, "data/ILSVRC2012_validation_ground_truth.txt").split()
    wnids = read_synsets(_devkit_file(root, "data/meta.mat"))
    unknown = {int(number) for number in truth} - set(wnids)
    if unknown:
        raise ValueError(f"{root}: meta.mat of the development kit lacks class {min(unknown)} of its ground truth")
    return [wnids[int(number)] for number in truth]


def mat_reader() -> Callable[..., Any]:
    """SciPy's reader of MATLAB files; raises ValueError where it is not installed."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(
            "extract: the validation pictures' classes are in a MATLAB file, which SciPy reads: "
            "pip install 'inception-v4[imagenet]'"
        ) from error
    return loadmat


def read_synsets(meta: bytes) -> dict[int, str]:
    """WordNet's name of each class by ImageNet's number, from the development kit's `meta.mat`.

    Raises:
        ValueError: it is not that file, or damaged, or there is no SciPy.
    """
    loadmat = mat_reader()
    try:
        synsets = loadmat(io.BytesIO(meta), simplify_cells=True)["synsets"]
        return {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    except Exception as error:  # SciPy raises whatever it trips over in damaged files
        raise ValueError(f"the development kit's meta.mat is damaged ({error}): fetch it again") from error


def _devkit_file(root: Path, name: str) -> bytes:
    unpacked, packed = root / DEVKIT / name, root / f"{DEVKIT}.tar.gz"
    if unpacked.is_file():
        return unpacked.read_bytes()
    if not packed.is_file():
        raise FileNotFoundError(
            f"extract: the validation pictures' classes are in {packed.name}, which is not in {root}: put it there"
        )
    try:
        with tarfile.open(packed, "r:gz") as tar:
            return _open(tar, tar.getmember(f"{DEVKIT}/{name}")).read()
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise ValueError(f"{packed} is damaged ({error}): fetch it again") from error
