"""Folders of files in the user's cache that are as they were written, or are not used at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from inception_v4.files import cache_dir, hash_ahead, sha256_of, to_disk

SIZE_LIMIT = 2 << 30
"""Bytes of all entries together; those that were not used for longest go first. One holds some 170 MB."""

_RECORD = "entry.json"


class KeptEntry(NamedTuple):
    """A complete entry: its folder, and what was said about it when it was made."""

    folder: Path
    about: dict[str, Any]


def engines_folder() -> Path:
    """Where exported networks are kept; not created."""
    return cache_dir() / "engines"


def prefix_of(weights: Path) -> str:
    """Of the keys of all entries for weights of this size: without any, there is no need to read the weights."""
    return f"{weights.stat().st_size:x}-"


def read_ahead(source: str) -> None:
    """Begin to read what an engine for a weights file or a run directory is compared with, where one may be kept.

    Needs no torch, whose import takes longer than that.
    """
    with suppress(OSError):
        weights = Path(source) / "best.safetensors" if Path(source).is_dir() else Path(source)
        kept = list(engines_folder().glob(f"{prefix_of(weights)}*"))
        if kept:  # the one used last: all of them may be gigabytes
            hash_ahead([weights, *max(kept, key=lambda folder: folder.stat().st_mtime).glob("graph.*")])


def key_of(**parts: Any) -> str:
    """A name for the entry that all of `parts`, plain values, decide."""
    return _digest(parts)[:32]


def find_entry(root: Path, key: str) -> KeptEntry | None:
    """The entry, if every byte of it is as it was written; from now on it is the last one used."""
    folder = root / key
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if record.pop("checksum") != _digest(record):
            return None
        sound = all(sha256_of(folder / name) == digest for name, digest in record["files"].items())
        if not sound:
            return None
        os.utime(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, cut short, or something else
        return None
    return KeptEntry(folder, record["about"])


def store_entry(root: Path, key: str, write: Callable[[Path], dict[str, Any]], *, limit: int = SIZE_LIMIT) -> KeptEntry:
    """Make an entry, unless another process has made it meanwhile, and delete old ones beyond the limit.

    What is written takes its name when it is complete and on disk: a process that is killed before leaves a hidden
    folder that nobody reads, and that a later one deletes.

    Args:
        write: fills an empty folder with files and returns what to remember about them, plain values.
        limit: bytes of all entries together.

    Raises:
        OSError: the folder cannot be written to, or is full.
    """
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_of(root, key)):
        found = find_entry(root, key)
        if found is None:
            part = _part_of(root, key)
            for unusable in (part, root / key):
                if unusable.exists():
                    shutil.rmtree(unusable)
            part.mkdir()
            try:
                found = KeptEntry(root / key, _complete(part, write(part)))
                part.rename(root / key)
                to_disk(root)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    with FileLock(root / ".lock"):
        _delete_old(root, keep=key, limit=limit)
    return found


def _complete(part: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write the record of a folder's files; returns `about` as it will be read."""
    record = {"about": about, "files": {path.name: sha256_of(path) for path in sorted(part.iterdir())}}
    (part / _RECORD).write_text(json.dumps(record | {"checksum": _digest(record)}), encoding="utf-8")
    for path in (*part.iterdir(), part):
        to_disk(path)
    read: dict[str, Any] = json.loads(json.dumps(about))
    return read


def _delete_old(root: Path, *, keep: str, limit: int) -> None:
    """Entries beyond the limit, the one to keep aside, and what killed processes have left."""
    for part in root.glob(".*.part"):
        key = part.name[1:].removesuffix(".part")
        try:
            with FileLock(_lock_of(root, key), timeout=0):
                shutil.rmtree(part, ignore_errors=True)
        except Timeout:  # being written
            continue
    entries = {p: _size(p) for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")}
    for entry, _ in sorted(entries.items(), key=lambda item: item[1]):
        if sum(size for _, size in entries.values()) <= limit:
            return
        if entry.name != keep:
            # Whoever has it open keeps it: the names go, not what is mapped.
            shutil.rmtree(entry, ignore_errors=True)
            del entries[entry]


def _size(entry: Path) -> tuple[float, int]:
    """When it was last used, and its bytes; nothing where another process has just taken it away."""
    with suppress(FileNotFoundError):
        return entry.stat().st_mtime, sum(file.stat().st_size for file in entry.iterdir())
    return 0.0, 0


def _part_of(root: Path, key: str) -> Path:
    return root / f".{key}.part"


def _lock_of(root: Path, key: str) -> Path:
    return root / f".{key}.lock"


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
