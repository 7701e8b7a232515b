"""Loader processes: signals that reach the whole group, and what a container allows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import TINY, as_flags, command, environment

from inception_v4.accelerator.containers import cpu_limits, memory_limits
from inception_v4.data.workers import worker_count
from inception_v4.distributed import World
from inception_v4.training.checkpoint import list_checkpoints
from inception_v4.training.loop import INTERRUPTED


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_to_the_whole_group_saves(tmp_path: Path, processes: int) -> None:
    """As torchrun, `timeout`, containers and batch systems send it: the loader processes go on until it is saved."""
    settings = as_flags(TINY | {"shapes_train": 400, "workers": 2, "output_dir": tmp_path / "run"})
    with subprocess.Popen(
        command("train", *settings, processes=processes), env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if " step 2/" in line:
                    os.killpg(process.pid, signal.SIGTERM)
                    break
            rest = process.stderr.read()
            code = process.wait(timeout=90)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert "stopped by" in rest and "DataLoader worker" not in rest, rest
    assert processes > 1 or code == INTERRUPTED
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1


ENDS = """
import os, signal, time, torch
from inception_v4.data.workers import start_worker

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 9
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600 if index == 8 else 0)
        return index

loader = iter(torch.utils.data.DataLoader(Numbers(), num_workers=2, worker_init_fn=start_worker))
print([int(next(loader)) for _ in range(8)], flush=True)
"""


def test_a_worker_ends_when_its_main_process_says_so_and_not_before() -> None:
    """Even one that hangs."""
    done = subprocess.run(
        [sys.executable, "-c", ENDS], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[0, 1, 2, 3, 4, 5, 6, 7]\n"


HUGE = """
import numpy as np, sys
from pathlib import Path
from inception_v4.accelerator.glibc import give_back_large_blocks, keep_freed_memory

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

assert keep_freed_memory()
if sys.argv[1] == "worker":
    give_back_large_blocks()
before = held()
picture = np.ones(400 << 20, np.uint8)
del picture
print(held() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_a_huge_picture_does_not_stay_in_a_loader_process() -> None:
    variables = {name: value for name, value in environment().items() if not name.startswith("MALLOC_")}

    def kept(kind: str) -> int:
        words = [sys.executable, "-c", HUGE, kind]
        return int(subprocess.run(words, env=variables, capture_output=True, text=True, check=True).stdout)

    assert kept("main") > 390 << 20 and kept("worker") < 40 << 20


def groups(root: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "own").write_text(own)
    return root, root / "own"


def test_limits_of_containers_are_seen(tmp_path: Path) -> None:
    """Both versions of control groups; the groups around one limit it as well."""
    second = {
        "memory.max": "max\n", "a/memory.max": "5000\n", "a/b/memory.max": "4000\n", "a/cpu.max": "150000 100000\n",
        "a/b/cpu.max": "max 100000\n",
    }  # fmt: skip
    place = groups(tmp_path / "2", "0::/a/b\n", second)
    assert sorted(memory_limits(*place)) == [4000, 5000] and cpu_limits(*place) == [1.5]
    first = {
        "memory/x/memory.limit_in_bytes": "7000\n", "cpu/cpu.cfs_quota_us": "200000\n",
        "cpu/cpu.cfs_period_us": "100000\n", "cpuacct/cpu.cfs_quota_us": "-1\n",
    }  # fmt: skip
    place = groups(tmp_path / "1", "4:memory:/x\n2:cpu,cpuacct:/elsewhere\n", first)
    assert memory_limits(*place) == [7000] and cpu_limits(*place) == [2.0]
    assert memory_limits(tmp_path / "none", tmp_path / "none") == cpu_limits(tmp_path / "none", tmp_path / "none") == []


def test_workers_are_no_more_than_the_container_has_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr("inception_v4.data.workers.cpu_limits", lambda: [4.5, 2.5])
    assert worker_count(None, World()) == 3 and worker_count(7, World()) == 7
