from __future__ import annotations

import hashlib
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from cifar_files import PER_FILE, binary_files, records
from photos import class_folders
from torchvision import datasets

from inception_v4.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES, DownloadFailed
from inception_v4.data.sources import Source, open_source
from inception_v4.distributed import World
from inception_v4.settings.schema import Data


class _Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def _open(root: Path | None, split: str, dataset: str = "cifar10", **settings) -> Source:
    data = Data(dataset=dataset, data_dir=str(root) if root else None, **settings)
    return open_source(data, split, world=World(), seed=0)


def _pickles(monkeypatch: pytest.MonkeyPatch, root: Path, dataset: str) -> Path:
    """The python layout with random pictures; torchvision's checksums are set to those of the files."""
    base = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
    folder = root / base.base_folder
    folder.mkdir(parents=True)
    key, classes = ("labels", 10) if dataset == "cifar10" else ("fine_labels", 100)
    lists = {}
    for attribute in ("train_list", "test_list"):
        lists[attribute] = []
        for name, _ in getattr(base, attribute):
            data, labels = records(len(name) + sum(map(ord, name)), classes)
            (folder / name).write_bytes(pickle.dumps({"data": data, key: labels.tolist()}))
            lists[attribute].append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
        monkeypatch.setattr(base, attribute, lists[attribute])
    meta = folder / base.meta["filename"]
    meta.write_bytes(pickle.dumps({base.meta["key"]: ["x"] * classes}))
    monkeypatch.setattr(base, "meta", {**base.meta, "md5": hashlib.md5(meta.read_bytes()).hexdigest()})
    return folder


TRAIN_BIN = [f"data_batch_{i}.bin" for i in range(1, 6)]


def _same(a: Source, b: Source) -> bool:
    return a.labels == b.labels and all(torch.equal(a.load(i), b.load(i)) for i in range(len(a)))


def test_cifar10_pickles_and_binaries_in_every_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = _pickles(monkeypatch, tmp_path / "py", "cifar10")
    train, test = _open(folder, "train"), _open(tmp_path / "py", "val")
    assert (len(train), len(test)) == (5 * PER_FILE, PER_FILE)
    assert train.class_names == CIFAR10_CLASSES
    assert train.load(0).shape == (3, 32, 32)
    folder.rename(tmp_path / "renamed")
    assert _same(train, _open(tmp_path / "renamed", "train"))

    binary_files(tmp_path / "bin" / "cifar-10-batches-bin", [*TRAIN_BIN, "test_batch.bin"])
    for root in (tmp_path / "bin", tmp_path / "bin" / "cifar-10-batches-bin"):
        assert _same(train, _open(root, "train")) and _same(test, _open(root, "val"))
    assert not _same(train, test)

    binary_files(tmp_path / "zoo" / "cifar-10-batches-bin", TRAIN_BIN)
    binary_files(tmp_path / "zoo" / "cifar-10-verify-bin", ["test_batch.bin"])
    for root in (tmp_path / "zoo", tmp_path / "zoo" / "cifar-10-batches-bin", tmp_path / "zoo" / "cifar-10-verify-bin"):
        assert _same(train, _open(root, "train")) and _same(test, _open(root, "val"))


def test_cifar100_takes_the_fine_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = _pickles(monkeypatch, tmp_path / "py", "cifar100")
    binary_files(tmp_path / "bin" / "cifar-100-binary", ["train.bin", "test.bin"], "cifar100")
    for split in ("train", "val"):
        pickled, binary = _open(folder, split, "cifar100"), _open(tmp_path / "bin", split, "cifar100")
        assert _same(pickled, binary) and binary.class_names == CIFAR100_CLASSES
    assert len(CIFAR100_CLASSES) == 100 and list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_a_changed_pickle_is_refused_unopened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    folder = _pickles(monkeypatch, tmp_path, "cifar10")
    (folder / name).write_bytes(pickle.dumps({"data": _Bomb(tmp_path / "ran"), "labels": []}))
    with pytest.raises(ValueError, match=rf"{name} is not the original \(checksum\); pickles can run code"):
        _open(folder, "train")
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / name).read_bytes())["data"].close()
    assert (tmp_path / "ran").exists(), "the bomb works"
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        _open(folder, "train")


def test_damaged_binaries(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    binary_files(folder, TRAIN_BIN)
    whole = (folder / "data_batch_2.bin").read_bytes()
    (folder / "data_batch_2.bin").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin has 12291 bytes, not a multiple of 3073"):
        _open(tmp_path, "train")
    (folder / "data_batch_2.bin").write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(ValueError, match="has a label 10"):
        _open(tmp_path, "train")
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(ValueError, match=r"cifar-10-batches-bin lacks data_batch_2\.bin"):
        _open(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"no CIFAR-10 in .*: give data_dir \(with cifar-10-batches-py"):
        _open(tmp_path, "val")


def test_folders_of_pictures(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"airplane": 3, "cat": 2}, size=32)
    class_folders(tmp_path / "test", {"airplane": 1, "cat": 1}, size=32)
    assert (len(_open(tmp_path, "train")), len(_open(tmp_path, "val"))) == (5, 2)
    class_folders(tmp_path / "val", {"airplane": 2, "cat": 2}, size=32)
    assert len(_open(tmp_path, "val")) == 4


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The archive, served over HTTP; its path."""
    folder = _pickles(monkeypatch, tmp_path / "remote", "cifar10")
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        yield archive
        server.shutdown()
        thread.join()


def test_download(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="dataset_download true"):
        _open(tmp_path / "new", "train")
    source = _open(tmp_path / "new", "train", dataset_download=True)
    assert _same(source, _open(tmp_path / "remote", "train"))
    assert [file.name for file in (tmp_path / "new").iterdir() if not file.name.startswith(".")] == [
        "cifar-10-batches-py"
    ]
    remote.unlink()
    assert len(_open(tmp_path / "new", "val", dataset_download=True)) == PER_FILE, "not fetched twice"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DownloadFailed, match="cannot fetch CIFAR-10 from http:"):
        _open(None, "train", dataset_download=True)


def test_a_partial_download_is_never_taken(remote: Path, tmp_path: Path) -> None:
    whole = remote.read_bytes()
    remote.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DownloadFailed, match="corrupted"):
        _open(tmp_path / "new", "train", dataset_download=True)
    assert not (tmp_path / "new" / "cifar-10-batches-py").exists()
    remote.write_bytes(whole)
    assert len(_open(tmp_path / "new", "train", dataset_download=True)) == 5 * PER_FILE
