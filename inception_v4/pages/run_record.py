"""What a finished run left in its directory, read back: settings, curves, what it said of each picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inception_v4.settings.recipes import load_config
from inception_v4.settings.schema import Config

_PLACES = ("output_dir", "resume", "report")
"""Settings in which two runs may differ without being different runs."""


class NotARun(ValueError):
    """A directory that holds no run, or a damaged file of one; one line with the remedy."""


@dataclass(frozen=True)
class Answers:
    """What the run's best weights said of each validation picture; N pictures, in the order of the data.

    Attributes:
        classes: K names.
        paths: of the pictures.
        labels: int64 [N].
        ranked: the first classes, int64 [N, up to 5]; -1 where there are fewer.
        confidence: probability of the first class, float64 [N]; label_share: that of the label.
        weights_sha256: of the weights that were asked; None where the file does not say.
    """

    classes: tuple[str, ...]
    paths: list[str]
    labels: np.ndarray
    ranked: np.ndarray
    confidence: np.ndarray
    label_share: np.ndarray
    weights_sha256: str | None

    @property
    def predicted(self) -> np.ndarray:
        return self.ranked[:, 0]


@dataclass(frozen=True)
class RunRecord:
    """A run directory.

    Attributes:
        name: what to call it beside others.
        train, val: records of metrics.jsonl.
        answers: None where the run kept none.
    """

    folder: Path
    name: str
    config: Config
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    answers: Answers | None

    @property
    def weights(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def best(self) -> dict[str, Any] | None:
        """The validation that best.safetensors is of, with its averaged weights' figures where those won."""
        rows = [_better(row) for row in self.val]
        return max(rows, key=lambda row: row["top1"], default=None)


def read_run(folder: Path, name: str = "") -> RunRecord:
    """The record of a run directory.

    Raises:
        NotARun: it is not one, or a file in it is damaged.
    """
    config_file, metrics = folder / "config.yaml", folder / "metrics.jsonl"
    if not config_file.is_file() or not metrics.is_file():
        held = "there is no such folder" if not folder.is_dir() else "it has no config.yaml and metrics.jsonl"
        raise NotARun(f"{folder} is no run directory ({held}): give one that `inception-v4 train` has written")
    records = _records(metrics)
    answers = folder / "predictions.jsonl"
    return RunRecord(
        folder,
        name or folder.resolve().name,
        load_config(config_file)[0],
        [row for row in records if row.get("kind") == "train"],
        [row for row in records if row.get("kind") == "val"],
        read_answers(answers) if answers.is_file() else None,
    )


def read_runs(folders: list[Path]) -> list[RunRecord]:
    """The records of several directories, with names that tell them apart."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _records(path: Path) -> list[dict[str, Any]]:
    """Flat records, one a line; a last line cut short by a crash is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _better(row: dict[str, Any]) -> dict[str, Any]:
    """A validation's figures, of the averaged weights where these are better."""
    if row.get("ema_top1", -1.0) <= row["top1"]:
        return row | {"averaged": False}
    return row | {name: row[f"ema_{name}"] for name in ("loss", "top1", "top5")} | {"averaged": True}


def read_answers(path: Path) -> Answers:
    """The content of a predictions.jsonl.

    Raises:
        NotARun: it is damaged.
    """
    try:
        with path.open(encoding="utf-8") as file:
            head, *rows = [json.loads(line) for line in file]
        labels = np.array([row["label"] for row in rows], dtype=np.int64)
        tops = [row["top"] for row in rows]
        ranked = np.full((len(rows), 5), -1, dtype=np.int64)
        for line, top in zip(ranked, tops, strict=True):
            line[: len(top)] = [k for k, _ in top]
        count = max(int(labels.max()), int(ranked.max())) + 1
        classes = tuple(map(str, head["classes"])) if head["classes"] else tuple(map(str, range(count)))
        if count > len(classes):
            raise ValueError(f"class {count - 1} of {len(classes)}")
        return Answers(
            classes, [str(row["path"]) for row in rows], labels, ranked, np.array([top[0][1] for top in tops], float),
            np.array([row["prob_label"] for row in rows], float), head.get("weights_sha256"),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise NotARun(f"{path} is damaged ({error}): remove it, or write it again by validating") from error


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
