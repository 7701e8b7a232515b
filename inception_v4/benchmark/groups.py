"""A benchmark of several groups, which can be stopped after any of them and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from inception_v4.accelerator import select
from inception_v4.benchmark.conditions import MEASURED, environment, matrix_rates
from inception_v4.benchmark.measure import Group, Row, Timing, measure


@dataclass(frozen=True)
class Earlier:
    """The figures of an interrupted run.

    Attributes:
        file: where they come from.
        environment: as `environment` gives it, and `matrix_tflops`.
        settings: of the timing, as `Timing` has them.
        rows: of whole groups.
    """

    file: Path
    environment: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row]

    def rows_of(self, group: Group) -> list[Row]:
        """The figures of a group; none where it was not finished."""
        return [row for row in self.rows if _place(row) == _place(group)]

    def check(self, state: Mapping[str, Any], settings: Mapping[str, Any], groups: Sequence[Group]) -> None:
        """Raises ValueError where the run was made on another machine, by other programs or with other options."""
        differing = [*_differences(self.environment, state, MEASURED), *_differences(self.settings, settings)]
        wanted = {_place(group): group for group in groups}
        for place in dict.fromkeys(map(_place, self.rows)):
            found = [(row.form, row.precision) for row in self.rows if _place(row) == place]
            title = "{}, batch {}, {} px".format(*place)
            if place not in wanted:
                differing.append(f"{title} is measured there alone")
            elif found != [(entry.form, entry.precision) for entry in wanted[place].entries]:
                differing.append(f"{title} has other contestants there")
        if differing:
            raise ValueError(
                f"{self.file} is of another run: {'; '.join(differing)}. Measure anew, without --resume-from, or under "
                "the same conditions with the same options"
            )


def _place(part: Group | Row) -> tuple[str, int, int]:
    return part.task, part.batch_size, part.image_size


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], aside: Sequence[str] = ()) -> list[str]:
    return [
        f"{name} is {there.get(name)} there and {here.get(name)} here"
        for name in dict.fromkeys([*there, *here])
        if name not in aside and there.get(name) != here.get(name)
    ]


def read_earlier(file: Path) -> Earlier:
    """The figures that `benchmark --json` has written, of all groups or of those before it was interrupted.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        parts = {name: content[name] for name in ("environment", "settings", "rows")}
        return TypeAdapter(Earlier).validate_python({"file": file, **parts})
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--resume-from {file} has no figures of a suite: give a file that `benchmark --json FILE` of this version "
            "has written"
        ) from error


def run_groups(
    groups: Sequence[Group],
    device: str,
    *,
    options: Timing,
    earlier: Earlier | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[Group, dict[str, Any]]]:
    """Measure every group; gives each with all there is so far as plain values: `environment`, `settings` and `rows`.

    Args:
        earlier: figures of an interrupted run, whose groups are taken over, those of later groups from the start.

    Raises:
        ValueError: the earlier run was another one.
    """
    accelerator = select(device)
    accelerator.activate()
    state, settings = environment(accelerator), options._asdict()
    if earlier:
        earlier.check(state, settings, groups)
        loads = [load for load in (earlier.environment.get("load"), state["load"]) if load is not None]
        state = earlier.environment | {"load": max(loads, default=None)}
    else:
        state["matrix_tflops"] = matrix_rates(accelerator)
    finished = {group: rows for group in groups if earlier and (rows := earlier.rows_of(group))}
    for number, group in enumerate(groups, start=1):
        if earlier and group in finished:
            say(f"{group.title}: taken over from {earlier.file}")
        else:
            count = f", group {number} of {len(groups)}" if len(groups) > 1 else ""
            say(f"{group.title}: {len(group.entries)} contestants{count}")
            finished[group] = measure(group, accelerator, options, say)
        plain = [asdict(row) for each in groups for row in finished.get(each, [])]
        yield group, {"environment": state, "settings": settings, "rows": plain}
