"""Settings spelled as other projects spell them, translated to this project's names and scales.

Three projects, one table of rules each: `mindcv.py`, `modelzoo.py`, `timm.py`. A flag in another project's spelling
changes that setting and nothing else. A recipe that is recognisably another project's brings that project's defaults
along, because what it means depends on them; every one of them is named in the notices.

Knows other projects' words. Must never know what a setting does here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inception_v4.settings.dialects.mindcv import MINDCV
from inception_v4.settings.dialects.modelzoo import MODELZOO
from inception_v4.settings.dialects.rules import (
    NO_EFFECT,
    Combination,
    Dialect,
    DialectError,
    Outcome,
    Rule,
    Same,
    View,
    shown,
)
from inception_v4.settings.dialects.shared import COMBINATIONS, SHARED
from inception_v4.settings.dialects.timm import TIMM
from inception_v4.settings.schema import Config

__all__ = [
    "DIALECTS",
    "FLAGS",
    "NO_EFFECT",
    "SWITCHES",
    "Dialect",
    "DialectError",
    "dialect_of",
    "settings_table",
    "translate",
]

DIALECTS = {"mindcv": MINDCV, "modelzoo": MODELZOO, "timm": TIMM}
OURS = frozenset(Config().flat())
IMPLIED, RECIPE, COMMAND_LINE = 0, 1, 2
"""The layers of a `View`."""

_COMBINATIONS: tuple[Combination, ...] = (
    *COMBINATIONS,
    *(combination for dialect in DIALECTS.values() for combination in dialect.combinations),
)


_SWITCHED = (
    ("color_jitter", "auto_augment", (None,)),
    ("decay_rate", "scheduler", ("exponential", "step", "multi_step", "polynomial")),
    ("decay_epochs", "scheduler", ("exponential", "step", "cosine")),
    ("milestones", "scheduler", ("multi_step",)),
    ("ema_decay", "ema", (True,)),
    ("ema_warmup", "ema", (True,)),
    ("momentum", "opt", ("momentum", "nesterov", "rmsprop", "rmsproptf")),
)
"""(setting, the one that decides whether it counts, with these values)."""


def dialect_of(recipe: Mapping[str, Any]) -> Dialect | None:
    """The project whose recipe this is: it has names that only that project has, and none that only this one has."""
    best = _nearest(recipe)
    return best if best is not None and not _own(best, recipe) else None


def _nearest(recipe: Mapping[str, Any]) -> Dialect | None:
    """The project with most names that only it uses; None where no name belongs to another project."""

    def score(dialect: Dialect) -> tuple[int, int]:
        others = {name for other in DIALECTS.values() if other is not dialect for name in other.rules}
        signs = dialect.signs & recipe.keys()
        return len(signs - others), len(signs)

    best = max(DIALECTS.values(), key=score)
    return best if best.signs & recipe.keys() else None


def _own(dialect: Dialect, recipe: Mapping[str, Any]) -> list[str]:
    """The names in a recipe that only this project has."""
    return sorted((OURS - dialect.rules.keys()) & recipe.keys())


def translate(given: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], list[str]]:
    """Settings in this project's names and scales, and notices: what changed meaning, what has no effect and why.

    Args:
        given: settings of the command line, by name; they win. Words are converted where a rule needs their value.
        recipe: the leaves of a recipe file. Names that nobody knows are passed on, for the schema to refuse.
    Raises:
        DialectError: a setting whose meaning cannot be had here.
    """
    given = {name.replace("-", "_"): value for name, value in given.items()}
    dialect = dialect_of(recipe or {})
    layers = [dict(dialect.defaults) if dialect else {}, dict(recipe or {}), given]
    view = View(layers, dialect.title if dialect else None)
    settings: dict[str, Any] = {}
    notices: list[str] = []
    if dialect is not None:
        notices += _drop(dialect, view)
        found, remarks = dialect.implied(view)
        settings |= found
        notices += remarks
    explicit: set[str] = set()
    for level in (IMPLIED, RECIPE, COMMAND_LINE):
        found, remarks = _layer(view, level, dialect)
        settings |= found
        notices += remarks
        if level > IMPLIED:
            explicit |= found.keys()
    if dialect is not None:
        notices.insert(0, _opening(dialect, settings, explicit))
    elif mixed := _nearest(recipe or {}):
        own = ", ".join(_own(mixed, recipe or {})[:3])
        notices.insert(0, f"a recipe of this project, for its {own}, with names of {mixed.title}: {mixed.title}'s "
                       "defaults do not apply; give such settings on the command line to have them")  # fmt: skip
    return settings, _together(notices)


def _drop(dialect: Dialect, view: View) -> list[str]:
    """Take out of the lower layers what the project's code does not look at."""
    reasons = dialect.dropped(view)
    lost = {name: shown(value) for name, value in view.layers[RECIPE].items() if name in reasons}
    for layer in view.layers[:COMMAND_LINE]:
        for name in reasons.keys() & layer.keys():
            del layer[name]
    return [
        f"{name}={value}{NO_EFFECT}{reasons[name]}; give them on the command line to have them"
        for name, value in lost.items()
    ]


