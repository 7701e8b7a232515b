"""Runs under torchrun whose processes are killed, stopped and signalled: they go on with their own run, or say why."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist
from elastic import SETTINGS, assert_same_end, torchrun
from running import TINY
from temporary import NewFolder

from inception_v4.distributed import World, _meet
from inception_v4.settings.recipes import build_config
from inception_v4.storage.lock import FolderLock
from inception_v4.training.checkpoint import list_checkpoints
from inception_v4.training.folder import run_folder
from inception_v4.training.launch import Launch
from inception_v4.training.watchdog import Watchdog


@pytest.fixture(scope="module")
def undisturbed(module_folder: NewFolder) -> Path:
    folder = module_folder("undisturbed")
    with torchrun(folder, settings=SETTINGS) as run:
        run.end(0)
    return next((folder / "runs").iterdir())


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_goes_on_untold(undisturbed: Path, tmp_path: Path) -> None:
    """Neither --output-dir nor --resume is given: the run is found by its launch, and the weights are the same bits."""
    with torchrun(tmp_path, "--max-restarts=1", settings=SETTINGS) as run:
        run.until(r" step 3/")
        rank = random.Random(time.time_ns()).randrange(2)
        os.kill(run.workers()[rank], signal.SIGKILL)
        said = run.end(0)
    assert re.search(r"resumed at step [1-4] of 5: torchrun started the run again", said), said
    (only,) = (tmp_path / "runs").iterdir()
    assert_same_end(undisturbed, only)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1])
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    settings = SETTINGS | {"shapes_train": 400, "ckpt_steps": 100, "output_dir": "run"}
    with torchrun(tmp_path, settings=settings) as run:
        run.until(r" step 1/")
        asked = time.monotonic()
        os.kill(run.workers()[1], number)
        run.until(r"^error: stopped by a signal to another process at step \d+")
        assert time.monotonic() - asked < 30, "torchrun's own grace period"
        said = run.end(1)
    assert len(re.findall(r"exitcode *: 75", said)) >= 1 and "exitcode  : 1 " not in said, said
    assert f"error (process 1): stopped by signal {int(number)} at step" in said
    (checkpoint,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert int(checkpoint.stem[-8:]) == int(re.search(r"stopped by signal \d+ at step (\d+)", said)[1])  # type: ignore[index]


@pytest.mark.slow
def test_a_signal_to_torchrun_reaches_all_and_coming_twice_does_no_harm(tmp_path: Path) -> None:
    settings = SETTINGS | {"shapes_train": 400, "ckpt_steps": 100, "output_dir": "run"}
    with torchrun(tmp_path, "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", settings=settings) as run:
        run.until(r" step 1/")
        for pid in [*run.workers().values(), run.process.pid]:
            os.kill(pid, signal.SIGUSR1)
        said = run.end(1)
    assert said.count("stopped by signal") == 2, said
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1


@pytest.mark.slow
def test_a_hang_ends_with_the_name_of_the_missing_process(tmp_path: Path) -> None:
    settings = SETTINGS | {"shapes_train": 400, "hang_timeout": 20}
    with torchrun(tmp_path, settings=settings) as run:
        run.until(r" step 1/")
        stopped = run.workers()[1]
        os.kill(stopped, signal.SIGSTOP)
        asked = time.monotonic()
        line = run.until(r"^error \(process 0\)")
        assert 19 < time.monotonic() - asked < 45
        os.kill(stopped, signal.SIGKILL)
        run.end(1)
    assert re.search(r"no progress for 20 s \(--hang-timeout\) while .* step \d+: process 1 \(\S+\) is missing", line)


def test_processes_meet_in_a_store_that_is_full_of_those_before() -> None:
    """torchrun keeps its store over restarts; the last of the new ones comes when the others wait already."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            meetings = []
            for rank in (1, 0, 2):
                store = dist.TCPStore("127.0.0.1", server.port, is_master=False)
                assert not any(meeting.done() for meeting in meetings), "not without all of the new ones"
                meetings.append(pool.submit(_meet, World(rank=rank, size=3), store, 30))
                time.sleep(0.1)
            names.append({meeting.result() for meeting in meetings})
    assert all(len(name) == 1 for name in names) and len(set.union(*names)) == 3
    fresh = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(TimeoutError, match="not all of 3 processes are in touch with process 0: missing 1, 2"):
        _meet(World(rank=0, size=3), fresh, 0.3)


