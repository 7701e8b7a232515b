"""Copies of remote files when something comes between: a fetch or a removal that is cut off, a disk that is short."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from disks import fill, small_disk
from running import environment

from inception_v4.files import DiskFull
from inception_v4.storage.fetch import _remove, _used, local_copy
from inception_v4.storage.remote import Place, StorageError

REMOVE = "import sys, pathlib; from inception_v4.storage.fetch import _remove; _remove(pathlib.Path(sys.argv[1]))"


def _filled(address: str, sizes: dict[str, int], seed: int = 0) -> str:
    for name, size in sizes.items():
        Place(address).write(name, random.Random(f"{name} {seed}").randbytes(size))
    return address


def _cut_off(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path, file: str, **options: int) -> Path:
    """Fetch an address whose store does not give one of the files, as a process does that then ends; what is left."""
    files = fsspec.filesystem("s3")
    give = files.get_file

    def gives(there: str, here: str, **more: object) -> None:
        if there.endswith(f"/{file}"):
            raise ConnectionError("the line is cut")
        give(there, here, **more)

    before = set((cache / "remote").glob(".*.part"))
    with monkeypatch.context() as patch:
        patch.setattr(files, "get_file", gives)
        with pytest.raises(StorageError, match="the line is cut"):
            local_copy(address, cache=cache, **options)
    _used.pop().close()
    (part,) = set((cache / "remote").glob(".*.part")) - before
    return part


def test_a_removal_that_is_killed_leaves_no_copy_that_looks_whole(store: Callable[[str], str], tmp_path: Path) -> None:
    copy = Path(local_copy(_filled(store("a"), {"1": 1000}), cache=tmp_path))
    _used.pop().close()
    for number in range(20_000):
        (copy / f"{number}.jpg").touch()
    process = subprocess.Popen([sys.executable, "-c", REMOVE, str(copy)], env=environment())
    end = time.monotonic() + 100
    while copy.is_dir() and len(os.listdir(copy)) > 20_000:
        assert time.monotonic() < end
    process.kill()
    process.wait()
    assert not copy.exists() or len(os.listdir(copy)) == 20_001
    again = Path(local_copy(store("a"), cache=tmp_path))
    assert again == copy and (copy / "1").stat().st_size == 1000
    assert not list((tmp_path / "remote").glob("*.gone")), "what was left is swept when room is made"


def test_what_an_interrupted_fetch_brought_needs_no_room_again(
    store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = _filled(store("a"), {"1": 2_500_000, "2": 2_500_000})
    with small_disk(tmp_path / "disk", 8) as disk:
        part = _cut_off(monkeypatch, address, disk, "2")
        assert [path.name for path in part.iterdir()] == ["1"]
        (part / ".2.4711.tmp").write_bytes(bytes(1_000_000))  # as a process leaves it that is killed
        ballast = fill(disk, leave=2_000_000)
        with pytest.raises(DiskFull, match=r"needs 2.5 MB, [12][.\d]* MB are free"):
            local_copy(_filled(store("b"), {"1": 2_500_000}), cache=disk, limit=10_000_000)
        copy = Path(local_copy(address, cache=disk, limit=10_000_000))
        assert ballast.exists() and sorted(path.name for path in copy.iterdir()) == ["1", "2"]


def test_the_default_limit_counts_what_has_come_as_this_copys(
    store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = _filled(store("a"), {"1": 3_000_000, "2": 1_000_000})
    with small_disk(tmp_path / "disk", 6) as disk:
        _cut_off(monkeypatch, address, disk, "2")
        assert len(list(Path(local_copy(address, cache=disk)).iterdir())) == 2


def test_what_is_left_of_another_version_goes_where_room_is_short(
    store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = _filled(store("a"), {"1": 100_000, "2": 100_000})
    old = _cut_off(monkeypatch, address, tmp_path, "2")
    _filled(address, {"1": 100_000, "2": 100_000}, seed=1)
    copy = Path(local_copy(address, cache=tmp_path, limit=250_000))
    assert copy.is_dir() and not old.exists()


def test_what_a_living_process_fetches_stays(
    store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = _filled(store("a"), {"1": 100_000, "2": 100_000})
    part = _cut_off(monkeypatch, address, tmp_path, "2")
    copy = part.with_name(part.name[1:].removesuffix(".part"))
    hold = (
        "import sys, pathlib; from inception_v4.storage.fetch import _hold; _hold(pathlib.Path(sys.argv[1]));"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(copy)], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert not _remove(part)
        with pytest.raises(StorageError, match=r"with the 0.1 MB of copies in use .* more than the 0.25 MB"):
            local_copy(_filled(store("b"), {"1": 200_000}), cache=tmp_path, limit=250_000)
        assert (part / "1").is_file()
    assert _remove(part) and not part.exists()


def test_a_file_of_a_copy_that_was_removed_meanwhile_is_counted_as_nothing(tmp_path: Path) -> None:
    """Two processes that make room at once."""
    copy = tmp_path / "a-1"
    copy.mkdir()
    assert _remove(copy) and _remove(copy) and not copy.exists()
