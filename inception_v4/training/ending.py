"""What is said where a run ends: how it went, and how to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_v4.training.checkpoint import list_checkpoints
from inception_v4.training.folder import RunFolder


def closing_lines(
    folder: RunFolder, best: Mapping[str, Any], *, figure: str, curves: Path | None, skipped: Sequence[str]
) -> list[str]:
    """Of a run whose best validation, by `figure`, was `best`."""
    by = "" if figure == "top1" else f" (chosen by {figure} {best[figure]:.4g})"
    averaged = " (averaged weights)" if best["averaged"] else ""
    lines = [
        f"best top-1 {best['top1']:.2f} %, top-5 {best['top5']:.2f} % after epoch {best['epoch'] + 1}{averaged}{by}"
    ]
    if skipped:
        lines.append(f"{len(skipped)} unreadable pictures were skipped: {', '.join(skipped[:5])}")
    return [
        *lines,
        f"weights {folder.best}" + (f", curves {curves}" if curves else ""),
        f"next: inception-v4 predict PICTURE --ckpt-path {folder.best}",
        f"or see it all on one page: inception-v4 report {folder.path}",
    ]


def last_whole(folder: RunFolder) -> str:
    """What is left to go on from, where a checkpoint could not be written."""
    whole = list_checkpoints(folder.checkpoints)
    if not whole:
        return "there is no earlier checkpoint"
    return f"{whole[-1].name} is whole: --resume auto --output-dir {folder.path} goes on from it"
