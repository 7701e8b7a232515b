"""The archives are built as ImageNet's are: a tar of tars, a flat tar, a development kit with meta.mat."""

from __future__ import annotations

import base64
import errno
import io
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from photos import encoded

from inception_v4.cli.main import run
from inception_v4.data import imagenet
from inception_v4.data.shapes import draw_shape
from inception_v4.data.sources import open_source
from inception_v4.distributed import World
from inception_v4.settings.schema import Data

WNIDS = ("n01440764", "n02123045", "n01496331")
TRUTH = (3, 1, 2, 2, 3)

# Written by scipy.io.savemat: a structure array like that of ImageNet's meta.mat, three leaves and their parent.
META = base64.b64decode(
    "TUFUTEFCIDUuMCBNQVQtZmlsZSAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIC"
    "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAAAAAAAAAAAAABSU0PAAAAHAEAAHic42NgYDjAxsAARAwcQMzEAAGsUD4LEDNCMTsQF1fmFaeW"
    "FAPlWRj4oOIhQOzpExwW5GxkYGgU7+nCEO4HJOCgPL8opRjOS8/JL0bw8kpz45MzMnNSilLzGBgQLBgA2WHBgHAfG5r7GJEwCHBCxSHggz1IvwOSfh"
    "Ys+jmR9AtA+XkGhiYmBuZmJkjuIGQOD5o5IH5Jal5yho5CSGZeciLMHAM85sAAsjmUhwOmvej60e3lpI69DuSHv5GhkbGBiSmSOwiZQ2z4EzKHgwHT"
    "PYkKaZnFGQqHV1InXAYoPjgoiA9DE0szY2NDJHcQMmc0P6DbK0BB+AOBobmJAZI7CJkzeMMfkg49COhnRtMvAdf/wR7KcICZBwB7J0L3"
)


def _jpeg(seed: int) -> bytes:
    return encoded(draw_shape("circle", seed, 24))


