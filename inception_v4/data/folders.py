"""Folders of pictures by class: what is in them, and what to say when it is not."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from inception_v4.data.suffixes import Sieve

_WORDS_OF_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
_FILLINGS = "set|split|data|images|pictures"
"""What may follow such a word, as in "train_set" or "val2017"; "training shoes" is a class."""


def class_folders(root: Path, sieve: Sieve | None = None, *, order: str = "text") -> tuple[str, ...]:
    """Names of the class folders in `root`, in `order`; `sieve` remembers what was passed over."""
    names = subfolders(root, sieve)
    if not names:
        raise FileNotFoundError(f"{root} holds no class folders: put each class's pictures into a folder of its own")
    return in_order(names, order)


def in_order(names: Iterable[str], order: str) -> tuple[str, ...]:
    """`names` as `order` sorts them: `text` by characters (1, 10, 2), `natural` by numbers, as timm (1, 2, 10)."""
    assert order in ("text", "natural")
    # Names that timm takes for equal (b and B, 1 and 01) come by characters: the same order each time.
    return tuple(sorted(sorted(names), key=_natural_key) if order == "natural" else sorted(names))


def _natural_key(name: str) -> list[str | int]:
    """Letters whatever their case and numbers by their value; they alternate, so keys can always be compared."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name.lower()))]


def holds_classes(folder: Path) -> bool:
    """Whether `folder` is a split and not itself a class (one may be called "train")."""
    return folder.is_dir() and bool(subfolders(folder))


def check_same_classes(train: Path, val: Path) -> None:
    """Raises ValueError where the two folders have different class folders."""
    only_train = set(class_folders(train)) - set(class_folders(val))
    only_val = set(class_folders(val)) - set(class_folders(train))
    if only_train or only_val:
        sides = [f"only in {side}: {few(names)}" for side, names in ((train, only_train), (val, only_val)) if names]
        raise ValueError(f"the class folders differ ({'; '.join(sides)}): give both the same classes")


def subfolders(root: Path, sieve: Sieve | None = None) -> list[str]:
    sieve = sieve or Sieve()
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and sieve.is_folder(entry.name))


def picture_files(folder: Path, sieve: Sieve | None = None) -> Iterator[str]:
    """Paths of the pictures in `folder`, at any depth; `sieve` remembers what was passed over."""
    sieve = sieve or Sieve()
    ways: dict[str, tuple[tuple[int, int], ...]] = {}  # the directories above each one that is still to come
    for parent, folders, files in os.walk(folder, followlinks=True):
        way = (*ways.pop(parent, ()), _identity(parent))
        inner = {name: os.path.join(parent, name) for name in folders if sieve.is_folder(name)}
        # A link to one of these would lead through all of its pictures again, and again.
        folders[:] = [name for name, path in inner.items() if not (os.path.islink(path) and _identity(path) in way)]
        ways |= {inner[name]: way for name in folders}
        yield from (os.path.join(parent, name) for name in files if sieve.is_picture(parent, name))


def _identity(folder: str) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino


def no_pictures(folder: Path) -> str:
    """Message about a class folder without pictures."""
    sieve = Sieve()
    assert not any(picture_files(folder, sieve))
    unread = sieve.unread()
    return f"class folder {folder} holds no pictures" + (f" but {unread}" if unread else ": fill or delete it")


def missing(path: Path, setting: str) -> str:
    """Message about a folder that is not there, with the nearest name that is."""
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    names = subfolders(parent)
    similar = nearest(path.name, names)
    hint = f"did you mean {similar!r}?" if similar else f"it holds {few(names) or 'no folders'}"
    return f"{setting}: there is no folder {path.name!r} in {parent}: {hint}"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that was perhaps meant: a longer form ("validation" for "val"), or a slip of the pen."""
    others = [other for other in names if other != name]
    if known := stand_in(name, others):
        return known
    longer = [other for other in others if other.lower().startswith(name.lower())]
    return next(iter(longer or difflib.get_close_matches(name, others, n=1)), None)


def stand_in(split: str, names: Iterable[str]) -> str | None:
    """The one of `names` that says what `split` says: another word for it, or its letters in another order."""
    words = _WORDS_OF_SPLITS.get(split, (split,))
    letters = [sorted(word) for word in words]
    known = re.compile(rf"({'|'.join(map(re.escape, words))})({_FILLINGS}|[\W\d_])*")
    return next((name for name in names if known.fullmatch(name.lower()) or sorted(name.lower()) in letters), None)


def folders_for_tests(root: Path) -> list[str]:
    """Names of the folders in `root` that hold classes and are called test, or nearly so."""
    return [name for name in subfolders(root) if name.lower().startswith("test") and holds_classes(root / name)]


def few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:8]) + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "")
