"""What a run shows and leaves behind: console, metrics.jsonl, TensorBoard, trackers. Only the main process has one."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from io import SEEK_END, FileIO
from pathlib import Path
from typing import Any

from inception_v4.console import console, progress_bar, say
from inception_v4.files import DiskFull, atomic_write, parse_json
from inception_v4.settings.schema import Config
from inception_v4.training.mlflow_log import MlflowTracker
from inception_v4.training.trackers import Tracker, TrackerMissing, TrackerThread, outcome_now
from inception_v4.training.wandb_log import WandbTracker, require_login

METRICS = "metrics.jsonl"


class RunLog:
    """Writes a run's records. A record is a flat dict with `kind` ("train" or "val"), `step` and `epoch`.

    Args:
        lossy: records that the disk does not take are lost, and said once; else they are an error.
        trackers: other programs that get the records too.
    """

    _told = False

    def __init__(self, folder: Path, *, total_steps: int, tensorboard: bool = True, resumed_at: int = 0,
                 lossy: bool = False, trackers: Sequence[TrackerThread] = ()) -> None:  # fmt: skip
        self.folder, self.total_steps = folder, total_steps
        self._lossy, self._trackers = lossy, trackers
        self._forget_after(resumed_at)
        self._file = open(folder / METRICS, "ab", buffering=0)  # noqa: SIM115 closed by close()
        self._board = _open_board(folder, resumed_at) if tensorboard else None
        self._progress = progress_bar(long_text=True) if console.is_terminal else None
        if self._progress:
            self._progress.start()
            self._task = self._progress.add_task("", total=total_steps, completed=resumed_at)

    def say(self, message: str) -> None:
        say(message)

    def train(self, record: dict[str, Any]) -> None:
        """A training record: step, epoch, loss, lr, images_per_second, data_wait, ..."""
        self._write({"kind": "train", **record})
        # The bar shows the step by itself, and the lines of a terminal are short.
        step = "" if self._progress else f" step {record['step']}/{self.total_steps}"
        text = f"epoch {record['epoch'] + 1}{step}  {training_figures(record)}"
        if self._progress:
            self._progress.update(self._task, completed=record["step"], description=text)
        else:
            self.say(text)

    def step(self, number: int) -> None:
        """A step is done: the bar goes on, and its estimate of the end with it."""
        if self._progress:
            self._progress.update(self._task, completed=number)

    def validation(self, record: dict[str, Any]) -> None:
        """A validation record: loss, top1, top5, samples; with `ema_` and `swa_` the same of averages of weights."""
        self._write({"kind": "val", **record})
        text = f"epoch {record['epoch'] + 1} validation"
        for prefix, label in (("", ""), ("ema_", " | average"), ("swa_", " | mean of the last epochs")):
            if f"{prefix}top1" in record:
                text += (
                    f"{label}  loss {record[prefix + 'loss']:.4f}  top-1 {record[prefix + 'top1']:.2f} %  "
                    f"top-5 {record[prefix + 'top5']:.2f} %"
                    + (f"  mAP {record[prefix + 'map']:.2f} %" if f"{prefix}map" in record else "")
                )
        self.say(text + f"  ({record['samples']} pictures)")

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
        outcome = outcome_now()
        for tracker in self._trackers:
            tracker.close(outcome)
        self._file.close()
        board, self._board = self._board, None
        if board:
            try:
                board.close()
            except OSError as error:
                self._refused(error)

    def _write(self, record: dict[str, Any]) -> None:
        # JSON has no NaN: a loss that is not a number is null.
        for tracker in self._trackers:
            tracker.write(record)
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        try:
            append_whole(self._file, (json.dumps(clean) + "\n").encode())
            if self._board:
                for name, value in record.items():
                    if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                        self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])
        except OSError as error:
            self._refused(error)

    def _refused(self, error: OSError) -> None:
        """The disk took no record: an error, or said once where records may be lost."""
        # TensorBoard's writer is of no use after its first error.
        self._board = None
        line = f"{self.folder / METRICS}: {error.strerror or error}"
        if not self._lossy:
            raise DiskFull(f"{line}: make room and go on with --resume auto --output-dir {self.folder}") from error
        if not self._told:
            self.say(f"{line}: records are lost until there is room")
        self._told = True

    def _forget_after(self, step: int) -> None:
        """Records of steps that a resumed run will do again."""
        path = self.folder / METRICS
        if path.exists():
            kept = [r for r in read_records(path) if r["step"] <= step]
            with atomic_write(path) as temporary:
                temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")


def training_figures(record: dict[str, Any]) -> str:
    """Loss, learning rate, speed and the share of the time that went by waiting for data, in words."""
    text = f"loss {record['loss']:.4f}  lr {record['lr']:.3g}"
    if speed := record.get("images_per_second"):
        text += f"  {speed:.1f} images/s"
    if (share := record.get("data_wait")) is not None:
        text += f"  data {100 * share:.0f} %"
    if record.get("skipped_steps"):
        text += f"  {record['skipped_steps']} steps skipped (gradient overflow)"
    return text


def append_whole(file: FileIO, line: bytes) -> None:
    """Append a line to an unbuffered file as a whole or not at all."""
    start = file.seek(0, SEEK_END)
    try:
        written = 0
        while written < len(line):
            written += file.write(line[written:])
    except OSError:
        file.truncate(start)
        raise


def require_tracker(name: str | None) -> None:
    """Raises TrackerMissing where the program that `--logger` names is not installed, or wants a login."""
    if name and importlib.util.find_spec(name) is None:
        raise TrackerMissing(f"--logger {name} needs {name}: pip install 'inception-v4[{name}]'")
    if name == "wandb":
        require_login()


def trackers_for(config: Config, folder: Path) -> list[TrackerThread]:
    """What `--logger` asks for. Nothing is written before the first record."""
    settings = {key: value for key, value in config.flat().items() if value is not None}
    known: dict[str, Callable[[], Tracker]] = {
        "wandb": partial(WandbTracker, folder, settings), "mlflow": partial(MlflowTracker, folder, settings),
    }  # fmt: skip
    name = config.run.logger
    return [TrackerThread(name, known[name])] if name else []


class SilentLog:
    """The off state: the other processes of a run."""

    def say(self, message: str) -> None: ...

    def step(self, number: int) -> None: ...

    def train(self, record: dict[str, Any]) -> None: ...

    def validation(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl. What is none is left out: a line cut short by a crash, another program's."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("kind") in ("train", "val") and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _open_board(folder: Path, resumed_at: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # Hidden from here on: the step that the run goes on from has been validated already.
    return SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1 if resumed_at else None)
