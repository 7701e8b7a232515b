"""One writer for a run directory: the second one is refused, a lock without an owner is taken over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import ROOT, tiny

from inception_v4.storage import lock as module
from inception_v4.storage.lock import FolderLock
from inception_v4.storage.owner import LOCK_NAME, FolderInUse
from inception_v4.training.train import train

HOLDER = """
import sys
from pathlib import Path
from inception_v4.storage import lock as module
module.BEAT = 0.2
with module.FolderLock(print) as lock:
    lock.acquire(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def _hold(folder: Path, *start: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `folder`; it lets go when its input ends."""
    with subprocess.Popen(
        [*start, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.communicate()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with _hold(tmp_path, sys.executable, "-c", HOLDER) as process:
        yield process


def test_the_second_is_refused_and_told_who_is_there(tmp_path: Path, holder) -> None:
    with FolderLock(print) as lock, pytest.raises(FolderInUse) as caught:
        lock.acquire(tmp_path)
    assert f"process {holder.pid} on {socket.gethostname()}" in str(caught.value)
    assert "another --output-dir" in str(caught.value)
    assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == holder.pid


def test_a_folder_is_free_again_when_its_owner_lets_go(tmp_path: Path, holder) -> None:
    holder.communicate()
    assert not (tmp_path / LOCK_NAME).exists()
    said: list[str] = []
    with FolderLock(said.append) as lock:
        lock.acquire(tmp_path)
        lock.acquire(tmp_path)
        lock.require()
    assert said == [] and not (tmp_path / LOCK_NAME).exists()


def test_a_killed_owners_lock_is_taken_over_at_once_and_said(tmp_path: Path, holder) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    said: list[str] = []
    with FolderLock(said.append) as lock:
        lock.acquire(tmp_path)
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert len(said) == 1 and f"process {holder.pid} on" in said[0] and "taken over" in said[0]


def test_another_process_with_the_owners_number_is_not_the_owner(tmp_path: Path, holder) -> None:
    """A machine that was restarted, or has used all numbers up."""
    owner = json.loads((tmp_path / LOCK_NAME).read_text())
    (tmp_path / LOCK_NAME).write_text(json.dumps(owner | {"started": "1"}))
    said: list[str] = []
    with FolderLock(said.append) as lock:
        lock.acquire(tmp_path)
    assert len(said) == 1


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock of a process on another machine, whose number says nothing here; times are shortened."""
    monkeypatch.setattr(module, "STALE_AFTER", 1.5)
    monkeypatch.setattr(module, "BEAT", 0.2)
    path = tmp_path / LOCK_NAME
    path.write_text(json.dumps({"host": "node7", "pid": 1, "started": "5", "boot": "another", "processes": "x"}))
    return path


NAMESPACES = ["unshare", "--uts", "--pid", "--fork", "--kill-child"]


def _another_host_can_be_had() -> bool:
    """A host of another name, with other numbers of processes, takes root and its right to make namespaces."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACES, "hostname", "node9"], capture_output=True).returncode == 0


@pytest.mark.skipif(not _another_host_can_be_had(), reason="namespaces cannot be made here")
def test_a_lock_of_another_machine_that_is_kept_fresh_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALE_AFTER", 2.5)
    python = f'exec {sys.executable} -c "$0" "$1"'
    there = [*NAMESPACES, "sh", "-c", f"hostname node9; {python}"]
    said: list[str] = []
    with _hold(tmp_path, *there, HOLDER) as process, FolderLock(said.append) as lock:
        with pytest.raises(FolderInUse, match=r"process \d+ on node9"):
            lock.acquire(tmp_path)
        assert len(said) == 1 and "watching for a sign of life for 2.5 s" in said[0]
        process.kill()
        process.wait()
        lock.acquire(tmp_path)
        assert "taken over" in said[-1]


def test_a_lock_of_another_machine_that_nobody_touches_is_taken_over(elsewhere: Path) -> None:
    said: list[str] = []
    with FolderLock(said.append) as lock:
        lock.acquire(elsewhere.parent)
        assert "watching" in said[0] and "node7" in said[1] and "taken over" in said[1]
        before = elsewhere.stat().st_mtime_ns
        time.sleep(0.6)
        assert elsewhere.stat().st_mtime_ns > before, "the new owner keeps it fresh"


def test_who_was_taken_over_stops_writing(elsewhere: Path) -> None:
    elsewhere.unlink()
    with FolderLock(print) as first:
        first.acquire(elsewhere.parent)
        elsewhere.write_text(json.dumps({"host": "node8", "pid": 3, "token": "t"}))
        with pytest.raises(FolderInUse, match="taken over by process 3 on node8"):
            first.require()
        touched = elsewhere.stat().st_mtime_ns
        time.sleep(0.5)
        assert elsewhere.stat().st_mtime_ns == touched, "it does not keep another's lock fresh"
    assert elsewhere.exists(), "nor does it take it away"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"pid": "x"}', b'{"pid": {}}'])
def test_a_file_that_is_no_lock_counts_until_it_is_old(elsewhere: Path, content: bytes) -> None:
    elsewhere.write_bytes(content)
    os.utime(elsewhere, (1, 1))
    said: list[str] = []
    with FolderLock(said.append) as lock:
        lock.acquire(elsewhere.parent)
    assert len(said) == 1 and "taken over" in said[0]


def test_a_second_run_is_refused_and_the_first_ones_files_stay(tmp_path: Path, holder) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("first")
    with pytest.raises(FolderInUse, match="written to by process"):
        train(tiny(tmp_path, resume="auto"))
    assert (tmp_path / "config.yaml").read_text() == "first"
