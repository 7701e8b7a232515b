"""Charts of a report: SVG that takes the page's own colour for text and lines, and the same as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from inception_v4.inference.metrics import BINS, Reliability, confusion
from inception_v4.inference.predictions import Predictions
from inception_v4.pages.run_record import RunRecord

_INK = "#010203"  # stands for the page's text colour
_SERIES = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#14b8a6", "#ec4899", "#84cc16")
"""Seen on white and on black."""
_NUMBERED = 12  # classes: of more, the counts would not be legible
_WILD = 3
"""Times the highest training loss, beyond which a validation's is left out of the picture."""
MOST_CLASSES = 30
"""Of a confusion matrix."""
_STYLE: dict[Any, Any] = {
    "text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "grid.color": _INK, "font.size": 9, "axes.titlesize": 9, "legend.framealpha": 0, "legend.fontsize": 8,
    "svg.fonttype": "none", "axes.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False,
    "text.parse_math": False,  # a class may be called $5
}  # fmt: skip
_WIDE, _SQUARE = (4.4, 3.0), (4.4, 4.2)


class Chart(NamedTuple):
    """A chart as it stands in the page, and as a file's content."""

    name: str
    title: str
    svg: str
    png: bytes


def draw_chart(name: str, title: str, draw: Callable[[Any], None], size: tuple[float, float] = _WIDE) -> Chart:
    """`draw` on new axes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.subplots())
        text, picture = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(picture, format="png", dpi=150, facecolor="white")
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    opening, rest = svg.split(">", 1)
    svg = re.sub(r' (?:width|height)="[^"]*"', "", opening) + ">" + rest  # as wide as the page lets it be
    return Chart(name, title, svg, picture.getvalue())


def curves(runs: Sequence[RunRecord]) -> list[Chart]:
    """Loss, accuracy and learning rate of the runs, over their epochs."""
    colours = [(run, _SERIES[i % len(_SERIES)]) for i, run in enumerate(runs)]
    alone = len(runs) == 1
    several = all(run.val and "map" in run.val[0] for run in runs)
    figure, called = ("map", "mAP") if several else ("top1", "top-1")

    def loss(axes: Any) -> None:
        for run, colour in colours:
            label = "training" if alone else run.name
            axes.plot(_column(run.train, "progress"), _column(run.train, "loss"), color=colour, lw=1, label=label)
            other = _SERIES[1] if alone else colour
            title = "validation" if alone else None
            axes.plot(
                _column(run.val, "progress"), _column(run.val, "loss"), "o--", color=other, ms=3, lw=1, label=title
            )
        seen = np.concatenate([_column(run.train, "loss") for run in runs])
        if np.isfinite(seen).any():  # a wild first validation must not flatten everything else
            highest = float(np.nanmax(seen))
            later = np.concatenate([_column(run.val[1:], "loss") for run in runs])
            axes.set_ylim(0, 1.15 * float(np.nanmax([highest, *later.clip(max=_WILD * highest)])))
        _label(axes, "loss" if alone else "loss (validation dashed)")

    def accuracy(axes: Any) -> None:
        for run, colour in colours:
            for key, style, title in (
                (figure, "o-", called),
                (f"ema_{figure}", "s:", f"{called}, averaged weights"),
                (f"swa_{figure}", "D", f"{called}, mean of the last epochs"),
            ):
                values = _column(run.val, key)
                if np.isfinite(values).any():
                    label = title if alone else run.name if key == figure else None
                    axes.plot(_column(run.val, "progress"), values, style, color=colour, ms=3, lw=1, label=label)
                    colour = _SERIES[1 + (key == f"ema_{figure}")] if alone else colour
        axes.set_ylim(0, 102)
        _label(axes, f"validation {called}, %", legend=len(axes.get_legend_handles_labels()[0]) > 1)

    def rate(axes: Any) -> None:
        for run, colour in colours:
            axes.plot(_column(run.train, "progress"), _column(run.train, "lr"), color=colour, lw=1, label=run.name)
        axes.set_ylim(bottom=0)
        _label(axes, "learning rate", legend=not alone)

    return [
        draw_chart("loss", "Loss", loss),
        draw_chart("accuracy", "Accuracy", accuracy),
        draw_chart("learning-rate", "Learning rate", rate),
    ]


def _label(axes: Any, title: str, *, legend: bool = True) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel(title)
    axes.grid(alpha=0.15)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")


def _column(records: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """Null and absent values are gaps."""
    return np.array([float("nan") if row.get(key) is None else row[key] for row in records], dtype=float)


def confusion_chart(answers: Predictions, name: str = "confusion") -> Chart:
    """Labels in rows, answers in columns, each row's share as blue; of many classes those that are mixed up most."""
    from matplotlib.colors import LinearSegmentedColormap

    counts = confusion(answers).numpy()
    chosen = _most_confused(counts, MOST_CLASSES)
    part = counts[np.ix_(chosen, chosen)]
    shares = part / np.maximum(counts[chosen].sum(1, keepdims=True), 1)
    names = [_short(answers.names[k]) for k in chosen]
    blue = LinearSegmentedColormap.from_list("share", [(0.23, 0.51, 0.96, 0.0), (0.23, 0.51, 0.96, 0.9)])

    def draw(axes: Any) -> None:
        axes.imshow(shares, cmap=blue, vmin=0, vmax=1, interpolation="nearest")
        size = 8 if len(names) <= _NUMBERED else 5
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set_xlabel("answer")
        axes.set_ylabel("label")
        if len(names) <= _NUMBERED:
            for (i, j), count in np.ndenumerate(part):
                if count:
                    axes.text(j, i, str(count), ha="center", va="center", fontsize=7)

    return draw_chart(name, "Confusion matrix", draw, _SQUARE)


