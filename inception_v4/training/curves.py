"""The picture of a run: loss, accuracy and learning rate over its epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inception_v4.files import atomic_write
from inception_v4.training.runlog import METRICS, read_records


def draw_curves(folder: Path, *, title: str = "") -> Path | None:
    """Write `curves.png` of a run directory from its metrics.jsonl; None when there is nothing to draw yet."""
    records = read_records(folder / METRICS)
    train = [r for r in records if r["kind"] == "train"]
    val = [r for r in records if r["kind"] == "val"]
    if not train:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Figure and canvas directly: pyplot would keep global state and might look for a display.
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    _draw_loss(left, train, val)
    _draw_accuracy(right, val)
    path = folder / "curves.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path


def _draw_loss(axes: Any, train: list[dict[str, Any]], val: list[dict[str, Any]]) -> None:
    epochs = [r["progress"] for r in train]
    axes.plot(epochs, [r["loss"] for r in train], color="tab:blue", linewidth=1, label="training loss")
    if val:
        axes.plot(
            [r["progress"] for r in val], [r["loss"] for r in val], "o-", color="tab:orange", label="validation loss"
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    # A wild validation loss of the first epochs must not flatten everything else.
    axes.set_ylim(0, 1.15 * max(r["loss"] for r in train if r["loss"] is not None))
    axes.grid(alpha=0.3)
    rate = axes.twinx()
    rate.plot(epochs, [r["lr"] for r in train], color="tab:gray", linewidth=1, linestyle=":", label="learning rate")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    lines = [*axes.get_lines(), *rate.get_lines()]
    rate.legend(lines, [line.get_label() for line in lines], loc="best", framealpha=0.9)


def _draw_accuracy(axes: Any, val: list[dict[str, Any]]) -> None:
    epochs = [r["progress"] for r in val]
    for key, label, style in (
        ("top1", "top-1", "o-"),
        ("top5", "top-5", "o--"),
        ("ema_top1", "top-1, averaged weights", "s-"),
        ("swa_top1", "top-1, mean of the last epochs", "D"),
    ):
        if any(key in r for r in val):
            axes.plot(epochs, _numbers(val, key), style, label=label, markersize=4)
    best = max((max(r["top1"], r.get("ema_top1", 0.0), r.get("swa_top1", 0.0)) for r in val), default=None)
    axes.set_title(f"validation, best top-1 {best:.2f} %" if best is not None else "no validation yet")
    axes.set_xlabel("epoch")
    axes.set_ylabel("percent of pictures")
    axes.set_ylim(0, 102)
    axes.set_xlim(left=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if val:
        axes.legend(loc="lower right")


def _numbers(records: list[dict[str, Any]], key: str) -> list[float]:
    """A column; null is a gap in the curve."""
    return [float("nan") if r.get(key) is None else r[key] for r in records]