def _layer(view: View, level: int, dialect: Dialect | None) -> Outcome:
    """The settings of one layer: rule by rule, then the combinations that this layer decides."""
    settings: dict[str, Any] = {}
    origins: dict[str, str] = {}
    notices: list[str] = []
    for name, value in view.layers[level].items():
        if view.level(name) > level:
            continue
        found, remarks = _rule(name, level, dialect).apply(name, value)
        notices += remarks
        for key, translated in found.items():
            if key in origins and settings[key] != translated:
                raise DialectError(f"{origins[key]} and {name} are the same setting ({key}) with two values: keep one")
            origins[key], settings[key] = name, translated
    for combination in _COMBINATIONS:
        if view.level(*combination.names) >= 0 and view.level(*combination.names, *combination.also) == level:
            found, remarks = combination.resolve(view)
            settings |= found
            notices += remarks
    return settings, notices if level > IMPLIED else []


def _rule(name: str, level: int, dialect: Dialect | None) -> Rule:
    order = [dialect, *DIALECTS.values()] if dialect else list(DIALECTS.values())
    if level < COMMAND_LINE and dialect and name in dialect.rules:
        return dialect.rules[name]
    if name in OURS:
        return SHARED.get(name, Same())
    for known in order:
        if level == COMMAND_LINE and name in known.flags:
            return known.flags[name]
    for known in order:
        if name in known.rules:
            return known.rules[name]
    return Same()


def _opening(dialect: Dialect, settings: Mapping[str, Any], explicit: set[str]) -> str:
    """Which project's recipe this is, and its defaults that count in this run and are not this project's."""
    defaults = Config().flat()
    idle = {name for name, switch, values in _SWITCHED if settings.get(switch, defaults[switch]) not in values}
    differ = [
        f"{name} {shown(value)}"
        for name, value in settings.items()
        if name not in explicit | idle and shown(value) != shown(defaults.get(name))
    ]
    said = f", with its defaults for what it leaves out: {', '.join(differ)}" if differ else ""
    return f"read as a recipe of {dialect.title}{said}"


def _together(notices: list[str]) -> list[str]:
    """Each notice once, and one for all settings that have no effect for the same reason."""
    grouped: dict[str, list[str]] = {}
    for notice in dict.fromkeys(notices):
        names, has_none, reason = notice.partition(NO_EFFECT)
        grouped.setdefault(has_none + reason if has_none else notice, []).append(names)
    return [", ".join(names) + key if key.startswith(NO_EFFECT) else key for key, names in grouped.items()]


def _flags() -> dict[str, str]:
    flags: dict[str, str] = {}
    for dialect in DIALECTS.values():
        for name, rule in dialect.rules.items():
            if name not in OURS:
                text = dialect.flags.get(name, rule).describe(name).replace("`", "")
                flags.setdefault(name, f"{dialect.title}: {text}")
    return flags


FLAGS: dict[str, str] = _flags()
"""Every setting in another project's spelling, with a line of help."""

SWITCHES = frozenset({"amp", "clip_grad"})
"""Settings of ours that another project's users give without a value (`--amp`, `--clip_grad`)."""


def settings_table(dialect: Dialect) -> str:
    """All settings of a project and what becomes of them, as a Markdown table."""
    lines = [f"| {dialect.title} | here |", "|---|---|"]
    lines += [f"| `{name}` | {rule.describe(name)} |" for name, rule in dialect.rules.items()]
    return "\n".join(lines)
