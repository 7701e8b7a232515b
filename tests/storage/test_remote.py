"""Object storage, against a store that speaks S3's protocol: whole or absent, checked, and no secret anywhere."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from disks import fill, small_disk

from inception_v4.cli.main import run
from inception_v4.files import DiskFull
from inception_v4.settings.addresses import is_address, redacted, require_plain
from inception_v4.storage import remote
from inception_v4.storage.fetch import _used, local_copy
from inception_v4.storage.remote import Place, RemoteFile, StorageError

SECRET = "hunter2-the-password"


def _file(path: Path, size: int = 100_000, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


@pytest.fixture(params=["s3", "obs", "gs", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "gs":
        return Place(request.getfixturevalue("google_store")("there"))
    if request.param == "obs":
        monkeypatch.setenv("OBS_ENDPOINT", os.environ["AWS_ENDPOINT_URL"])
    root = f"file://{tmp_path}/there" if request.param == "file" else f"{request.param}://{bucket}/there"
    return Place(root)


def test_files_go_there_and_come_back(place: Place, tmp_path: Path) -> None:
    source = _file(tmp_path / "a.bin")
    place.put(source, "deep/a.bin")
    place.put(_file(tmp_path / "b.bin", 10), "b.bin")
    entries = place.entries()
    assert [(e.name, e.size) for e in entries] == [("b.bin", 10), ("deep/a.bin", 100_000)]
    place.get(entries[1], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert [e.name for e in Place(f"{place.address}/deep/a.bin").entries()] == [""]
    place.delete("b.bin")
    assert [e.name for e in place.entries()] == ["deep/a.bin"]


def test_what_arrives_otherwise_is_noticed(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's own library is made to change a byte of every file on its way there."""
    source, send = _file(tmp_path / "a.bin"), place._files.put_file

    def damaged(local: str, there: str, **options: object) -> None:
        wrong = bytearray(Path(local).read_bytes())
        wrong[7] ^= 1
        (tmp_path / "wrong").write_bytes(wrong)
        send(str(tmp_path / "wrong"), there, **options)

    monkeypatch.setattr(place._files, "put_file", damaged)
    with pytest.raises(StorageError, match="what arrived is not what was sent"):
        place.put(source, "a.bin")


