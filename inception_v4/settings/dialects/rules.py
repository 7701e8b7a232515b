"""What becomes of another project's setting: the kinds of rules, and who gave which value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from inception_v4.settings.schema import NONE_WORDS

Outcome = tuple[Mapping[str, Any], Sequence[str]]
"""Settings in this project's names and scales, and notices for the user."""

NOTHING: Outcome = (MappingProxyType({}), ())
NO_EFFECT = " -> no effect: "
NOTHING_ASKED: tuple[Any, ...] = (None, False, 0, [], {})
"""Values that ask for nothing, of a setting that is refused or has no effect."""


class DialectError(ValueError):
    """A value that means something in another project and cannot be had here; one line with reason and remedy."""

    exit_code = 2


def plain(value: Any) -> Any:
    """A word of the command line as a Python value: none, true, 4e-5; other values as they are."""
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    if word in NONE_WORDS:
        return None
    if word in ("true", "yes", "on", "false", "no", "off"):
        return word in ("true", "yes", "on")
    try:
        return float(word) if any(c in word for c in ".en") else int(word)
    except ValueError:
        return value


def switch(name: str, value: Any) -> bool:
    """A word or a number that means true or false; none is false."""
    found = plain(value)
    if found is None or (isinstance(found, (bool, int, float)) and found in (0, 1)):
        return bool(found)
    raise DialectError(f"{name}={shown(value)}: give true or false")


def one_number(name: str, value: Any) -> float | None:
    """`5`, `4e-5`, or none."""
    found = plain(value)
    if found is None or (isinstance(found, (int, float)) and not isinstance(found, bool)):
        return found
    raise DialectError(f"{name}={shown(value)}: give one number")


def numbers(name: str, value: Any) -> list[float]:
    """`0.2,1`, `(0.2, 1)`, `0.2 1`, `[0.2, 1]` or 0.2 as a list."""
    if isinstance(value, str):
        parts: Iterable[Any] = value.strip("()[] ").replace(",", " ").split()
    else:
        parts = value if isinstance(value, (list, tuple)) else [value]
    try:
        found = [float(part) for part in parts]
    except (TypeError, ValueError):
        found = []
    if not found:
        raise DialectError(f"{name}={shown(value)}: give numbers, as in 0.2,1")
    return found


def shown(value: Any) -> str:
    """A value as a user would type it."""
    if isinstance(value, (list, tuple)):
        return ",".join(shown(v) for v in value)
    if value is None or value == "":
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Rule(Protocol):
    """What becomes of one setting."""

    def apply(self, name: str, value: Any) -> Outcome: ...

    def describe(self, name: str) -> str:
        """A line for help texts and the table in the documentation."""
        ...


@dataclass(frozen=True)
class Same:
    """Same name, same meaning; `note` where a value outside `quiet` behaves a little differently."""

    note: str = ""
    quiet: tuple[Any, ...] = ()

    def apply(self, name: str, value: Any) -> Outcome:
        noted = self.note and plain(value) not in self.quiet
        return {name: value}, [f"{name}={shown(value)}: {self.note}"] if noted else []

    def describe(self, name: str) -> str:
        return "same" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Renamed:
    """Another name of one of this project's settings."""

    to: str
    note: str = ""
    quiet: tuple[Any, ...] = ()

    def apply(self, name: str, value: Any) -> Outcome:
        noted = self.note and plain(value) not in self.quiet
        return {self.to: value}, [f"{name}={shown(value)}: {self.note}"] if noted else []

    def describe(self, name: str) -> str:
        return f"`{self.to}`" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Scaled:
    """The same setting on another scale."""

    to: str
    factor: float
    why: str

    def apply(self, name: str, value: Any) -> Outcome:
        if plain(value) is None:
            return NOTHING
        scaled = [round(v * self.factor, 10) for v in numbers(name, value)]
        return {self.to: scaled if len(scaled) > 1 else scaled[0]}, []

    def describe(self, name: str) -> str:
        return f"`{self.to}`, {self.why}"


@dataclass(frozen=True)
class Refused:
    """Cannot be had here: an error, except for values that ask for nothing."""

    reason: str
    accepted: tuple[Any, ...] = NOTHING_ASKED

    def apply(self, name: str, value: Any) -> Outcome:
        if plain(value) in self.accepted:
            return NOTHING
        raise DialectError(f"{name}={shown(value)}: {self.reason}")

    def describe(self, name: str) -> str:
        fine = [shown(v) for v in self.accepted if not (v is None or v is False or v == 0 or v in ({}, []))]
        return f"refused{' unless ' + ' or '.join(fine) if fine else ''}: {self.reason}"


