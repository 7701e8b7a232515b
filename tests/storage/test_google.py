"""gs:// addresses, against a server that speaks Google's protocol."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from exported import drawn, run
from PIL import Image
from running import TINY, as_flags

from inception_v4.storage import address_lock
from inception_v4.storage.address_lock import AddressLock
from inception_v4.storage.fetch import local_copy
from inception_v4.storage.owner import LOCK_NAME, FolderInUse
from inception_v4.storage.remote import Place, RemoteFile, StorageError, _agrees, _version

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # gcsfs's way


def _file(path: Path, size: int, seed: int = 0) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def test_googles_checksum_is_compared_and_nothing_is_read_back(
    google_store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(google_store("there"))
    monkeypatch.setattr(place._files, "open", lambda *a, **o: pytest.fail("read back"))
    source = _file(tmp_path / "large", (11 << 20) + 3)
    place.put(source, "large")
    (entry,) = place.entries()
    assert entry.size == (11 << 20) + 3 and _agrees(entry.version, source)
    place.get(entry, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    with pytest.raises(StorageError, match="not those that are there"):
        place.get(RemoteFile("large", entry.size, "0" * 32), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_objects_that_were_composed_have_a_crc32c_alone(google: str, tmp_path: Path) -> None:
    (tmp_path / "digits").write_bytes(b"123456789")
    told = _version({"crc32c": "4waSgw==", "etag": "CLi", "mtime": 1})  # the check value of the CRC's definition
    assert _agrees(told, tmp_path / "digits")
    (tmp_path / "digits").write_bytes(b"123456780")
    assert _agrees(told, tmp_path / "digits") is False


def test_a_changed_original_is_fetched_anew_and_what_is_not_there_is_one_line(
    google_store: Callable[[str], str], tmp_path: Path
) -> None:
    place = Place(google_store("data"))
    place.put(_file(tmp_path / "a", 1000), "cats/a.jpg")
    first = local_copy(place.address, cache=tmp_path / "cache")
    assert local_copy(place.address, cache=tmp_path / "cache") == first
    place.put(_file(tmp_path / "a", 1000, seed=1), "cats/a.jpg")
    assert local_copy(place.address, cache=tmp_path / "cache") != first
    for nowhere in (google_store("none"), "gs://no-such-bucket-here/x"):
        with pytest.raises(StorageError, match=rf"{nowhere} (holds no files|does not exist)"):
            local_copy(nowhere, cache=tmp_path / "cache")


def test_an_address_has_one_writer(google_store: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_lock, "SETTLE", 0.1)
    lock, address = AddressLock(print), google_store("runs/a")
    lock.acquire(address)
    with pytest.raises(FolderInUse, match=f"written to by process {os.getpid()} on"):
        AddressLock(print).acquire(address)
    lock.release()
    assert Place(address).read(LOCK_NAME) is None


@pytest.mark.long
def test_data_in_a_run_out_and_predictions_from_it(
    google_store: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, picture in enumerate(drawn(18)):
        kind = ("star", "circle", "triangle")[number % 3]
        split = "train" if number < 12 else "val"
        file = tmp_path / f"{number}.png"
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)
        Place(google_store("data")).put(file, f"{split}/{kind}/{number}.png")
    settings = {name: value for name, value in TINY.items() if not name.startswith(("shapes", "dataset", "recipe"))}
    settings |= {"max_steps": 2, "epochs": 1, "warmup_epochs": 0, "num_classes": 3, "upload_wait": 1}
    words = as_flags(settings | {"data_dir": google_store("data"), "output_dir": google_store("runs/one")})
    code, _, err = run(capsys, "train", *words)
    assert code == 0, err
    names = {entry.name for entry in Place(google_store("runs/one")).entries()}
    assert {"config.yaml", "metrics.jsonl", "best.safetensors", "checkpoints/step-00000002.pt"} <= names
    assert LOCK_NAME not in names
    code, out, err = run(
        capsys, "predict", google_store("data/val"), "--ckpt-path", google_store("runs/one"), "--csv", "--device", "cpu"
    )
    assert code == 0 and len(out.splitlines()) > 6 and ".png" in out, err