def _most_confused(counts: np.ndarray, limit: int) -> list[int]:
    """At most `limit` classes, those that take part in most mistakes, in their own order."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    involved = wrong.sum(0) + wrong.sum(1)
    present = np.flatnonzero(counts.sum(0) + counts.sum(1))
    order = present[np.argsort(-involved[present], kind="stable")]
    return sorted(order[:limit].tolist())


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


def reliability_chart(found: Reliability, name: str = "calibration") -> Chart:
    """Accuracy over confidence; on the diagonal the network is as sure as it may be."""

    def draw(axes: Any) -> None:
        middles = (np.arange(BINS) + 0.5) / BINS * 100
        shares = 100 * found.counts.numpy() / int(found.counts.sum())
        axes.bar(
            middles, 100 * found.accuracy.numpy(), width=100 / BINS * 0.9, color=_SERIES[0], alpha=0.8, label="right"
        )
        axes.plot([0, 100], [0, 100], "--", color=_INK, lw=1, label="perfectly calibrated")
        axes.step(
            np.linspace(0, 100, BINS + 1), np.append(shares, shares[-1]), where="post",
            color=_SERIES[1], lw=1, label="share of the pictures",
        )  # fmt: skip
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("%")
        axes.figure.legend(loc="outside lower center", ncols=3)

    return draw_chart(name, f"Calibration: ECE {found.ece:.2f} %", draw, _SQUARE)


def class_counts_chart(counts: dict[str, list[int]], classes: Sequence[str]) -> Chart:
    """Pictures per class and split, the commonest class first."""
    order = np.argsort(-np.array(counts["train"]), kind="stable")

    def draw(axes: Any) -> None:
        width = 0.8 / len(counts)
        for place, (split, values) in enumerate(counts.items()):
            left = np.arange(len(order)) + (place - (len(counts) - 1) / 2) * width
            axes.bar(left, np.array(values)[order], width, color=_SERIES[place], label=split)
        if len(order) <= MOST_CLASSES:
            axes.set_xticks(range(len(order)), [_short(classes[k]) for k in order], rotation=90, fontsize=7)
        else:
            axes.set_xlabel(f"{len(order)} classes, the commonest first")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("pictures")
        axes.figure.legend(loc="outside upper right", ncols=2)

    return draw_chart("classes", "Pictures per class", draw)
