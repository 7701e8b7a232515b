"""`--logger`: the real programs offline, resumed; their failure and their absence. And what a terminal shows."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import rich.console
from running import TINY, as_flags, command, environment, tiny

from inception_v4 import console as console_module
from inception_v4.accelerator import select
from inception_v4.cli.main import run
from inception_v4.distributed import World
from inception_v4.storage.lock import FolderLock
from inception_v4.training import runlog
from inception_v4.training.runlog import METRICS, RunLog
from inception_v4.training.throughput import Throughput
from inception_v4.training.trackers import BROKEN_OFF, FINISHED, STOPPED, TrackerThread, figures_of, outcome_now
from inception_v4.training.train import prepare

RECORD = {
    "epoch": 0,
    "step": 1,
    "loss": 1.5,
    "lr": 0.1,
    "images_per_second": 12.5,
    "data_wait": 0.034,
    "skipped_steps": 0,
}
KEY = "0123456789abcdef0123456789abcdef01234567"


class Notebook:
    """A tracker that keeps what it is told."""

    def __init__(self, fails_at: int | None = None, gate: threading.Event | None = None) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.outcome = ""
        self._fails_at, self._gate = fails_at, gate

    def log(self, step: int, figures: dict[str, float]) -> None:
        if self._gate:
            self._gate.wait(20)
        if step == self._fails_at:
            raise ConnectionError("the server\nhas gone")
        self.told.append((step, figures))

    def close(self, outcome: str) -> None:
        self.outcome = outcome


def logged(folder: Path, tracker: TrackerThread, steps: int = 3) -> list[int]:
    """Steps in metrics.jsonl after a log with so many records."""
    log = RunLog(folder, total_steps=9, tensorboard=False, trackers=[tracker])
    for step in range(1, steps + 1):
        log.train(RECORD | {"step": step})
    log.close()
    return [json.loads(line)["step"] for line in (folder / METRICS).read_text().splitlines()]


def test_a_tracker_gets_what_the_file_gets(tmp_path: Path) -> None:
    notebook = Notebook()
    assert logged(tmp_path, TrackerThread("notebook", lambda: notebook)) == [1, 2, 3]
    assert [step for step, _ in notebook.told] == [1, 2, 3] and notebook.outcome == FINISHED
    assert notebook.told[0][1]["train/loss"] == 1.5 and notebook.told[0][1]["train/data_wait"] == 0.034
    assert figures_of({"kind": "val", "step": 1, "loss": float("nan"), "top1": 5}) == {"val/top1": 5.0}


def test_a_tracker_that_fails_or_hangs_never_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Notebook(fails_at=2)
    assert logged(tmp_path, TrackerThread("broken", lambda: broken)) == [1, 2, 3]
    assert [step for step, _ in broken.told] == [1] and broken.outcome == ""
    assert (
        capsys.readouterr().err.count("broken gets no more of this run, which goes on: ConnectionError: the server")
        == 1
    )

    def refused() -> Notebook:
        raise OSError("no such server")

    assert logged(tmp_path, TrackerThread("refused", refused))[-3:] == [1, 2, 3]
    assert capsys.readouterr().err.count("no such server") == 1
    monkeypatch.setattr("inception_v4.training.trackers._PATIENCE", 0.2)
    monkeypatch.setattr("inception_v4.training.trackers._ROOM", 2)
    gate = threading.Event()
    began = time.monotonic()
    logged(tmp_path, TrackerThread("hanging", lambda: Notebook(gate=gate)), steps=6)
    gate.set()
    assert time.monotonic() - began < 5
    assert "hanging gets no more of this run, which goes on: takes no records (2 wait)" in capsys.readouterr().err


def test_how_a_run_ends_is_told() -> None:
    found = [outcome_now()]
    for error in (ValueError(), KeyboardInterrupt()):
        try:
            raise error
        except BaseException:
            found.append(outcome_now())
    assert found == [FINISHED, BROKEN_OFF, STOPPED]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_said_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert run(["train", *as_flags(TINY | {"output_dir": str(tmp_path / "run"), "logger": name})]) == 1
    assert f"pip install 'inception-v4[{name}]'" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_waiting_for_data_is_measured() -> None:
    now = [0.0]
    speed = Throughput(warmup=0, clock=lambda: now[0])
    speed.resume()
    for computing, waiting in ((3.0, 1.0), (1.0, 3.0)):
        with speed.waiting():
            now[0] += waiting
        now[0] += computing
        speed.update(4)
    assert speed.data_wait() == 0.5 and speed.data_wait() == 0.0
    speed.pause()
    now[0] += 100  # a validation
    speed.resume()
    now[0] += 1
    speed.update(4)
    assert speed.data_wait() == 0.0


@pytest.mark.slow
def test_a_slow_loader_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real loop, by a clock of its own: a step takes a second, the third batch, asked for a step ahead, three."""
    loop = prepare(tiny(tmp_path / "run", max_steps=3, shapes_val=2), select("cpu"), World(), FolderLock(print))
    told: list[dict[str, Any]] = []
    now, epoch = [0.0], loop.loader.epoch

    def slowly(*words: Any, **options: Any) -> Any:
        for number, batch in enumerate(epoch(*words, **options)):
            now[0] += 3 * (number == 2)
            yield batch

    monkeypatch.setattr(loop.log, "train", told.append)
    monkeypatch.setattr(loop.log, "step", lambda step: now.__setitem__(0, now[0] + 1))
    monkeypatch.setattr(loop.loader, "epoch", slowly)
    loop.speed = Throughput(clock=lambda: now[0])
    loop.run_epochs()
    loop.folder.writer.finish()
    loop.log.close()
    assert [record["data_wait"] for record in told] == [0.0, 0.75, 0.0], told


