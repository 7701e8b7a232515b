"""YAML from elsewhere: plain values, of a size that a recipe has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LARGEST = 1 << 20
"""Bytes of a file of settings; ours have some five thousand."""

MOST_VALUES = 100_000
"""Values in a file, where one that is named by an alias counts each time."""


def read_documents(path: Path) -> list[Any]:
    """The documents of a YAML file, less empty ones.

    Raises:
        ValueError: not valid, too large, nested too deeply, or with aliases that stand for too much or for themselves.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} has {size} bytes, and a file of settings at most {LARGEST}: is it another file?")
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d is not None]
        count = _values(documents, {}, set())
    except (yaml.YAMLError, ValueError) as error:  # numbers and dates that cannot be are ValueErrors
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be a file of settings") from None
    if count > MOST_VALUES:
        raise ValueError(
            f"{path} stands for {min(count, 10**300):.3g} values by its aliases, and a file of settings has fewer"
        )
    return documents


def _values(node: Any, known: dict[int, int], above: set[int]) -> int:
    """How many values a document has when its aliases are written out, without writing them out."""
    if not isinstance(node, (dict, list, tuple, set)):
        return 1
    if id(node) in above:
        raise ValueError("an alias stands for what it is part of")
    if id(node) not in known:
        parts = [*node.keys(), *node.values()] if isinstance(node, dict) else list(node)
        known[id(node)] = 1 + sum(_values(part, known, above | {id(node)}) for part in parts)
    return known[id(node)]
