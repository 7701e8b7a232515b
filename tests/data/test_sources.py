from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import class_folders

from inception_v4.data.jpeg import Box
from inception_v4.data.pictures import CorruptImage, read_picture
from inception_v4.data.sources import ArraySource, FolderSource, Source, Subset, balanced, open_source
from inception_v4.distributed import World
from inception_v4.settings.schema import Data

CLASSES = {"cat": 10, "dog": 20, "eel": 3}


def _open(root: Path, split: str, *, seed: int = 0, **settings) -> Source:
    return open_source(Data(data_dir=str(root), **settings), split, world=World(), seed=seed)


def _names(source: Source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_split_folders(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", CLASSES)
    class_folders(tmp_path / "val", {"dog": 2, "cat": 2, "eel": 1})
    train, val = _open(tmp_path, "train"), _open(tmp_path, "val")
    assert train.class_names == val.class_names == ("cat", "dog", "eel")
    assert train.labels == [0] * 10 + [1] * 20 + [2] * 3
    assert _names(train) == sorted(_names(train))
    assert torch.equal(val.load(2), read_picture(tmp_path / "val" / "dog" / "000.jpg"))
    assert len(_open(tmp_path, "val", dataset="imagenet")) == 5


@pytest.mark.parametrize("nested", [True, False])
def test_held_out_part(tmp_path: Path, nested: bool) -> None:
    class_folders(tmp_path / "train" if nested else tmp_path, CLASSES | {"fox": 1})
    train, val = _open(tmp_path, "train", val_fraction=0.2), _open(tmp_path, "val", val_fraction=0.2)
    assert Counter(val.labels) == {0: 2, 1: 4, 2: 1}, "stratified; the only fox stays"
    assert not set(_names(train)) & set(_names(val)) and len(train) + len(val) == 34
    assert _names(val) == _names(_open(tmp_path, "val", val_fraction=0.2))
    assert _names(val) != _names(_open(tmp_path, "val", val_fraction=0.2, seed=1))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    class_folders(tmp_path, {"car": 4, "train": 4})
    assert _open(tmp_path, "train").class_names == ("car", "train")


def test_one_picture_per_class_cannot_be_split(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="one picture per class: there is nothing to hold out"):
        _open(tmp_path, "train")


def test_missing_folders_name_the_nearest(tmp_path: Path) -> None:
    class_folders(tmp_path / "pets" / "train", CLASSES)
    with pytest.raises(FileNotFoundError, match=r"data_dir: there is no folder 'pet' in .*: did you mean 'pets'\?"):
        _open(tmp_path / "pet", "train")
    class_folders(tmp_path / "pets" / "valid", CLASSES)
    with pytest.raises(FileNotFoundError, match=r"val_split: there is no folder 'val' in .*did you mean 'valid'\?"):
        _open(tmp_path / "pets", "train")
    (tmp_path / "pets" / "valid").rename(tmp_path / "pets" / "Validation")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'Validation'\?"):
        _open(tmp_path / "pets", "val")
    (tmp_path / "pets" / "Validation").rename(tmp_path / "pets" / "valid")
    assert len(_open(tmp_path / "pets", "train", val_split="valid")) == 33
    with pytest.raises(FileNotFoundError, match=r"train_split: .*did you mean 'train'\?"):
        _open(tmp_path / "pets", "train", train_split="trian", val_split="valid")
    with pytest.raises(FileNotFoundError, match="val_split"):
        _open(tmp_path / "pets", "val", dataset="imagenet")
    with pytest.raises(ValueError, match="dataset folder needs data_dir"):
        open_source(Data(dataset="folder"), "train", world=World(), seed=0)


def test_classes_whose_names_are_near_to_a_splits(tmp_path: Path) -> None:
    """Folders in class folders make none of them a split: cameras, years, breeds."""
    for name in ("rain", "vale", "valley"):
        class_folders(tmp_path / name, {"cam1": 3, "cam2": 3})
    assert _open(tmp_path, "train").class_names == ("rain", "vale", "valley")
    assert len(_open(tmp_path, "train")) + len(_open(tmp_path, "val")) == 18
    class_folders(tmp_path / "trian", {"cam1": 3})
    with pytest.raises(FileNotFoundError, match=r"train_split: .*did you mean 'trian'\?"):
        _open(tmp_path, "train")
    (tmp_path / "trian").rename(tmp_path / "validation set")
    with pytest.raises(FileNotFoundError, match=r"val_split: .*did you mean 'validation set'\?"):
        _open(tmp_path, "train")
    (tmp_path / "rain").rename(tmp_path / "train")
    (tmp_path / "validation set").rename(tmp_path / "wal")
    with pytest.raises(FileNotFoundError, match=r"val_split: .*did you mean 'val"):
        _open(tmp_path, "train")


@pytest.mark.parametrize("setting", ["train_split", "val_split"])
def test_a_folder_that_was_asked_for_and_is_not_there_is_an_error(tmp_path: Path, setting: str) -> None:
    """Not a reason to hold out training pictures, nor to train on everything."""
    class_folders(tmp_path / "train", CLASSES)
    for split in ("train", "val"):
        with pytest.raises(FileNotFoundError, match=f"{setting}: there is no folder 'q7' in .*: it holds train"):
            _open(tmp_path, split, **{setting: "q7"})
    with pytest.raises(FileNotFoundError, match="val_split: there is no folder 'val' in"):
        _open(tmp_path, "val", val_split="val")
    class_folders(tmp_path / "flat", {"a": 1})
    with pytest.raises(FileNotFoundError, match="a holds no class folders"):
        _open(tmp_path / "flat", "val", val_split="a")


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no class folders"):
        _open(tmp_path, "train")
    class_folders(tmp_path, CLASSES)
    (tmp_path / "gnu").mkdir()
    (tmp_path / "gnu" / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"class folder .*gnu holds no pictures"):
        _open(tmp_path, "train")


def test_different_classes_are_listed(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", CLASSES)
    class_folders(tmp_path / "val", {"cat": 1, "dog": 1, "emu": 1})
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=r"only in .*train: eel; only in .*val: emu"):
            _open(tmp_path, split)


def test_head_smaller_than_the_data(tmp_path: Path) -> None:
    class_folders(tmp_path, CLASSES)
    with pytest.raises(ValueError, match="num_classes 2 is less than the data's 3"):
        _open(tmp_path, "train", num_classes=2)
    assert len(_open(tmp_path, "train", num_classes=5).class_names) == 3


def test_subsets_are_fixed_and_balanced(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", CLASSES)
    class_folders(tmp_path / "val", {"cat": 4, "dog": 4, "eel": 4})
    subset = _open(tmp_path, "train", num_samples=12, val_samples=6)
    assert Counter(subset.labels) == {0: 5, 1: 4, 2: 3}, "as equal as the classes allow"
    assert _names(subset) == _names(_open(tmp_path, "train", num_samples=12))
    assert _names(subset) != _names(_open(tmp_path, "train", num_samples=12, seed=1))
    assert set(_names(subset)) < set(_names(_open(tmp_path, "train", num_samples=20)))
    assert Counter(_open(tmp_path, "val", num_samples=12, val_samples=6).labels) == {0: 2, 1: 2, 2: 2}
    assert torch.equal(subset.load(11), read_picture(subset.name(11)))
    assert len(_open(tmp_path, "train", num_samples=34)) == 33, "at most as many as there are"


def test_parts_of_pictures(tmp_path: Path) -> None:
    class_folders(tmp_path, CLASSES)
    source = FolderSource(tmp_path)
    in_memory = ArraySource(
        np.arange(75, dtype=np.uint8).reshape(1, 5, 5, 3), np.zeros(1), class_names=("a",), title=""
    )
    for some, index in ((source, 7), (Subset(source, [3, 7]), 1), (in_memory, 0)):
        part = some.load_box(index, lambda height, width: Box(1, 2, height - 2, width - 3))
        assert torch.equal(part, some.load(index)[:, 1:-1, 2:-1])


def test_balanced_takes_everything_when_asked() -> None:
    labels = [0, 0, 1, 2, 2, 2]
    assert balanced(labels, 6, seed=3) == list(range(6))
    assert sorted(labels[i] for i in balanced(labels, 3, seed=3)) == [0, 1, 2]


def test_shapes_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = Data(shapes_train=16, shapes_val=8, shapes_size=32)
    train, val = (open_source(data, split, world=World(), seed=0) for split in ("train", "val"))
    assert (len(train), len(val), len(train.class_names)) == (16, 8, 8)
    (folder,) = [f for f in (tmp_path / "inception-v4").iterdir() if f.is_dir()]
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.jpg")}
    open_source(data, "train", world=World(), seed=1)
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*.jpg")} and len(before) == 24
    elsewhere = open_source(
        Data(dataset="shapes", data_dir=str(tmp_path / "here"), shapes_train=16, shapes_val=8, shapes_size=32),
        "train", world=World(), seed=0,
    )  # fmt: skip
    assert Path(elsewhere.name(0)).is_relative_to(tmp_path / "here")
    assert torch.equal(elsewhere.load(5), train.load(5))
    with pytest.raises(ValueError, match="shapes_classes 40"):
        open_source(Data(shapes_classes=40), "train", world=World(), seed=0)


def test_odd_file_names_and_pickling(tmp_path: Path) -> None:
    class_folders(tmp_path, {"größe": 1, "b c": 1})
    (tmp_path / "b c" / "picture ö.jpg").write_bytes((tmp_path / "b c" / "000.jpg").read_bytes())
    source = pickle.loads(pickle.dumps(Subset(FolderSource(tmp_path), [1, 2])))
    assert Path(source.name(0)).name == "picture ö.jpg"
    assert source.load(1).shape[0] == 3
    Path(source.name(1)).write_bytes(b"")
    with pytest.raises(CorruptImage, match=r"größe/000\.jpg"):
        source.load(1)


class _CountingWorld(World):
    entered = 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        type(self).entered += 1
        yield


@pytest.mark.parametrize("dataset", ["shapes", "cifar10", "imagenet"])
def test_processes_wait_for_each_other_whatever_they_find(tmp_path: Path, dataset: str) -> None:
    """A process that looks after the first one is done must still meet the others, or they wait for ever."""
    class_folders(tmp_path / "train", CLASSES)
    class_folders(tmp_path / "val", CLASSES)
    data = Data(
        dataset=dataset, data_dir=str(tmp_path), extract=True, dataset_download=True,
        shapes_train=8, shapes_val=8, shapes_size=16,
    )  # fmt: skip
    _CountingWorld.entered = 0
    for _ in range(2):
        open_source(data, "train", world=_CountingWorld(), seed=0)
    assert _CountingWorld.entered == 2
