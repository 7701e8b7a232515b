from __future__ import annotations

from pathlib import Path

import pytest

from inception_v4.data.folders import (
    check_same_classes,
    class_folders,
    few,
    missing,
    nearest,
    picture_files,
    stand_in,
)


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


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    for name in ("ape/000.jpg", "ape/deep/001.jpg", "other/002.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "ape" / "self").symlink_to(".")
    (tmp_path / "ape" / "deep" / "up").symlink_to("..")
    (tmp_path / "ape" / "linked").symlink_to("../other")
    (tmp_path / "other" / "back").symlink_to("../ape")
    found = sorted(str(Path(file).relative_to(tmp_path / "ape")) for file in picture_files(tmp_path / "ape"))
    assert found == ["000.jpg", "deep/001.jpg", "linked/002.jpg"]
    assert list(picture_files(tmp_path / "nowhere")) == []


@pytest.mark.parametrize(
    ("split", "names", "meant"),
    [
        ("train", ["rain", "sun"], None),
        ("train", ["rain", "trian"], "trian"),
        ("train", ["trainers", "Training_Set"], "Training_Set"),
        ("train", ["training shoes", "trains"], None),
        ("train", ["train2017"], "train2017"),
        ("val", ["valley", "vale"], None),
        ("val", ["valley", "vaild"], "vaild"),
        ("val", ["Validation"], "Validation"),
        ("val", ["valset"], "valset"),
        ("holdout", ["houldot", "houses"], "houldot"),
    ],
)
def test_which_name_stands_for_a_split(split: str, names: list[str], meant: str | None) -> None:
    assert stand_in(split, names) == meant
    if meant:
        assert nearest(split, names) == meant
