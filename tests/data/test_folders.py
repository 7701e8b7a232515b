from __future__ import annotations

from pathlib import Path

import pytest

from inception_v4.data.folders import check_same_classes, class_folders, few, missing, picture_files


def test_pictures_at_any_depth_whatever_the_case(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.jpeg", "c.PnG", "deep/er/d.webp", ".hidden.jpg", ".cache/e.jpg", "notes.txt", "f.jpg.bak"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = sorted(str(Path(file).relative_to(tmp_path)) for file in picture_files(tmp_path))
    assert found == ["a.JPG", "b.jpeg", "c.PnG", "deep/er/d.webp"]


def test_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "imagenet" / "validation").mkdir(parents=True)
    assert "val_split: there is no folder 'valid' in" in missing(tmp_path / "imagenet" / "valid", "val_split")
    assert missing(tmp_path / "imagenet" / "valid", "val_split").endswith("did you mean 'validation'?")
    assert missing(tmp_path / "imagnet" / "train", "data_dir").endswith("did you mean 'imagenet'?")
    assert missing(tmp_path / "xyz", "data_dir").endswith("it holds imagenet")


def test_class_sets(tmp_path: Path) -> None:
    for split, names in (("train", "abc"), ("val", "abd")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"differ \(only in .*train: c; only in .*val: d\): give both the same"):
        check_same_classes(tmp_path / "train", tmp_path / "val")
    check_same_classes(tmp_path / "train", tmp_path / "train")
    with pytest.raises(FileNotFoundError, match="holds no class folders"):
        class_folders(tmp_path / "train" / "a")


def test_long_lists_are_cut() -> None:
    assert few(str(i) for i in range(9)) == "0, 1, 2, 3, 4, 5, 6, 7 and 1 more"