@pytest.mark.parametrize(("width", "end"), [(80, ""), (120, " .*")])
def test_a_terminal_shows_figures_and_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, end: str
) -> None:
    screen = io.StringIO()
    console = rich.console.Console(file=screen, force_terminal=True, width=width, highlight=False, color_system=None)
    for module in (console_module, runlog):
        monkeypatch.setattr(module, "console", console)
    log = RunLog(tmp_path, total_steps=4000, tensorboard=False)
    log.train(RECORD | {"images_per_second": 1234.5})
    for step in (1001, 1002, 1003):
        time.sleep(0.3)
        log.step(step)
    log.close()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).rstrip().splitlines()[-1].split("\r")[-1]
    figures = "epoch 1  loss 1.5000  lr 0.1  1234.5 images/s  data 3 %"
    assert re.fullmatch(rf"{figures}{end} 1003/4000( 0:00:0\d 0)? ?:?\d\d:\d\d", last), last


def flags(folder: Path, **changes: Any) -> list[str]:
    return as_flags(TINY | {"output_dir": str(folder), "shapes_val": 2, "ckpt_steps": 2} | changes)


def train(folder: Path, variables: dict[str, str], **changes: Any) -> str:
    """What the real command says on stderr."""
    done = subprocess.run(command("train", *flags(folder, **changes)), capture_output=True, text=True, timeout=280,
                          env=environment() | variables, cwd=folder.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def secrets_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_offline_goes_on_with_the_same_run(tmp_path: Path) -> None:
    variables = {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY, "HOME": str(tmp_path / "home")}
    train(tmp_path / "run", variables, logger="wandb", max_steps=2)
    train(tmp_path / "run", variables, logger="wandb", max_steps=4, resume="auto")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    rows = [row for file in files for row in wandb_rows(file)]
    losses = {int(row["_step"]): row["train/loss"] for row in rows if "train/loss" in row}
    records = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert losses == {r["step"]: r["loss"] for r in records if r["kind"] == "train"} and set(losses) == {1, 2, 3, 4}
    assert any("val/top1" in row for row in rows)
    assert secrets_in(tmp_path / "run") == []


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    """What a small offline file has: wandb's messages, as LevelDB logs are written."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, rows = path.read_bytes(), 7, []
    while place + 7 <= len(data) and len(data) < 32768:
        (length,) = struct.unpack("<H", data[place + 4 : place + 6])
        record = Record.FromString(data[place + 7 : place + 7 + length])
        if record.WhichOneof("record_type") == "history":
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
            rows[-1].setdefault("_step", record.history.step.num)
        place += 7 + length
    return rows


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_without_a_key_is_one_line(tmp_path: Path) -> None:
    variables = {k: v for k, v in environment().items() if not k.startswith("WANDB")}
    done = subprocess.run(command("train", *flags(tmp_path / "run", logger="wandb")), capture_output=True, text=True,
                          env=variables | {"HOME": str(tmp_path)}, timeout=100, stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 1 and "run `wandb login`, or set WANDB_MODE=offline" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_goes_on_with_the_same_run_and_its_server_may_be_gone(tmp_path: Path) -> None:
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/store.db", "HOME": str(tmp_path / "home")}
    train(tmp_path / "run", variables, logger="mlflow", max_steps=2)
    train(tmp_path / "run", variables, logger="mlflow", max_steps=4, resume="auto")
    with sqlite3.connect(tmp_path / "store.db") as store:
        runs = store.execute("select run_uuid, name, status from runs").fetchall()
        losses = store.execute("select step, value from metrics where key = 'train/loss' order by step").fetchall()
        settings = dict(store.execute("select key, value from params").fetchall())
    store.close()
    assert [(name, status) for _, name, status in runs] == [("run", "FINISHED")] and settings["lr"] == "0.01"
    records = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert losses == [(r["step"], r["loss"]) for r in records if r["kind"] == "train"] and len(losses) == 4
    gone = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    said = train(tmp_path / "alone", variables | gone, logger="mlflow", max_steps=1)
    assert said.count("mlflow gets no more of this run, which goes on") == 1


def test_the_validation_of_the_step_that_a_run_goes_on_from_stays_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figures = {"epoch": 0, "loss": 1.0, "top1": 50.0, "top5": 90.0, "samples": 2}
    for resumed_at, steps in ((0, (3, 4)), (3, (4,))):
        log = RunLog(tmp_path, total_steps=9, resumed_at=resumed_at)
        for step in steps:
            log.validation(figures | {"step": step, "top1": 50.0 + resumed_at})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("val/top1")] == [(3, 50.0), (4, 53.0)]