@contextmanager
def three_watchdogs() -> Iterator[list[Watchdog]]:
    """Of three processes, in one; none of them ends it."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dogs = []
    for rank in range(3):
        store = dist.TCPStore("127.0.0.1", server.port, is_master=False)
        dogs.append(Watchdog(World(rank=rank, size=3), store, limit=600))
        dogs[-1]._tell(0)
    yield dogs


NUMBERS = itertools.count(1)


def missing_to(dog: Watchdog, *, speaking: list[Watchdog]) -> str:
    """What it says about the others after a while in which only some of them give signs of life."""
    dog._ask()
    for other in dog._others.values():
        other.heard -= 1000
    for other in speaking:
        other._tell(next(NUMBERS))
    dog._ask()
    return dog.explain()


def test_the_missing_process_is_named() -> None:
    with three_watchdogs() as (first, second, third):
        for dog in (first, second, third):
            dog.beat("computing after step 3")
        said = missing_to(first, speaking=[second])
        assert "while computing after step 3: process 2 (" in said and "missing: not a sign of life" in said
        assert "processes 1 (" in missing_to(first, speaking=[])
        assert "waits in the same place" in missing_to(first, speaking=[second, third])
        first.beat("waiting for pictures after step 4")
        third.beat("waiting for pictures after step 4")
        assert re.search(
            r"process 1 \(\S+\) is missing: still computing after step 3", missing_to(first, speaking=[second, third])
        )
        assert "process 1 itself is missing to the others" in missing_to(second, speaking=[first, third])
        second._answered -= 1000
        assert "process 0 is missing: its store at" in second.explain()


def launch(monkeypatch: pytest.MonkeyPatch, run_id: str | None, agent: str = "host:1:1") -> Launch:
    if run_id is None:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    else:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    monkeypatch.setattr("inception_v4.training.launch._agent", lambda: agent)
    return Launch.current(World())


def test_a_run_belongs_to_its_launch_and_to_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, run_id, agent in (("a", "job7", "one:1:1"), ("b", "none", "two:2:2")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        launch(monkeypatch, run_id, agent).record(tmp_path / "runs" / name)
    runs = Path("runs")
    assert launch(monkeypatch, "job7", "three:3:3").find(runs) == runs / "a", "by id: machines may be others"
    assert launch(monkeypatch, "none", "two:2:2").find(runs) == runs / "b", "without an id: by its torchrun"
    assert launch(monkeypatch, "none", "two:2:9").find(runs) is None, "another torchrun with a number used again"
    assert launch(monkeypatch, "job8", "three:3:3").find(runs) is None
    assert launch(monkeypatch, None).find(runs) is None and launch(monkeypatch, None).agents == ()


def test_another_launch_is_refused_and_ones_own_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a certain checkpoint was named at the first start."""
    lock = FolderLock(print)
    settings = build_config(TINY | {"output_dir": str(tmp_path / "run"), "resume": "elsewhere.pt"}).run
    assert launch(monkeypatch, "job7") == run_folder(settings, World(), lock).launch
    folder = run_folder(settings, World(), lock)
    assert folder.resume == "elsewhere.pt"
    folder.checkpoints.mkdir(parents=True)
    folder.launch.record(folder.path)
    assert run_folder(settings, World(), lock).resume == "elsewhere.pt", "killed before there was a checkpoint"
    (folder.checkpoints / "step-00000001.pt").touch()
    assert run_folder(settings, World(), lock).resume == "auto"
    launch(monkeypatch, "job8", "other:1:1")
    with pytest.raises(ValueError, match="holds a run already"):
        run_folder(settings.model_copy(update={"resume": None}), World(), lock)
