"""Runs of two processes under torchrun, their processes by rank, and whether two of them ended alike."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from running import TINY, as_flags, differing, environment, final_state

SETTINGS: dict[str, Any] = TINY | {
    "shapes_train": 40, "epochs": 1, "ckpt_steps": 1, "keep_checkpoint_max": 3, "drop_rate": 0.3, "ema": True,
    "lr": 0.001, "bn_momentum": 0.9,
}  # fmt: skip
"""Five steps by two processes, with a checkpoint after each."""
STATE = ("model", "ema", "optimizer", "step", "best", "ema_updates", "position")


class Torchrun:
    """A run of two processes, the lines that it says, and its processes by rank."""

    def __init__(self, cwd: Path, *options: str, settings: dict[str, Any], processes: int = 2) -> None:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        words = [*start, *options, "-m", "inception_v4", "train", *as_flags(settings)]
        self.said: list[str] = []
        cwd.mkdir(exist_ok=True)
        with (cwd / "said.log").open("w") as log:
            self.process = subprocess.Popen(
                words, cwd=cwd, env=environment(), stdout=subprocess.DEVNULL, stderr=log, text=True
            )
        self.log = (cwd / "said.log").open()

    def until(self, pattern: str) -> str:
        """Read to the first line that matches, of those that were not read yet."""
        while True:
            over = self.process.poll() is not None
            for line in self.read():
                if re.search(pattern, line):
                    return line
            assert not over, f"ended without {pattern!r}:\n{''.join(self.said)}"
            time.sleep(0.02)

    def read(self) -> Iterator[str]:
        """The lines that were said since the last one that was read, one by one."""
        while line := self.log.readline():
            while not line.endswith("\n") and self.process.poll() is None:
                time.sleep(0.02)  # it is being written
                line += self.log.readline()
            self.said.append(line)
            yield line

    def end(self, expect: int) -> str:
        """Everything that was said, after the end."""
        code = self.process.wait(timeout=600)
        list(self.read())
        assert code == expect, "".join(self.said)
        return "".join(self.said)

    def workers(self) -> dict[int, int]:
        """Process numbers by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                variables = dict(v.split("=", 1) for v in (folder / "environ").read_text().split("\0") if "=" in v)
            except (OSError, ValueError, IndexError):
                continue  # it has ended meanwhile, or is not ours to look at
            if parent == self.process.pid and "RANK" in variables:
                found[int(variables["RANK"])] = int(folder.name)
        return found


@contextmanager
def torchrun(cwd: Path, *options: str, settings: dict[str, Any]) -> Iterator[Torchrun]:
    started = Torchrun(cwd, *options, settings=settings)
    try:
        yield started
    finally:
        workers = started.workers()
        started.process.kill()
        for pid in workers.values():
            os.kill(pid, signal.SIGKILL)
        started.process.wait()
        started.log.close()


def assert_same_end(undisturbed: Path, run: Path) -> None:
    whole, resumed = final_state(undisturbed), final_state(run)
    assert differing({n: whole[n] for n in STATE}, {n: resumed[n] for n in STATE}) == []
    assert (run / "last.safetensors").read_bytes() == (undisturbed / "last.safetensors").read_bytes()
    assert not list(run.rglob("*.tmp"))
