"""What every section of the settings is made of: its base, and the forms in which values arrive."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator


def split_list(value: Any) -> Any:
    """`0.2,1`, `(0.2, 1)` and `[0.2, 1]` as they arrive from a command line."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("()[] ").split(",") if part.strip()]
    return [value] if isinstance(value, (int, float)) else value


def _scalar(word: str) -> bool | int | float | str:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _keywords(value: Any) -> Any:
    """`ns_steps=3,nesterov=true` (commas or blanks) as a mapping."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in re.split(r"[,\s]+", value.strip(", ")) if part]
    if lone := [name for name, equals, word in pairs if not (name and equals and word)]:
        raise ValueError(f"give NAME=VALUE, several with commas between them, in place of {lone[0]!r}")
    return {name: _scalar(word) for name, _, word in pairs}


NONE_WORDS = ("", "none", "null", "~")


def _none_words(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in NONE_WORDS else value


def _strengths(value: Any) -> Any:
    """One number alone as it is, several as a list, nothing as 0."""
    values = split_list(0.0 if value is None else value)
    return values[0] if isinstance(values, (list, tuple)) and len(values) == 1 else values


def _check_strengths(value: float | tuple[float, ...]) -> float | tuple[float, ...]:
    strengths = (value,) if isinstance(value, float) else value
    if not 1 <= len(strengths) <= 4:
        raise ValueError(f"has {len(strengths)} numbers, give one to four")
    if min(strengths) < 0:
        raise ValueError("must not be negative")
    if len(strengths) == 4 and strengths[3] > 0.5:
        raise ValueError(f"hue {strengths[3]:g} is more than 0.5, which is every hue there is")
    return value


_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def _seconds(value: Any) -> Any:
    """`8h`, `90m`, `1h30m` and `45s` as seconds; a number is seconds."""
    if isinstance(value, str) and re.fullmatch(r"(\d+(\.\d+)?[dhms])+", value.strip()):
        return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([dhms])", value))
    return value


Seconds = Annotated[float, BeforeValidator(_seconds)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[float, float], BeforeValidator(split_list)]
PerChannel = Annotated[tuple[float, ...], BeforeValidator(split_list)]
Keywords = Annotated[dict[str, bool | int | float | str], BeforeValidator(_keywords)]
Strengths = Annotated[float | tuple[float, ...], BeforeValidator(_strengths), AfterValidator(_check_strengths)]


class Section(BaseModel):
    """Unknown keys are errors; the words none, null, ~ and '' mean None wherever None is allowed."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return _none_words(value)
