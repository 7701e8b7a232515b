"""What a run shows and leaves behind: console, metrics.jsonl, TensorBoard. Only the main process has one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from inception_v4.console import console, progress_bar, say

METRICS = "metrics.jsonl"


class RunLog:
    """Writes a run's records. A record is a flat dict with `kind` ("train" or "val"), `step` and `epoch`."""

    def __init__(self, folder: Path, *, total_steps: int, tensorboard: bool = True, resumed_at: int = 0) -> None:
        self.folder, self.total_steps = folder, total_steps
        self._forget_after(resumed_at)
        self._file = open(folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115 closed by close()
        self._board = _open_board(folder, resumed_at) if tensorboard else None
        self._progress = progress_bar() if console.is_terminal else None
        if self._progress:
            self._progress.start()
            self._task = self._progress.add_task("", total=total_steps, completed=resumed_at)

    def say(self, message: str) -> None:
        say(message)

    def train(self, record: dict[str, Any]) -> None:
        """A training record: step, epoch, loss, lr, images_per_second, ..."""
        self._write({"kind": "train", **record})
        speed = record.get("images_per_second")
        text = (
            f"epoch {record['epoch'] + 1} step {record['step']}/{self.total_steps}  loss {record['loss']:.4f}  "
            f"lr {record['lr']:.3g}" + (f"  {speed:.1f} images/s" if speed else "")
        )
        if record.get("skipped_steps"):
            text += f"  {record['skipped_steps']} steps skipped (gradient overflow)"
        if self._progress:
            self._progress.update(self._task, completed=record["step"], description=text)
        else:
            self.say(text)

    def validation(self, record: dict[str, Any]) -> None:
        """A validation record: loss, top1, top5, samples; the same with `ema_` for the averaged weights."""
        self._write({"kind": "val", **record})
        text = f"epoch {record['epoch'] + 1} validation"
        for prefix, label in (("", ""), ("ema_", " | average")):
            if f"{prefix}top1" in record:
                text += (
                    f"{label}  loss {record[prefix + 'loss']:.4f}  top-1 {record[prefix + 'top1']:.2f} %  "
                    f"top-5 {record[prefix + 'top5']:.2f} %"
                )
        self.say(text + f"  ({record['samples']} pictures)")

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
        self._file.close()
        if self._board:
            self._board.close()

    def _write(self, record: dict[str, Any]) -> None:
        # JSON has no NaN: a loss that is not a number is null.
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        if self._board:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def _forget_after(self, step: int) -> None:
        """Records of steps that a resumed run will do again."""
        path = self.folder / METRICS
        if path.exists():
            kept = [r for r in read_records(path) if r["step"] <= step]
            path.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")


class SilentLog:
    """The off state: the other processes of a run."""

    def say(self, message: str) -> None: ...

    def train(self, record: dict[str, Any]) -> None: ...

    def validation(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl. A last line cut short by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _open_board(folder: Path, resumed_at: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at or None)
