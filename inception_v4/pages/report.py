"""A run's report, or that of several: one page without scripts, that needs no network."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from inception_v4 import __version__
from inception_v4.accelerator import environment_report
from inception_v4.console import progress
from inception_v4.files import atomic_write, sha256_of
from inception_v4.inference.metrics import class_scores, reliability
from inception_v4.inference.predictions import Predictions
from inception_v4.pages.charts import (
    MOST_CLASSES,
    Chart,
    class_counts_chart,
    confusion_chart,
    curves,
    reliability_chart,
)
from inception_v4.pages.extras import optional
from inception_v4.pages.inspection import DataReport, inspect_data
from inception_v4.pages.run_record import RunRecord, read_runs, settings_that_differ
from inception_v4.pages.thumbnails import Thumbnails, confident_mistakes, unsure_hits

_PICTURES = 12  # of a gallery
_COLUMNS = ("top1", "top5", "loss")
_FIGURES = {"top1": "top-1", "top5": "top-5", "loss": "loss", "macro_f1": "macro F1", "map": "mAP"}
_GAP = 1.0  # percent between confidence and accuracy that is not worth a word


def write_report(
    folders: Sequence[Path | str], output: Path | None = None, *, device: str = "auto", look_through: bool = True
) -> tuple[Path, list[Path]]:
    """Write the page, and its charts as PNG into a folder beside it.

    Args:
        folders: run directories, or their addresses; their curves are compared.
        output: the page; default `report.html` in the first directory, which has none at an address.
        device: what computes the heat on the thumbnails.
        look_through: whether the data is searched for broken and repeated pictures.
    Returns:
        The page and the PNG files.
    Raises:
        NotARun: a directory holds no run.
        MissingExtra: jinja2 is not installed.
    """
    jinja2 = optional("jinja2", "report")
    runs = read_runs(folders)
    output = output or runs[0].folder / "report.html"
    with progress("writing the report", 3) as count_on:
        config = runs[0].config
        data, seed, several = config.data, config.run.seed, config.training.several
        found = (
            inspect_data(data, seed, several=several)
            if look_through
            else DataReport(remark="The data was not looked through.")
        )
        count_on()
        lines = curves(runs)
        class_chart = class_counts_chart(found.counts, found.classes) if found.counts else None
        details = [_details(run, device, alone=len(runs) == 1) for run in runs]
        count_on()
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        template = environment.from_string(files("inception_v4.pages").joinpath("report.html.j2").read_text("utf-8"))
        text = template.render(
            title=f"Report of {', '.join(run.name for run in runs)}", version=__version__,
            written=time.strftime("%Y-%m-%d %H:%M"), summary=[_summary(run) for run in runs],
            summary_rows=[_summary_row(run) for run in runs], curves=lines, settings=settings_that_differ(runs),
            details=details, data=found, class_chart=class_chart, commands=[_command(run) for run in runs],
            environment=_environment(),
        )  # fmt: skip
        count_on()
    with atomic_write(output) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files
    charts = [*lines, *([class_chart] if class_chart else []), *(c for d in details for c in d.get("charts", []))]
    return output, [_write_png(chart, output.with_name(f"{output.stem}-charts")) for chart in charts]


def _write_png(chart: Chart, folder: Path) -> Path:
    path = folder / f"{chart.name}.png"
    with atomic_write(path) as temporary:
        temporary.write_bytes(chart.png)
    return path


def _summary(run: RunRecord) -> dict[str, Any]:
    best, figures = run.best, []
    if best is not None:
        figures += [(_figure(best, name), _FIGURES[name]) for name in dict.fromkeys((run.monitor, *_COLUMNS))]
        figures[0] = figures[0][0], f"best {figures[0][1]}" + (", averaged weights" if best["averaged"] else "")
        figures.append((best["epoch"] + 1, "its epoch"))
    if run.train:
        figures.append((run.train[-1]["step"], "steps"))
        speeds = [row["images_per_second"] for row in run.train if row.get("images_per_second")]
        figures += [(f"{speeds[-1]:.0f}", "images/s")] if speeds else []
    return {"name": run.name, "figures": figures}


def _summary_row(run: RunRecord) -> tuple[Any, ...]:
    best, steps = run.best, run.train[-1]["step"] if run.train else 0
    if best is None:
        return run.name, "", "", "", "", "", steps
    chosen = _FIGURES[run.monitor] + ("" if run.monitor in _COLUMNS else f" {_figure(best, run.monitor)}")
    return run.name, *(_figure(best, name) for name in _COLUMNS), chosen, best["epoch"] + 1, steps


def _figure(best: dict[str, Any], name: str) -> str:
    value = best.get(name)
    return _number(value, 4) if name == "loss" or value is None else f"{value:.2f} %"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _details(run: RunRecord, device: str, *, alone: bool) -> dict[str, Any]:
    """What stands in the page about the answers of a run."""
    if run.answers is None:
        place = shlex.quote(run.origin)
        return {
            "name": run.name,
            "missing": "This run kept no predictions.jsonl, so nothing is known of single pictures. To get it:",
            "remedy": f"inception-v4 validate --ckpt-path {place} --save-predictions {place}/predictions.jsonl",
        }
    answers, suffix = run.answers, "" if alone else f"-{run.name.replace('/', '_')}"
    found, several = reliability(answers), answers.several
    # Of a picture's several classes the rows keep five answers, which no class can be counted by.
    scores = [] if several else sorted(class_scores(answers, answers.names), key=lambda row: row.f1)
    matrix = [] if several else [confusion_chart(answers, f"confusion{suffix}")]
    thumbnails = Thumbnails(run, device)
    return {
        "name": run.name, "missing": "", "stale": staleness(run), "pictures": len(answers.pictures),
        "top1": answers.top1, "top5": answers.top5, "ece": found.ece, "sureness": _sureness(answers),
        "charts": [*matrix, reliability_chart(found, f"calibration{suffix}")],
        "by_class": several and f"inception-v4 validate --per-class --ckpt-path {shlex.quote(run.origin)}",
        "shown_classes": min(len(scores), MOST_CLASSES), "hidden_classes": max(0, len(scores) - MOST_CLASSES),
        "classes": [
            (row.name, row.pictures, *(_number(value, 1) for value in (row.precision, row.recall, row.f1)))
            for row in scores
        ],
        "mistakes": thumbnails.of(confident_mistakes(answers, _PICTURES)),
        "unsure": thumbnails.of(unsure_hits(answers, _PICTURES)),
    }  # fmt: skip


def staleness(run: RunRecord) -> str:
    """A warning where the answers are not those of the weights that lie beside them."""
    assert run.answers is not None
    known = run.answers.weights_sha256
    if known is None or not run.weights.is_file() or sha256_of(run.weights) == known:
        return ""
    return "These answers are of other weights than best.safetensors: validate again, with --save-predictions."


def _sureness(answers: Predictions) -> str:
    top1, mean = answers.top1, 100 * float(answers.probabilities[:, 0].mean())
    if abs(mean - top1) < _GAP:
        return "on the whole it is as sure as it may be"
    return f"it is {mean:.1f} % sure on average, {'too sure' if mean > top1 else 'less sure than it could be'}"


def _command(run: RunRecord) -> str:
    folder = run.origin.rstrip("/")
    return f"inception-v4 train -c {shlex.quote(folder + '/config.yaml')} --output-dir {shlex.quote(folder + '-again')}"


def _environment() -> list[tuple[str, str]]:
    found = environment_report()
    devices = [line for row in found["devices"].values() if row["available"] for line in row["devices"]]
    return [*found["versions"].items(), ("devices", ", ".join(devices))]
