from __future__ import annotations

import hashlib
import multiprocessing
import time
from pathlib import Path

import pytest

from inception_v4.files import build_once, cache_dir, hash_ahead, sha256_of


def test_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "inception-v4"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "inception-v4"


def test_an_interrupted_build_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    def interrupted(part: Path) -> None:
        (part / "one").write_text("1")
        raise KeyboardInterrupt

    folder = tmp_path / "data" / "set"
    with pytest.raises(KeyboardInterrupt):
        build_once(folder, interrupted)
    assert not folder.exists()

    def resumed(part: Path) -> None:
        assert (part / "one").read_text() == "1"
        (part / "two").write_text("2")

    assert build_once(folder, resumed) == folder
    assert sorted(file.name for file in folder.iterdir()) == ["one", "two"]
    build_once(folder, interrupted)  # complete: not built again


def _slow_build(folder: Path) -> None:
    def build(part: Path) -> None:
        with (folder.parent / "builds").open("a") as log:
            log.write("x")
        time.sleep(0.2)
        (part / "file").write_text("done")

    build_once(folder, build)
    assert (folder / "file").read_text() == "done"


def test_concurrent_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_slow_build, args=(tmp_path / "set",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "builds").read_text() == "x"


def test_a_file_that_is_read_ahead_has_its_own_digest(tmp_path: Path) -> None:
    expected = {}
    for name, content in {"one": b"1" * 3_000_000, "two": b""}.items():
        (tmp_path / name).write_bytes(content)
        expected[name] = hashlib.sha256(content).hexdigest()
    hash_ahead([tmp_path / "one", tmp_path / "two"])
    for _ in range(2):
        assert {name: sha256_of(tmp_path / name) for name in expected} == expected


def test_a_file_that_changes_or_goes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    hash_ahead([path])
    path.write_bytes(b"newer")
    assert sha256_of(path) == hashlib.sha256(b"newer").hexdigest()
    hash_ahead([path])
    path.unlink()
    with pytest.raises(FileNotFoundError):
        sha256_of(path)
    with pytest.raises(FileNotFoundError):
        hash_ahead([path])
