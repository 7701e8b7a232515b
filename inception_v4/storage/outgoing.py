"""Files that are made here and belong at an address: written locally, uploaded when they are whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inception_v4.settings.addresses import is_address, require_plain
from inception_v4.storage.remote import Place, StorageError


@dataclass(frozen=True)
class Outgoing:
    """Where to write what belongs at `target`: there, or in a local folder in its stead.

    Attributes:
        path: of the file or folder to write, with others beside it.
    """

    target: str
    path: Path

    @property
    def folder(self) -> str:
        """Of the target: its path or its address."""
        return _split(self.target)[0]

    def told(self, text: str) -> str:
        """A line for people, with the address in place of the local folder."""
        return text.replace(f"{self.path.parent}/", f"{self.folder}/") if is_address(self.target) else text


@contextmanager
def outgoing(target: str) -> Iterator[Outgoing]:
    """A place for a file or folder, and what is beside it, that belongs at a path or an address.

    What the block has written at an address's stead is uploaded after it, the file of that name last; also after an
    error of the block, as files that are whole stay where a path was given.

    Raises:
        ValueError: an address of another kind, or with a secret in it.
        StorageError: it cannot be reached; what was to be uploaded stays, and is named.
    """
    check_target(target)
    if not is_address(target):
        yield Outgoing(target, Path(target))
        return
    folder = Path(tempfile.mkdtemp(prefix="inception-v4-"))
    here = Outgoing(target, folder / _split(target)[1])
    try:
        yield here
    except Exception as error:
        _tell(error, here)
        _send(here)
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _send(here)


def _split(target: str) -> tuple[str, str]:
    """Folder and name."""
    folder, _, name = target.rstrip("/").rpartition("/")
    return folder, name


def check_target(target: str) -> None:
    """Raises ValueError where nothing can be written at an address: before the work, not after it."""
    if is_address(target):
        require_plain(target)
        if "/" not in target.partition("://")[2].strip("/"):
            raise ValueError(f"{target} names no file in it: give a longer address, as {target.rstrip('/')}/NAME")
        Place(target)


def send_files(address: str, folder: Path, files: Iterable[Path]) -> None:
    """Upload files of a folder under their names in it, each visible only as a whole; they stay here.

    Raises:
        StorageError: it cannot be reached; says where the files are.
    """
    place = Place(address)
    try:
        for path in files:
            place.put(path, path.relative_to(folder).as_posix())
    except StorageError as error:
        raise StorageError(f"{error}; what was to be uploaded is in {folder}: copy it from there") from error


def _send(here: Outgoing) -> None:
    folder = here.path.parent
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    send_files(here.folder, folder, sorted(files, key=lambda path: (path == here.path, path)))
    shutil.rmtree(folder)


def _tell(error: Exception, here: Outgoing) -> None:
    """An error of the block names the address, not the folder in its stead."""
    error.args = tuple(here.told(part) if isinstance(part, str) else part for part in error.args)
    if isinstance(error, OSError) and error.filename:
        error.filename = here.told(str(error.filename))
