"""Lists of pictures: CSV, TSV, JSON lines and Parquet mean the same data as folders do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from photos import class_folders
from running import tiny
from temporary import NewFolder

from inception_v4.data.lists import PictureList
from inception_v4.data.sources import FolderSource, Source, open_source
from inception_v4.distributed import World
from inception_v4.inference.data_record import KEY, record, validation_data
from inception_v4.settings.recipes import load_config
from inception_v4.settings.schema import Data
from inception_v4.training.train import train
from inception_v4.weights import WeightsInfo

KINDS = ("csv", "tsv", "jsonl", "parquet")


@pytest.fixture(scope="module")
def pictures(module_folder: NewFolder) -> Path:
    return class_folders(module_folder("list") / "pictures", {"ape": 6, "bear": 4})


def rows_of(pictures: Path, split: Any = None) -> list[dict[str, str]]:
    files = sorted(path.relative_to(pictures.parent) for path in pictures.rglob("*.jpg"))
    assert len(files) == 10
    rows = [{"path": str(file), "label": file.parts[1]} for file in files]
    return [row | {"split": split(i)} for i, row in enumerate(rows)] if split else rows


def write(pictures: Path, name: str, rows: list[dict[str, Any]]) -> str:
    file = pictures.parent / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif name.endswith(".jsonl"):
        file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        mark = "\t" if name.endswith(".tsv") else ","
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        file.write_text("".join(mark.join(map(str, line)) + "\n" for line in lines))
    return str(file)


def opened(place: str, split: str, **settings: Any) -> Source:
    return open_source(Data(data_dir=place, **settings), split, world=World(), seed=0)


def content(source: Source) -> list[tuple[str, str]]:
    return sorted((Path(source.name(i)).name, source.class_names[source.labels[i]]) for i in range(len(source)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_without_splits_is_the_folder(pictures: Path, kind: str) -> None:
    place = write(pictures, f"all.{kind}", rows_of(pictures))
    assert Data(data_dir=place).kind == "list" and Data(data_dir=str(pictures)).kind == "folder"
    for split in ("train", "val"):
        ours, folder = opened(place, split), opened(str(pictures), split)
        assert content(ours) == content(folder) and ours.class_names == folder.class_names == ("ape", "bear")
        assert torch.equal(ours.load(0), folder.load(0))
    whole = FolderSource(pictures)
    assert len(opened(place, "train")) + len(opened(place, "val")) == len(whole)
    folds = [set(content(opened(place, "val", folds=5, fold=fold))) for fold in range(1, 6)]
    assert sorted(row for fold in folds for row in fold) == content(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_splits_are_taken_by_name(pictures: Path, kind: str) -> None:
    rows = rows_of(pictures, lambda i: ("train", "val", "test")[i % 3])
    place = write(pictures, f"split.{kind}", rows)
    train, val = opened(place, "train"), opened(place, "val")
    assert content(train) == sorted((Path(r["path"]).name, r["label"]) for r in rows if r["split"] == "train")
    assert content(val) == sorted((Path(r["path"]).name, r["label"]) for r in rows if r["split"] == "val")
    assert len(opened(place, "val", val_split="test")) == 3


def test_a_split_that_was_perhaps_meant_is_asked_for(pictures: Path) -> None:
    place = write(pictures, "near.csv", rows_of(pictures, lambda i: ("train", "validation")[i % 2]))
    with pytest.raises(ValueError, match="no rows of split 'val': did you mean 'validation'"):
        opened(place, "val")
    assert len(opened(place, "val", val_split="validation")) == 5
    only = write(pictures, "only.csv", rows_of(pictures, lambda i: ("train", "test")[i % 2]))
    assert len(opened(only, "train")) + len(opened(only, "val")) == 5, "a part of the training rows is held out"


def test_classes_that_are_numbers_are_in_their_order(pictures: Path) -> None:
    rows = [row | {"label": 10 if row["label"] == "ape" else 9} for row in rows_of(pictures)]
    assert opened(write(pictures, "numbers.jsonl", rows), "train").class_names == ("9", "10")
    assert opened(write(pictures, "numbers.parquet", rows), "train").class_names == ("9", "10")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "x.jpg,cat\n", "a header line with path,label"),
        ("b.csv", "path,label\n", "has no rows"),
        ("c.csv", "path,label\nx.jpg\n", "row 2 has no label"),
        ("d.csv", "path,label\nx.jpg,\n", "row 2 has no label"),
        ("e.csv", b"path,label\nx\xff.jpg,a\n", "is not UTF-8"),
        ("f.jsonl", '{"path": "x.jpg", "label": "a"}\n{"path": \n', "row 2 is not valid JSON"),
        ("g.jsonl", '["x.jpg", "a"]\n', "row 1: give an object"),
        ("h.jsonl", '{"path": "x.jpg", "label": ["a", "b"]}\n', "give one class for each picture"),
        ("i.jsonl", '{"label": "a"}\n', "row 1 has no path"),
        ("j.parquet", "PAR1", "cannot be read as Parquet"),
        ("k.txt", "x", "is no list: give a .csv"),
        ("l.csv", "path,label\n" + "x" * 200_000 + ",cat\n", "cannot be read as a table"),
        ("m.jsonl", "[" * 60_000 + "\n", "row 1 is not valid JSON"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_line(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        PictureList(file)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_without_pyarrow_the_remedy_is_named(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write(pictures, "missing.parquet", rows_of(pictures))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install 'inception-v4\[parquet\]'"):
        PictureList(Path(place))


@pytest.mark.slow
def test_a_run_on_a_list_and_its_record(pictures: Path, tmp_path: Path) -> None:
    place = write(pictures, "run.csv", rows_of(pictures, lambda i: "val" if i % 3 == 0 else "train"))
    folder = tmp_path / "run"
    settings = {"dataset": None, "data_dir": place, "epochs": 1, "freeze": "backbone", "class_weights": "balanced"}
    summary = train(tiny(folder, **settings, balanced_sampling=True, batch_size=3))
    assert summary["steps"] == 2 and summary["best"]["samples"] == 4
    config, _ = load_config(folder / "config.yaml")
    assert config.data.kind == "list" and config.data.data_dir == place
    info = WeightsInfo(2, extra={KEY: record(config.data, 42)})
    found, _ = validation_data(Data(), None, source=str(folder / "best.safetensors"), info=info)
    assert found.data_dir == place and found.kind == "list"
    given, _ = validation_data(Data(data_dir=place), None, source="x", info=info)
    assert len(open_source(given, "val", world=World(), seed=42)) == 4
