"""The canonical names: timm's and Cadene's, 149 convolution units and one classifier.

`UNITS` maps each unit to its scope in TF-Slim's network; the other layouts follow rules and need no table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

HEAD = ("last_linear.weight", "last_linear.bias")
FIRST_CONV = "features.0.conv.weight"
COUNTER = "num_batches_tracked"
LEAVES = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", f"bn.{COUNTER}")

_STEM = {
    "features.0": "Conv2d_1a_3x3",
    "features.1": "Conv2d_2a_3x3",
    "features.2": "Conv2d_2b_3x3",
}
# One line per branch: PyTorch name and TensorFlow leaf of each unit in it (`Branch_K/Conv2d_<leaf>`).
_REDUCE_WITH_1X7 = (
    {"branch0.0": "0a_1x1", "branch0.1": "1a_3x3"},
    {"branch1.0": "0a_1x1", "branch1.1": "0b_1x7", "branch1.2": "0c_7x1", "branch1.3": "1a_3x3"},
)
_INCEPTION_A = (
    {"branch0": "0a_1x1"},
    {"branch1.0": "0a_1x1", "branch1.1": "0b_3x3"},
    {"branch2.0": "0a_1x1", "branch2.1": "0b_3x3", "branch2.2": "0c_3x3"},
    {"branch3.1": "0b_1x1"},
)
_REDUCTION_A = (
    {"branch0": "1a_3x3"},
    {"branch1.0": "0a_1x1", "branch1.1": "0b_3x3", "branch1.2": "1a_3x3"},
)
_INCEPTION_B = (
    {"branch0": "0a_1x1"},
    {"branch1.0": "0a_1x1", "branch1.1": "0b_1x7", "branch1.2": "0c_7x1"},
    {"branch2.0": "0a_1x1", "branch2.1": "0b_7x1", "branch2.2": "0c_1x7", "branch2.3": "0d_7x1", "branch2.4": "0e_1x7"},
    {"branch3.1": "0b_1x1"},
)
_INCEPTION_C = (
    {"branch0": "0a_1x1"},
    {"branch1_0": "0a_1x1", "branch1_1a": "0b_1x3", "branch1_1b": "0c_3x1"},
    {"branch2_0": "0a_1x1", "branch2_1": "0b_3x1", "branch2_2": "0c_1x3"}
    | {"branch2_3a": "0d_1x3", "branch2_3b": "0e_3x1"},
    {"branch3.1": "0b_1x1"},
)
_MIXED: dict[int, tuple[str, tuple[dict[str, str], ...]]] = {
    3: ("Mixed_3a", ({}, {"conv": "0a_3x3"})),
    4: ("Mixed_4a", _REDUCE_WITH_1X7),
    5: ("Mixed_5a", ({"conv": "1a_3x3"},)),
    **{6 + i: (f"Mixed_5{letter}", _INCEPTION_A) for i, letter in enumerate("bcde")},
    10: ("Mixed_6a", _REDUCTION_A),
    **{11 + i: (f"Mixed_6{letter}", _INCEPTION_B) for i, letter in enumerate("bcdefgh")},
    18: ("Mixed_7a", _REDUCE_WITH_1X7),
    **{19 + i: (f"Mixed_7{letter}", _INCEPTION_C) for i, letter in enumerate("bcd")},
}

UNITS = _STEM | {
    f"features.{block}.{unit}": f"{scope}/Branch_{k}/Conv2d_{leaf}"
    for block, (scope, branches) in _MIXED.items()
    for k, branch in enumerate(branches)
    for unit, leaf in branch.items()
}
"""Convolution unit -> TF-Slim scope below `InceptionV4/`; 149 of them."""

CANONICAL = frozenset([f"{unit}.{leaf}" for unit in UNITS for leaf in LEAVES] + list(HEAD))
"""The 896 names of the state dict."""

_MODERN_SPELLING = ((re.compile(r"\.block(?=\d)"), ".branch"), (re.compile(r"^classif\."), "last_linear."))


def modernise(name: str) -> str:
    """A name of the 2017 releases (`block`, `classif`) in today's spelling."""
    for pattern, replacement in _MODERN_SPELLING:
        name = pattern.sub(replacement, name)
    return name


def wrapper_prefix(names: Iterable[str]) -> str:
    """What wrappers (`module.`, `_orig_mod.`, Lightning's `model.`) put before every name; "" for none.

    Raises:
        ValueError: two copies of the network under different prefixes.
    """
    found = sorted({name.removesuffix(FIRST_CONV) for name in names if name.endswith(FIRST_CONV)})
    if len(found) > 1:
        raise ValueError(f"holds {len(found)} networks, under {', '.join(repr(p) for p in found)}: save the one to use")
    return found[0] if found else ""


def preview(names: Iterable[str], limit: int = 10) -> str:
    """`3 (a, b, c)`: the count and the first few of some names."""
    ordered = sorted(names)
    tail = ", ..." if len(ordered) > limit else ""
    return f"{len(ordered)} ({', '.join(ordered[:limit])}{tail})"


def difference(missing: Iterable[str], unexpected: Iterable[str]) -> str:
    """`missing 2 (a, b); unexpected 1 (c)`, without an empty part."""
    parts = {"missing": set(missing), "unexpected": set(unexpected)}
    return "; ".join(f"{word} {preview(names)}" for word, names in parts.items() if names)
