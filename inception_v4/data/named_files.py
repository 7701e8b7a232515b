"""Pictures that somebody names: files, folders, patterns, lines of standard input. Some may not be there."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from inception_v4.console import say
from inception_v4.data.folders import picture_files
from inception_v4.data.labelled import Source
from inception_v4.data.pictures import CorruptImage, Decoding, read_picture
from inception_v4.data.suffixes import Sieve, remedy
from inception_v4.preprocessing import MAX_PIXELS
from inception_v4.settings.addresses import SCHEMES, is_address
from inception_v4.storage.fetch import local_copy

STANDARD_INPUT = "-"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class NamedFiles(Source):
    """Pictures by name, without labels. Whatever is wrong with one is a CorruptImage, also that it is not there.

    Args:
        max_pixels: as in `pictures.Decoding`.
    """

    class_names = ()

    def __init__(self, names: Sequence[str], *, max_pixels: int = MAX_PIXELS) -> None:
        self._names, self._max_pixels = names, max_pixels
        self.labels = [0] * len(names)

    def load(self, index: int, *, exif_rotation: bool = True) -> Tensor:
        name = self.name(index)
        if wrong := _wrong_name(name):
            raise CorruptImage(wrong)
        try:
            return read_picture(name, Decoding(exif_rotation, self._max_pixels))
        except OSError as error:
            raise CorruptImage(refusal(name) or f"cannot read {name} ({error.strerror or error})") from error

    def name(self, index: int) -> str:
        return self._names[index]


def pictures_in(arguments: Sequence[str], lines: Iterable[bytes] = ()) -> list[str]:
    """The pictures named, in that order; those of a folder or a pattern sorted. What is passed over is said.

    Args:
        arguments: files, folders (searched through), addresses of either (copied here), patterns (`**` for folders at
            any depth), or "-" for `lines`.
        lines: names of files and folders, one a line.

    Raises:
        ValueError: nothing is named, or one thing alone and it is no picture. One of several is left in: it has its
            error when it is read.
    """
    given = [name for argument in arguments for name in _spelled_out(argument, lines)]
    found = [name for path in given for name in (_inside(path) if os.path.isdir(path) else [path])]
    if not found:
        raise ValueError("no picture is named on standard input: give one name a line")
    if len(found) == 1 and (wrong := refusal(found[0])):
        raise ValueError(wrong)
    return found


def refusal(name: str) -> str | None:
    """Why `name` cannot be a picture, whatever it holds, and the remedy; None: it may be one."""
    if wrong := _wrong_name(name):
        return wrong
    if os.path.isdir(name):
        sieve = Sieve()
        list(picture_files(Path(name), sieve))
        return f"no pictures in {name}: " + (sieve.unread() or "it needs .jpg or .png files")
    return None if os.path.exists(name) else f"no picture or folder {name}"


def _wrong_name(name: str) -> str | None:
    if _ADDRESS.match(name):
        return f"{name} is an address, not a file: download it first"
    what = remedy(name)
    return f"{name}: {Path(name).suffix} files are not read: {what}" if what and not os.path.isdir(name) else None


def _spelled_out(argument: str, lines: Iterable[bytes]) -> Iterator[str]:
    if argument == STANDARD_INPUT:
        yield from filter(None, (os.fsdecode(line.rstrip(b"\r\n")) for line in lines))
    elif is_address(argument) and argument.partition("://")[0] in SCHEMES:
        yield local_copy(argument)
    elif glob.has_magic(argument) and not os.path.exists(argument):
        yield from _matches(argument) or [argument]
    else:
        yield argument


def _inside(folder: str) -> list[str]:
    """The pictures in a folder, or the folder itself where there are none."""
    sieve = Sieve()
    found = sorted(picture_files(Path(folder), sieve), key=_parts)
    for remark in sieve.remarks(folder) if found else ():
        say(remark)
    return found or [folder]


def _matches(pattern: str) -> list[str]:
    """What a shell would make of the pattern, less what is no picture by its name; each file once."""
    sieve, found = Sieve(), set()
    fixed = next(i for i, part in enumerate(_parts(pattern)) if glob.has_magic(part))
    for name in glob.iglob(pattern, recursive=True):
        parent, last = os.path.split(name.rstrip(os.sep))
        if not all(map(sieve.is_folder, _parts(parent)[fixed:])):
            continue
        if not os.path.isdir(name):
            found |= {name} if sieve.is_picture(parent, last) else set()
        elif sieve.is_folder(last):
            found |= set(picture_files(Path(name), sieve))
    for remark in sieve.remarks(pattern):
        say(remark)
    return sorted(found, key=_parts)


def _parts(name: str) -> list[str]:
    return name.split(os.sep)