class Word(NamedTuple):
    """A translated value with something to say about it."""

    value: Any
    notice: str


@dataclass(frozen=True)
class Valued:
    """Other words for the values of a setting; a word that is not in `words` is passed on for the schema to judge."""

    to: str
    words: Mapping[str, Any]

    def apply(self, name: str, value: Any) -> Outcome:
        key = shown(plain(value)).lower()
        if key not in self.words:
            return {self.to: value}, []
        word = self.words[key]
        if isinstance(word, Refused):
            return word.apply(name, value)
        if isinstance(word, Word):
            return {self.to: word.value}, [f"{name}={shown(value)}: {word.notice}"]
        return {self.to: word}, []

    def describe(self, name: str) -> str:
        pairs = []
        for key, word in self.words.items():
            meaning = "refused" if isinstance(word, Refused) else shown(word.value if isinstance(word, Word) else word)
            if meaning != key:
                pairs.append(f"{key} -> {meaning}")
        name_shown = "same" if self.to == name else f"`{self.to}`"
        return f"{name_shown}: {', '.join(pairs)}" if pairs else name_shown


@dataclass(frozen=True)
class Ignored:
    """No effect here; said so, except for values that ask for nothing."""

    reason: str
    quiet: tuple[Any, ...] = NOTHING_ASKED

    def apply(self, name: str, value: Any) -> Outcome:
        return {}, [] if plain(value) in self.quiet else [f"{name}={shown(value)}{NO_EFFECT}{self.reason}"]

    def describe(self, name: str) -> str:
        return f"no effect: {self.reason}"


def all_rules(
    kept: Mapping[str, Rule],
    *,
    refused: Mapping[str, str],
    ignored: Mapping[str, str],
    quiet: Mapping[str, tuple[Any, ...]],
) -> dict[str, Rule]:
    """All settings of a project.

    Args:
        kept: what maps.
        refused: why a setting cannot be had here.
        ignored: why a setting has no effect here.
        quiet: values of what is refused or ignored that ask for nothing, where they are not `NOTHING_ASKED`.
    """
    table = dict(kept)
    table |= {name: Refused(reason, quiet.get(name, NOTHING_ASKED)) for name, reason in refused.items()}
    return table | {name: Ignored(reason, quiet.get(name, NOTHING_ASKED)) for name, reason in ignored.items()}


@dataclass(frozen=True)
class Together:
    """Means something only together with others: a `Combination` has the word."""

    how: str

    def apply(self, name: str, value: Any) -> Outcome:
        return NOTHING

    def describe(self, name: str) -> str:
        return self.how


@dataclass(frozen=True)
class View:
    """Who gave what. Later layers win: a project's own defaults, its recipe, the command line."""

    layers: Sequence[dict[str, Any]]
    dialect: str | None = None

    def get(self, *names: str) -> Any:
        """The value of the first of `names` in the highest layer that has one, else None; words are converted."""
        for layer in reversed(self.layers):
            for name in names:
                if name in layer:
                    return plain(layer[name])
        return None

    def switch(self, name: str) -> bool:
        """Whether it is on; not given is off."""
        return switch(name, self.get(name))

    def number(self, name: str) -> float | None:
        """Its number, None where it was not given."""
        return one_number(name, self.get(name))

    def level(self, *names: str) -> int:
        """The highest layer that has one of `names`; -1 for none."""
        return max((i for i, layer in enumerate(self.layers) if any(n in layer for n in names)), default=-1)


@dataclass(frozen=True)
class Combination:
    """A rule about several settings; runs when one of `names` was given.

    Its outcome has the rank of the highest layer that gave one of `names` or `also`.
    """

    names: tuple[str, ...]
    resolve: Callable[[View], Outcome]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dialect:
    """How one project spells its settings.

    Attributes:
        title: the project's name.
        rules: all its settings.
        signs: names that only this project uses: a recipe with one of them, and with no name that only this
            project here has, is read as its own, with `defaults` and `implied` for what it leaves out.
        defaults: its defaults, in its own names, where the meaning of a run depends on them.
        implied: what its code does without a setting, in this project's names.
        dropped: settings of a recipe that its code does not look at, each with the reason.
        combinations: rules about several settings.
        flags: rules that differ on a command line.
    """

    title: str
    rules: Mapping[str, Rule]
    signs: frozenset[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    implied: Callable[[View], Outcome] = lambda view: NOTHING
    dropped: Callable[[View], Mapping[str, str]] = lambda view: {}
    combinations: tuple[Combination, ...] = ()
    flags: Mapping[str, Rule] = field(default_factory=dict)
