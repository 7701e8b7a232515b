"""Twenty processes of one run are killed at random moments, also while a checkpoint is written: nothing is lost."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from elastic import SETTINGS, Torchrun, assert_same_end, torchrun

from inception_v4.training.checkpoint import list_checkpoints


class Killer:
    """Kills processes of one run, and keeps what its next start must go on from at least."""

    def __init__(self, run: Torchrun, checkpoints: Path, rng: random.Random) -> None:
        self.run, self.checkpoints, self.rng = run, checkpoints, rng
        self.resumed = self.checked = self.saved = 0
        self.while_written = self.torn = 0

    def wait_for_step(self) -> None:
        self.run.until(r" step \d+/")
        time.sleep(self.rng.uniform(0, 1.5))

    def wait_for_writing(self) -> None:
        """To some moment after the first bytes of a checkpoint; its writing takes a good part of a second."""
        self.run.until(r" step \d+/")
        end = time.monotonic() + 60
        while not self.unfinished():
            assert self.run.process.poll() is None and time.monotonic() < end, "no checkpoint is written"
            time.sleep(0.005)
        time.sleep(self.rng.uniform(0, 0.3))

    def wait_for_anything(self) -> None:
        time.sleep(self.rng.uniform(0, 12))

    def unfinished(self, writer: int | str = "*") -> list[Path]:
        """Checkpoints that a process, or any, is writing or has left unfinished."""
        return list(self.checkpoints.glob(f".step-*.{writer}.tmp"))

    def kill(self, rank: int) -> None:
        """Also a process that is only just starting; not before those of the last start are gone."""
        workers: dict[int, int] = {}
        while len(workers) < 2:
            assert self.run.process.poll() is None, "the run is over"
            time.sleep(0.02)
            workers = self.run.workers()
        writing = self.unfinished(writer=workers[0])
        os.kill(workers[rank], signal.SIGKILL)
        self.while_written += bool(writing)
        self.torn += rank == 0 and any(file.exists() for file in writing)
        self.check()
        self.saved = max([0, *(int(file.stem[-8:]) for file in list_checkpoints(self.checkpoints))])
        time.sleep(1)

    def check(self) -> None:
        """A start since the last kill went on from no less than what was saved then."""
        list(self.run.read())
        for line in self.run.said[self.checked :]:
            if match := re.search(r"resumed at step (\d+) of \d+: torchrun started the run again", line):
                self.resumed += 1
                assert int(match[1]) >= self.saved, f"step {self.saved} was saved, and step {match[1]} gone on from"
        self.checked = len(self.run.said)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """Of a random process each, in the midst of starting, computing or writing. KILLS says how many, by default 20."""
    kills, seed = int(os.environ.get("KILLS", "20")), time.time_ns() % 10**6
    settings = SETTINGS | {"shapes_train": 8 * (2 * kills + 4), "output_dir": "runs/this"}
    with torchrun(tmp_path / "whole", settings=settings) as run:
        run.end(0)
    began = time.monotonic()
    with torchrun(tmp_path / "killed", f"--max-restarts={kills}", settings=settings) as run:
        killer = Killer(run, tmp_path / "killed" / "runs" / "this" / "checkpoints", random.Random(seed))
        for number in range(kills):
            [killer.wait_for_step, killer.wait_for_writing, killer.wait_for_anything][number % 3]()
            # The process that writes and the other one in turn; at other moments either of them.
            killer.kill(number % 2 if number % 3 == 1 else killer.rng.randrange(2))
        run.end(0)
        killer.check()
    print(
        f"seed {seed}: {kills} kills in {time.monotonic() - began:.0f} s, {killer.while_written} while a checkpoint "
        f"was written, {killer.torn} tore one; {killer.resumed} starts went on"
    )
    assert killer.resumed >= kills // 3 and (killer.torn or kills < 5)
    (only,) = (tmp_path / "killed" / "runs").iterdir()
    assert_same_end(tmp_path / "whole" / "runs" / "this", only)
