"""How much each class counts in the loss, and how many pictures each has."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_v4.data.folders import few
from inception_v4.files import parse_json

BALANCED = "balanced"
_SHOWN = 12


def class_weights(choice: str, counts: Sequence[int], names: Sequence[str]) -> list[float]:
    """A weight for each class.

    Args:
        choice: `balanced` is pictures / (classes x pictures of the class), scikit-learn's, whose mean over the
            pictures is 1; or a file: a JSON object, or lines of `class,weight`.
        counts, names: of the classes, in their order.
    Raises:
        ValueError, FileNotFoundError: naming the classes that are missing or unknown, or the bad value.
    """
    if choice == BALANCED:
        return [sum(counts) / (len(counts) * count) if count else 0.0 for count in counts]
    given = _read(Path(choice).expanduser())
    unknown, missing = set(given) - set(names), set(names) - set(given)
    if unknown or missing:
        sides = [f"{what}: {few(group)}" for what, group in (("unknown", unknown), ("missing", missing)) if group]
        raise ValueError(
            f"class_weights {choice}: classes {'; '.join(sides)}: give one line for each class of the data"
        )
    return [_weight(choice, name, given[name]) for name in names]


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"class_weights {path}: no such file: give one, or the word {BALANCED}")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        try:
            content = parse_json(text)
        except ValueError as error:
            raise ValueError(f"class_weights {path} is not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f'class_weights {path}: give an object, as in {{"cat": 1.5, "dog": 1}}')
        return content
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if any(len(row) != 2 for row in rows):
        raise ValueError(f"class_weights {path}: {next(r for r in rows if len(r) != 2)}: give lines of class,weight")
    return {name.strip(): weight for name, weight in rows}


def _weight(choice: str, name: str, value: Any) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"class_weights {choice}: {name} has {value!r}: give a number of at least 0")
    return weight


def counts_line(counts: Sequence[int], names: Sequence[str]) -> str:
    """How many pictures each class has; of many classes the smallest and the largest."""
    pairs = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
    if len(pairs) > _SHOWN:
        order = sorted(range(len(counts)), key=counts.__getitem__)
        pairs = [pairs[i] for i in order[:3]] + ["..."] + [pairs[i] for i in order[-3:]]
    return f"pictures per class: {', '.join(pairs)}"
