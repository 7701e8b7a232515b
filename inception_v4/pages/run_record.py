"""What a finished run left in its directory, read back: settings, curves, what it said of each picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inception_v4.inference.predictions import PREDICTIONS, Predictions, read_predictions
from inception_v4.settings.addresses import is_address
from inception_v4.settings.recipes import load_config
from inception_v4.settings.schema import Config
from inception_v4.storage.fetch import local_copy
from inception_v4.training.runlog import read_records
from inception_v4.training.stopping import EarlyEnd

_PLACES = ("output_dir", "resume", "report")
"""Settings in which two runs may differ without being different runs."""


class NotARun(ValueError):
    """A directory that holds no run; one line with the remedy."""


@dataclass(frozen=True)
class RunRecord:
    """A run directory.

    Attributes:
        folder: where its files are; a copy where the run is at an address.
        origin: the directory or address that was named.
        name: what to call it beside others.
        train, val: records of metrics.jsonl.
        answers: what its best weights said of each validation picture; None where the run kept none.
    """

    folder: Path
    origin: str
    name: str
    config: Config
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    answers: Predictions | None

    @property
    def weights(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def best(self) -> dict[str, Any] | None:
        """The validation that best.safetensors is of: of the network, or of its average where that was better."""
        rows = [figures for row in self.val for figures in _of_each_network(row)]
        return max(rows, key=EarlyEnd.of(self.config.schedule).score, default=None)

    @property
    def monitor(self) -> str:
        """The figure by which those weights are the best, as a record calls it."""
        return EarlyEnd.of(self.config.schedule).figure


def read_run(run: Path | str, name: str = "") -> RunRecord:
    """The record of a run directory, or of one behind an address.

    Raises:
        NotARun: it is not one.
        ValueError: its settings or its predictions are damaged.
    """
    origin, folder = str(run), Path(local_copy(str(run), wanted=_is_of_the_record))
    config_file, metrics = folder / "config.yaml", folder / "metrics.jsonl"
    if not config_file.is_file() or not metrics.is_file():
        held = "there is no such folder" if not folder.is_dir() else "it has no config.yaml and metrics.jsonl"
        raise NotARun(f"{origin} is no run directory ({held}): give one that `inception-v4 train` has written")
    records = read_records(metrics)
    answers = folder / PREDICTIONS
    return RunRecord(
        folder,
        origin,
        name or _name(run),
        load_config(config_file)[0],
        [row for row in records if row["kind"] == "train"],
        [row for row in records if row["kind"] == "val"],
        read_predictions(answers) if answers.is_file() else None,
    )


def read_runs(runs: Sequence[Path | str]) -> list[RunRecord]:
    """The records of several directories or addresses, with names that tell them apart."""
    names = [_name(run) for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    return [read_run(run, name) for run, name in zip(runs, names, strict=True)]


def _name(run: Path | str) -> str:
    return str(run).rstrip("/").rpartition("/")[2] if is_address(str(run)) else Path(run).resolve().name


def _is_of_the_record(name: str) -> bool:
    """Of a run behind an address: no checkpoints, and one set of weights."""
    return name == "best.safetensors" or ("/" not in name and name.endswith((".yaml", ".json", ".jsonl")))


def _of_each_network(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A validation's figures by their plain names: of the network, and of each average of its weights."""
    for prefix in ("", "ema_", "swa_"):
        if f"{prefix}top1" in row:
            own = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
            yield row | own | {"averaged": bool(prefix)}


def settings_that_differ(runs: list[RunRecord]) -> list[tuple[str, list[str]]]:
    """Rows (setting, its value in each run) of what differs; of one run alone, where it differs from the defaults."""
    flats = [run.config.flat() for run in runs]
    others = flats if len(flats) > 1 else [*flats, Config().flat()]
    names = [name for name in flats[0] if name not in _PLACES and any(f[name] != others[0][name] for f in others)]
    return [(name, [_shown(flat[name]) for flat in flats]) for name in names]


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
