"""One writer for an address: the second machine is refused, a lock without an owner taken over, a lost one told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import ROOT, tiny

from inception_v4.accelerator import select
from inception_v4.distributed import World
from inception_v4.storage import address_lock as module
from inception_v4.storage.address_lock import AddressLock, AddressLost
from inception_v4.storage.lock import FolderLock
from inception_v4.storage.mirror import Mirror, NotUploaded
from inception_v4.storage.owner import LOCK_NAME, FolderInUse
from inception_v4.storage.remote import Place, StorageError
from inception_v4.training.train import prepare

HOLDER = """
import sys
from inception_v4.storage.address_lock import AddressLock
lock = AddressLock(print)
lock.acquire(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
lock.release()
"""
ELSEWHERE = {"host": "node7", "pid": 1, "started": "5", "boot": "another", "processes": "x", "token": "t"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"ADDRESS_BEAT": 0.1, "ADDRESS_STALE_AFTER": 1.0, "SETTLE": 0.3, "_LOOK_EVERY": 0.1}.items():
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture
def address(store: Callable[[str], str]) -> str:
    return store("runs/a")


def _lock_of(address: str) -> dict[str, object]:
    found = Place(address).read(LOCK_NAME)
    assert found is not None
    return dict(json.loads(found))


def _put(address: str, owner: dict[str, object]) -> None:
    """Another run's lock, of which one beat after the other differs."""
    Place(address).write(LOCK_NAME, json.dumps(owner).encode())


def _until(true: Callable[[], object], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not come to pass in {seconds:g} seconds"
        time.sleep(0.05)


@pytest.fixture
def holder(address: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of the address."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.communicate()


def test_the_second_is_refused_and_told_who_is_there(address: str, holder: subprocess.Popen[str]) -> None:
    lock = AddressLock(print)
    with pytest.raises(FolderInUse) as caught:
        lock.acquire(address, setting="--upload-to")
    said = str(caught.value)
    assert f"{address} is written to by process {holder.pid} on {socket.gethostname()}, since 2" in said
    assert "wait for it or stop it, or give another --upload-to" in said
    lock.release()
    assert _lock_of(address)["pid"] == holder.pid, "who was refused leaves it there"
    holder.communicate()
    assert Place(address).read(LOCK_NAME) is None
    lock.acquire(address)
    lock.acquire(address)
    assert _lock_of(address)["pid"] == os.getpid()
    lock.release()
    assert Place(address).read(LOCK_NAME) is None


def test_a_killed_owners_lock_is_taken_over_and_said(address: str, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    said: list[str] = []
    lock = AddressLock(said.append)
    lock.acquire(address)
    assert len(said) == 1 and f"process {holder.pid} on" in said[0] and "taken over" in said[0]
    lock.release()


def test_another_machines_lock_is_refused_while_it_beats_and_taken_over_when_it_does_not(address: str) -> None:
    _put(address, ELSEWHERE)
    over = threading.Event()

    def beat() -> None:
        number = 0
        while not over.wait(0.2):
            number += 1
            _put(address, ELSEWHERE | {"beat": number})

    beating = threading.Thread(target=beat)
    beating.start()
    said: list[str] = []
    lock = AddressLock(said.append)
    try:
        with pytest.raises(FolderInUse, match="written to by process 1 on node7"):
            lock.acquire(address)
    finally:
        over.set()
        beating.join()
    assert len(said) == 1 and "watching for a sign of life for 1 s" in said[0]
    started = time.monotonic()
    lock.acquire(address)
    assert time.monotonic() - started > 1.0 and "node7" in said[-1] and "taken over" in said[-1]
    lock.release()


def test_the_lock_is_kept_fresh(address: str) -> None:
    lock = AddressLock(print)
    lock.acquire(address)
    first = _lock_of(address)
    _until(lambda: _lock_of(address)["beat"] != first["beat"])
    assert _lock_of(address)["token"] == first["token"]
    lock.release()


@pytest.mark.parametrize("conditional", [True, False], ids=["store-excludes", "store-does-not"])
def test_of_two_that_begin_at_once_one_goes_on(
    address: str, conditional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen no lock before either writes one."""
    read, write, both, looked, written = Place.read, Place.write, threading.Barrier(2), set(), set()

    def together(self: Place, name: str) -> bytes | None:
        found = read(self, name)
        if (this := threading.current_thread()) in runs and this not in looked:
            looked.add(this)
            both.wait(10)
        return found

    def unconditional(self: Place, name: str, content: bytes, *, only_new: bool = False) -> bool:
        done = write(self, name, content)
        if (this := threading.current_thread()) in runs and this not in written:
            written.add(this)
            both.wait(10)
        return done

    monkeypatch.setattr(Place, "read", together)
    if not conditional:
        monkeypatch.setattr(Place, "write", unconditional)
    locks, refused = [AddressLock(print), AddressLock(print)], []

    def begin(lock: AddressLock) -> None:
        try:
            lock.acquire(address)
        except FolderInUse as error:
            refused.append(str(error))

    runs = [threading.Thread(target=begin, args=(lock,)) for lock in locks]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(refused) == 1 and "is written to by process" in refused[0]
    for lock in locks:
        lock.release()
    assert read(Place(address), LOCK_NAME) is None


@pytest.fixture
def followed(address: str, tmp_path: Path) -> Iterator[tuple[Mirror, AddressLock, Path, list[str]]]:
    said: list[str] = []
    folder, lock = tmp_path / "run", AddressLock(said.append)
    folder.mkdir()
    lock.acquire(address)
    yield Mirror(folder, address, said.append, lock=lock), lock, folder, said
    lock.release()


def test_who_finds_anothers_token_uploads_nothing_more_and_says_so(address: str, followed) -> None:
    mirror, lock, folder, said = followed
    (folder / "a").write_bytes(b"1")
    mirror.follow()
    _until(lambda: Place(address).read("a") == b"1")
    _until(lambda: _put(address, ELSEWHERE) or lock.lost)  # as the other does, again and again
    assert any("taken over by process 1 on node7" in line and "nothing more" in line for line in said)
    (folder / "b").write_bytes(b"2")
    mirror.follow()
    with pytest.raises(
        NotUploaded, match=r"taken over by process 1 on node7.*the run is whole in .*--upload-to"
    ) as end:
        mirror.close(patience=20)
    assert end.value.exit_code == 74
    lock.release()
    assert Place(address).read("b") is None and _lock_of(address)["token"] == "t", "the other's lock stays"


def test_a_lock_that_was_lost_at_the_very_end_is_noticed(
    address: str, followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = followed[0]
    monkeypatch.setattr(module, "ADDRESS_BEAT", 3600.0)
    time.sleep(0.3)
    _put(address, ELSEWHERE)
    with pytest.raises(NotUploaded, match="taken over by process 1 on node7"):
        mirror.close(patience=20)


def test_beats_that_fail_stop_nothing_and_an_absence_that_was_too_long_is_noticed(
    address: str, followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lock, _, said = followed
    read = Place.read

    def unreachable(self: Place, name: str) -> bytes | None:
        raise StorageError("nobody listens")

    monkeypatch.setattr(Place, "read", unreachable)
    time.sleep(0.3)
    lock._beaten = time.monotonic()
    lock.require()  # a beat that is missed is no loss
    lock._beaten -= 100
    with pytest.raises(StorageError, match="nobody listens"):
        lock.require()
    assert not lock.lost and not said
    Place(address).delete(LOCK_NAME)  # another run has taken it over meanwhile, and ended
    monkeypatch.setattr(Place, "read", read)
    with pytest.raises(AddressLost, match="a run that has ended"):
        for _ in range(50):
            lock.require()
            time.sleep(0.05)


def test_a_lock_that_somebody_removes_is_written_again(address: str, followed) -> None:
    _, lock, _, _ = followed
    Place(address).delete(LOCK_NAME)
    _until(lambda: Place(address).read(LOCK_NAME) is not None)
    lock.require()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["output_dir", "upload_to"])
def test_a_second_run_is_refused_before_it_writes(
    store: Callable[[str], str], address: str, holder: subprocess.Popen[str], tmp_path: Path, setting: str
) -> None:
    place = {"output_dir": address} if setting == "output_dir" else {"upload_to": address}
    config = tiny(tmp_path / "run", **place, max_steps=1, val_samples=4, resume="auto")
    with FolderLock(print) as lock, pytest.raises(FolderInUse, match=rf"give another --{setting.replace('_', '-')}$"):
        prepare(config, select("cpu"), World(), lock)
    assert not (tmp_path / "run").exists()
    assert [entry.name for entry in Place(address).entries()] == [LOCK_NAME]