def test_large_objects_in_parts_are_checked_by_their_parts(
    store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART", 5 << 20)
    source, place = _file(tmp_path / "large", (11 << 20) + 3), Place(store("parts"))
    place.put(source, "large")
    (entry,) = place.entries()
    assert entry.version.strip('"').endswith("-3") and remote._agrees(entry.version, source)
    assert not remote._agrees(entry.version, _file(tmp_path / "other", (11 << 20) + 3, seed=1))
    place.get(entry, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_an_object_that_was_damaged_is_not_taken(store: Callable[[str], str], tmp_path: Path) -> None:
    place = Place(store("x"))
    place.put(_file(tmp_path / "a"), "a")
    (entry,) = place.entries()
    with pytest.raises(StorageError, match="not those that are there"):
        place.get(RemoteFile("a", entry.size, '"' + "0" * 32 + '"'), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_copies_are_made_once_and_anew_when_the_original_changes(
    store: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, cache = Place(store("data")), tmp_path / "cache"
    place.put(_file(tmp_path / "a"), "cats/a.jpg")
    place.put(_file(tmp_path / "b"), "notes.txt")
    wanted = lambda name: name.endswith(".jpg")  # noqa: E731
    first = local_copy(place.address, cache=cache, wanted=wanted)
    assert [p.name for p in Path(first).rglob("*") if p.is_file()] == ["a.jpg"]
    assert "fetching" in capsys.readouterr().err
    assert local_copy(place.address, cache=cache, wanted=wanted) == first and not capsys.readouterr().err
    place.put(_file(tmp_path / "a", seed=2), "cats/a.jpg")
    assert local_copy(place.address, cache=cache, wanted=wanted) != first
    file = local_copy(f"{place.address}/notes.txt", cache=cache)
    assert Path(file).name == "notes.txt" and Path(file).read_bytes() == (tmp_path / "b").read_bytes()
    assert local_copy("/some/path") == "/some/path"


def test_the_least_recently_used_copies_go_and_those_in_use_stay(store: Callable[[str], str], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in "abc":
        Place(store(name)).put(_file(tmp_path / name), "file")

    def fetch(name: str) -> Path:
        """As a process does that then ends: its files are closed, and its copies in use no more."""
        copy = local_copy(store(name), cache=cache, limit=250_000)
        _used.pop().close()
        return Path(copy)

    a, b = fetch("a"), fetch("b")
    os.utime(a, (1, 1))
    assert Path(local_copy(store("b"), cache=cache, limit=250_000)) == b
    assert fetch("c").is_dir() and not a.is_dir() and b.is_dir()
    with pytest.raises(StorageError, match=r"more than the 0.15 MB that they may take: raise the limit"):
        local_copy(store("a"), cache=cache, limit=150_000)
    assert b.is_dir(), "this process reads it"


def test_what_is_not_there_and_who_is_not_known_are_one_line(
    store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match=r"s3://bucket-\d+/none holds no files: check the address"):
        local_copy(store("none"), cache=tmp_path)
    with pytest.raises(StorageError, match=r"s3://no-such-bucket-here/x"):
        local_copy("s3://no-such-bucket-here/x", cache=tmp_path)
    for name in ("OBS_ENDPOINT", "S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StorageError, match="set OBS_ENDPOINT"):
        Place("obs://bucket/x")


def test_names_outside_the_folder_are_refused(store: Callable[[str], str]) -> None:
    files = fsspec.filesystem("s3")
    files.pipe_file(store("data/../../etc/cron")[5:], b"x")
    with pytest.raises(StorageError, match="no name inside a folder"):
        Place(store("data")).entries()


@pytest.mark.parametrize(
    "address", [f"s3://me:{SECRET}@bucket/x", f"s3://{SECRET}@bucket/x", f"s3://bucket/x?X-Amz-Signature={SECRET}"]
)
def test_addresses_with_a_secret_are_refused_and_never_shown(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device=cpu", "--workers=0"]
    commands = [
        ["train", f"--data-dir={address}", *words], ["train", f"--output-dir={address}", *words],
        ["train", f"--resume={address}", "--dry-run"], ["train", f"--upload-to={address}", "--dry-run"],
        ["validate", f"--ckpt-path={address}", "--dry-run"], ["convert", address, str(tmp_path / "x.safetensors")],
        ["convert", "none.pth", f"{address}/x.safetensors"], ["predict", address, "--ckpt-path=none.pth"],
        ["predict", "x.jpg", f"--ckpt-path={address}"],
    ]  # fmt: skip
    for words in commands:
        assert run(words) != 0
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err, words
        assert "carries a login or a signature" in said.err or "none.pth" in said.err, (words, said.err)


def test_an_error_of_a_store_shows_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(StorageError) as caught, remote._told("s3://bucket/x"):
        raise RuntimeError(f"signature of {SECRET} does not match")
    assert SECRET not in str(caught.value) and "signature of *** does not match" in str(caught.value)
    assert caught.value.__cause__ is None and redacted(SECRET) == "***"


def test_addresses_and_paths() -> None:
    assert is_address("s3://b/x") and not is_address("C:\\x") and not is_address("runs/x") and not is_address(None)
    with pytest.raises(ValueError, match=r"a web address: download it .* begin with s3, obs"):
        require_plain("ftp://host/x")
    require_plain("s3://bucket/folder")


def test_a_full_disk_stays_a_full_disk(store: Callable[[str], str], tmp_path: Path) -> None:
    Place(store("data")).put(_file(tmp_path / "a", 3_000_000), "a")
    with small_disk(tmp_path / "disk", 4) as disk:
        fill(disk, leave=1_000_000)
        with pytest.raises(DiskFull, match=r"a copy of s3://.* needs 3 MB, 0.9[\d.]* MB are free"):
            local_copy(store("data"), cache=disk, limit=10_000_000)