def _tar(path: Path | io.BytesIO, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) if isinstance(path, Path) else tarfile.open(fileobj=path, mode=mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _inner(wnid: str, count: int) -> bytes:
    buffer = io.BytesIO()
    _tar(buffer, {f"{wnid}_{i}.JPEG": _jpeg(100 * WNIDS.index(wnid) + i) for i in range(count)})
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _tar(tmp_path / imagenet.TRAIN_TAR, {f"{wnid}.tar": _inner(wnid, 2 + k) for k, wnid in enumerate(WNIDS)})
    _tar(tmp_path / imagenet.VAL_TAR, {f"ILSVRC2012_val_{i:08d}.JPEG": _jpeg(900 + i) for i in range(1, 6)})
    kit = {
        "data/ILSVRC2012_validation_ground_truth.txt": "\n".join(map(str, TRUTH)).encode() + b"\n",
        "data/meta.mat": META,
    }
    _tar(tmp_path / f"{imagenet.DEVKIT}.tar.gz", {f"{imagenet.DEVKIT}/{k}": v for k, v in kit.items()}, "w:gz")
    return tmp_path


def _open(root: Path, split: str, *, extract: bool = True):
    data = Data(dataset="imagenet", data_dir=str(root), extract=extract)
    return open_source(data, split, world=World(), seed=0)


def test_both_splits_with_their_labels(root: Path) -> None:
    train, val = _open(root, "train"), _open(root, "val")
    assert train.class_names == val.class_names == tuple(sorted(WNIDS))
    assert len(train) == 9 and len(val) == 5
    expected = {f"ILSVRC2012_val_{i:08d}.JPEG": WNIDS[number - 1] for i, number in enumerate(TRUTH, start=1)}
    assert {Path(val.name(i)).name: val.class_names[val.labels[i]] for i in range(5)} == expected
    assert (root / "val" / WNIDS[2] / "ILSVRC2012_val_00000001.JPEG").read_bytes() == _jpeg(901)
    assert (root / "train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG").read_bytes() == _jpeg(102)
    assert not list(root.glob(".*.part"))


def test_nothing_is_unpacked_unasked(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ILSVRC2012_img_train\.tar and no folder 'train': give extract true"):
        _open(root, "train", extract=False)
    assert not (root / "train").exists()


def test_devkit_as_a_folder_or_missing(root: Path) -> None:
    with tarfile.open(root / f"{imagenet.DEVKIT}.tar.gz") as tar:
        tar.extractall(root, filter="data")
    (root / f"{imagenet.DEVKIT}.tar.gz").unlink()
    assert len(_open(root, "val")) == 5
    shutil.rmtree(root / "val")
    shutil.rmtree(root / imagenet.DEVKIT)
    with pytest.raises(FileNotFoundError, match=r"classes are in ILSVRC2012_devkit_t12\.tar\.gz, which is not in"):
        _open(root, "val")


def _link(tar: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("n01440764_0.JPEG")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(info)


def _device(tar: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("n01440764_0.JPEG")
    info.type = tarfile.FIFOTYPE
    tar.addfile(info)


def _named(name: str) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))

    return add


@pytest.mark.parametrize(
    "add", [_link, _device, *map(_named, ("../n01440764_0.JPEG", "/tmp/n01440764_0.JPEG", "x.py"))]
)
def test_hostile_members_are_refused(root: Path, add: Callable[[tarfile.TarFile], None]) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        add(tar)
    _tar(root / imagenet.TRAIN_TAR, {"n01440764.tar": inner.getvalue()})
    before = {file.name for file in root.parent.iterdir()}
    with pytest.raises(ValueError, match="has an unexpected member"):
        _open(root, "train")
    assert not (root / "train").exists()
    assert not [file for file in root.rglob("*") if file.is_symlink() or file.suffix == ".JPEG"]
    assert {file.name for file in root.parent.iterdir()} == before


@pytest.mark.parametrize("blocks", [1, 20])
def test_a_truncated_archive_is_refused(root: Path, blocks: int) -> None:
    archive = root / imagenet.VAL_TAR
    whole = archive.read_bytes().rstrip(b"\0")
    archive.write_bytes(whole[: -(len(whole) % 512) or None][: 512 * blocks])
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_val\.tar is incomplete"):
        _open(root, "val")


def test_fewer_pictures_than_ground_truth(root: Path) -> None:
    _tar(root / imagenet.VAL_TAR, {"ILSVRC2012_val_00000001.JPEG": _jpeg(1)})
    with pytest.raises(ValueError, match="holds 1 pictures, the ground truth 5"):
        _open(root, "val")


def test_a_full_disk_and_going_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    copy = shutil.copyfileobj

    def full_after_four(source, target) -> None:
        if len(written) == 4:
            target.write(source.read(10))
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(1)
        copy(source, target)

    monkeypatch.setattr(imagenet.shutil, "copyfileobj", full_after_four)
    with pytest.raises(imagenet.DiskFull, match="make room and run again, it goes on where it stopped"):
        _open(root, "train")
    assert not (root / "train").exists()

    def count(source, target) -> None:
        written.append(1)
        copy(source, target)

    monkeypatch.setattr(imagenet.shutil, "copyfileobj", count)
    train = _open(root, "train")
    assert len(train) == 9 and len(written) == 9, "the four complete pictures were not written again"
    assert all(train.load(i).shape == (3, 24, 24) for i in range(9))


def test_too_little_room_is_seen_beforehand(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(imagenet.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(imagenet.DiskFull, match=r"has 0\.0 GB free"):
        _open(root, "train")


def test_the_classes_of_the_development_kit() -> None:
    assert imagenet.read_synsets(META) == {1: "n01440764", 2: "n02123045", 3: "n01496331", 4: "n00001740"}


@pytest.mark.parametrize("end", [0, 100, 132, 200, len(META) - 1])
def test_a_truncated_meta_mat_is_refused(end: int) -> None:
    with pytest.raises(ValueError, match=r"meta\.mat is damaged"):
        imagenet.read_synsets(META[:end])


def test_a_damaged_meta_mat_is_read_or_refused() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(META)
        data[rng.integers(128, len(data))] = rng.integers(256)
        try:
            imagenet.read_synsets(bytes(data))
        except ValueError:
            refused += 1
    assert refused > 200


def test_without_scipy_nothing_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    data = Data(dataset="imagenet", data_dir=str(tmp_path), extract=True)
    with pytest.raises(ValueError, match=r"pip install 'inception-v4\[imagenet\]'"):
        open_source(data, "train", world=World(), seed=0)
    assert list(tmp_path.iterdir()) == []


def test_the_archives_go_into_shards_as_they_are(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    assert run(["pack", str(root), str(target)]) == 0
    assert not (root / "train").exists(), "nothing is unpacked"
    for split in ("train", "val"):
        packed = open_source(Data(dataset="wds", data_dir=str(target)), split, world=World(), seed=0)
        unpacked = _open(root, split)
        assert packed.class_names == unpacked.class_names
        pairs = [sorted((s.content(i), s.labels[i]) for i in range(len(s))) for s in (packed, unpacked)]
        assert pairs[0] == pairs[1] and len(pairs[0]) >= 5
