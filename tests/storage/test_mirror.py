"""A run directory's copy in object storage: follows by itself, survives an outage, and is told when it is not whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import small_disk
from moto.server import ThreadedMotoServer
from running import tiny

from inception_v4.accelerator import select
from inception_v4.distributed import World
from inception_v4.settings.recipes import load_config
from inception_v4.storage import mirror as module
from inception_v4.storage.lock import FolderLock
from inception_v4.storage.mirror import Mirror, NotUploaded, bring_back
from inception_v4.storage.remote import Place, RemoteFile, StorageError
from inception_v4.training.checkpoint import list_checkpoints, load_checkpoint
from inception_v4.training.folder import RunFolder, local_place
from inception_v4.training.train import prepare
from inception_v4.weights import read_weights


def _names(address: str) -> list[str]:
    return [entry.name for entry in Place(address).entries()]


def _until(true: Callable[[], bool], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not come to pass in {seconds:g} seconds"
        time.sleep(0.05)


def test_the_copy_follows_the_folder(store: Callable[[str], str], tmp_path: Path) -> None:
    folder, address = tmp_path / "run", store("runs/a")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-1.pt").write_bytes(b"first")
    (folder / "run.lock").write_text("not for others")
    (folder / ".best.tmp").write_text("half")
    said: list[str] = []
    mirror = Mirror(folder, address, said.append)
    mirror.follow()
    _until(lambda: _names(address) == ["checkpoints/step-1.pt"])
    (folder / "checkpoints" / "step-2.pt").write_bytes(b"second")
    (folder / "checkpoints" / "step-1.pt").unlink()
    with open(folder / "metrics.jsonl", "ab") as records:
        records.write(b'{"step": 1}\n')
    mirror.follow()
    _until(lambda: _names(address) == ["checkpoints/step-2.pt", "metrics.jsonl"])
    with open(folder / "metrics.jsonl", "ab") as records:
        records.write(b'{"step": 2}\n')
    mirror.close(patience=20)
    bring_back(address, tmp_path / "back")
    assert (tmp_path / "back" / "checkpoints" / "step-2.pt").read_bytes() == b"second"
    assert (tmp_path / "back" / "metrics.jsonl").read_text().count("\n") == 2
    assert not list(folder.glob(".upload*")) and len(said) == 1 and "waiting for 1 files" in said[0]


def test_an_outage_stops_nothing_and_is_made_up_for(
    store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.3)
    folder, address, said = tmp_path / "run", store("runs/b"), []
    folder.mkdir()
    mirror = Mirror(folder, address, said.append)
    files, outage = mirror._place._files, [True]
    send = files.put_file

    def unreliable(*arguments: object, **options: object) -> None:
        if outage[0]:
            raise ConnectionError("nobody listens")
        send(*arguments, **options)

    monkeypatch.setattr(files, "put_file", unreliable)
    (folder / "a").write_bytes(b"1")
    started = time.monotonic()
    mirror.follow()
    assert time.monotonic() - started < 0.1, "training goes on"
    _until(lambda: bool(said))
    assert "not uploaded yet, and tried again" in said[0] and "nobody listens" in said[0]
    with pytest.raises(
        NotUploaded, match=r"1 files of .* did not reach s3://.* within 0.5 s .*nobody listens.*whole in"
    ):
        mirror.close(patience=0.5)
    assert NotUploaded.exit_code == 74 and sum("tried again" in line for line in said) == 1
    outage[0] = False
    mirror.close(patience=20)
    assert _names(address) == ["a"] and any("reached again" in line for line in said)


def test_what_a_killed_upload_left_is_not_written_through(store: Callable[[str], str], tmp_path: Path) -> None:
    """A process of the same number, as in containers, finds another name of a checkpoint where it puts its copy."""
    folder, address = tmp_path / "run", store("runs/c")
    checkpoint = folder / "checkpoints" / "step-1.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"the whole checkpoint")
    (folder / "metrics.jsonl").write_bytes(b"{}\n")
    os.link(checkpoint, folder / f".upload-{os.getpid()}")
    mirror = Mirror(folder, address, print)
    mirror.close(patience=20)
    assert checkpoint.read_bytes() == b"the whole checkpoint" and not list(folder.glob(".upload*"))
    assert _names(address) == ["checkpoints/step-1.pt", "metrics.jsonl"]


def test_a_run_that_begins_sweeps_what_killed_ones_left(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "step-1.pt").write_bytes(b"whole")
    os.link(checkpoints / "step-1.pt", tmp_path / "run" / ".upload-4711")
    for place in (tmp_path / "run", checkpoints):
        (place / ".last.4711.tmp").write_bytes(b"half")
    with FolderLock(print) as lock:
        RunFolder(tmp_path / "run", 3, lock).begin(tiny(tmp_path / "run"))
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file() and "lock" not in path.name}
    assert left == {"config.yaml", "step-1.pt"} and (checkpoints / "step-1.pt").read_bytes() == b"whole"


def test_checkpoints_on_another_disk_are_copied_where_they_cannot_be_linked(
    store: Callable[[str], str], tmp_path: Path
) -> None:
    folder, address, said = tmp_path / "run", store("runs/d"), []
    folder.mkdir()
    with small_disk(folder / "checkpoints", 4) as disk:
        (disk / "step-1.pt").write_bytes(b"whole")
        with pytest.raises(OSError, match="cross-device"):
            os.link(disk / "step-1.pt", folder / "other")
        mirror = Mirror(folder, address, said.append)
        mirror.close(patience=20)
    assert _names(address) == ["checkpoints/step-1.pt"] and len(said) == 1 and "waiting for 1 files" in said[0]


def test_what_has_gone_from_the_copy_by_itself_is_removed(store: Callable[[str], str], tmp_path: Path) -> None:
    for number, address in enumerate((store("runs/e"), f"file://{tmp_path}/copy", f"memory://{tmp_path.name}/copy")):
        folder, said = tmp_path / str(number), []
        folder.mkdir()
        (folder / "a").write_bytes(b"1")
        mirror = Mirror(folder, address, said.append)
        mirror.follow()
        _until(lambda address=address: _names(address) == ["a"])
        Place(address).delete("a")
        (folder / "a").unlink()
        (folder / "b").write_bytes(b"2")
        mirror.close(patience=20)
        assert _names(address) == ["b"] and not any("tried again" in line for line in said)


def _run_with(folder: Path, step: int, content: bytes) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / f"step-{step:08d}.pt").write_bytes(content)
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl"):
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(("ours", "theirs", "expected"), [(300, 200, b"ours"), (200, 200, b"ours"), (9, 10, b"theirs")])
def test_newer_local_files_are_not_exchanged_for_an_older_copy(
    store: Callable[[str], str], tmp_path: Path, ours: int, theirs: int, expected: bytes
) -> None:
    """An outage kept the copy behind, and the local pruning has removed the checkpoint that the copy has."""
    Mirror(_run_with(tmp_path / "earlier", theirs, b"theirs"), store("runs/f"), print).close(patience=20)
    folder = _run_with(tmp_path / "run", ours, b"ours")
    bring_back(store("runs/f"), folder)
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl"):
        assert (folder / name).read_bytes() == expected, name
    newest = max((folder / "checkpoints").iterdir())
    assert newest.name == f"step-{max(ours, theirs):08d}.pt" and newest.read_bytes() == expected


def test_what_was_interrupted_is_brought_back_again(
    store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mirror(_run_with(tmp_path / "earlier", 5, b"theirs"), store("runs/g"), print).close(patience=20)
    get = Place.get

    def unreliable(place: Place, entry: RemoteFile, target: Path) -> None:
        if entry.name == "metrics.jsonl":
            raise StorageError("the line is cut")
        get(place, entry, target)

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(Place, "get", unreliable)
        bring_back(store("runs/g"), tmp_path / "run")
    bring_back(store("runs/g"), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == b"theirs"


def _prepared(address: str, **changes: object):  # type: ignore[no-untyped-def]
    lock = FolderLock(print)
    return prepare(
        tiny(Path("unused"), output_dir=address, val_samples=4, **changes), select("cpu"), World(), lock
    ), lock


@pytest.mark.slow
def test_a_server_that_is_stopped_and_started(
    server: ThreadedMotoServer, store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 1.0)
    folder, address, said = tmp_path / "run", store("runs/c"), []
    folder.mkdir()
    mirror = Mirror(folder, address, said.append)
    (folder / "a").write_bytes(b"1")
    mirror.follow()
    _until(lambda: _names(address) == ["a"])
    host, port = server.get_host_and_port()
    server.stop()
    (folder / "b").write_bytes(b"2")
    mirror.follow()
    _until(lambda: bool(said), seconds=120)
    assert "not uploaded yet, and tried again" in said[0]
    again = ThreadedMotoServer(ip_address=host, port=port, verbose=False)
    again.start()
    server._server, server._thread = again._server, again._thread
    mirror.close(patience=120)
    assert _names(address) == ["a", "b"] and "reached again" in said[-1]


@pytest.mark.long
def test_a_run_whose_directory_is_an_address(store: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    address = store("runs/photos")
    loop, lock = _prepared(address, max_steps=7)
    with lock, loop.folder.mirrored(patience=60):
        loop.job.learner.course.step = 6
        loop._save()
        loop._settle()
        loop.log.close()
    names = _names(address)
    assert {"config.yaml", "last.safetensors", "checkpoints/step-00000006.pt"} <= set(names)
    assert not [name for name in names if "lock" in name or "tmp" in name]
    config = Place(address)
    entry = next(e for e in config.entries() if e.name == "config.yaml")
    config.get(entry, loop.folder.path / "copy.yaml")
    assert load_config(loop.folder.path / "copy.yaml")[0].run.output_dir == address
    weights = read_weights(address)
    assert weights.info.num_classes == 2 and weights.info.extra["step"] == 6
    with pytest.raises(ValueError, match="holds a run already"):
        _prepared(address)
    # Another machine has nothing but the address.
    local_place(address).rename(local_place(address).with_name("gone"))
    with pytest.raises(ValueError, match="holds a run already"):
        _prepared(address)
    again, lock = _prepared(address, max_steps=7, resume="auto")
    with lock:
        assert again.job.learner.step == 6
        assert load_checkpoint(list_checkpoints(again.folder.checkpoints)[-1])["step"] == 6
        again.log.close()
        again.folder.mirror.close(patience=60)
