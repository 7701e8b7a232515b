from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from photos import class_folders
from torch import Tensor

from inception_v4.accelerator import select
from inception_v4.benchmark import loaders as bench_data
from inception_v4.benchmark.loaders import RECIPES, SHARDS, measure_loaders
from inception_v4.settings.schema import Augmentation, Data


@pytest.mark.slow
@pytest.mark.parametrize("split", ["", "train"])
def test_loaders_are_measured_in_turns(tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_data, "_FEWEST", 20)
    class_folders(tmp_path / split, {"a": 4, "b": 4})
    data = Data(data_dir=str(tmp_path), batch_size=4, workers=1)
    rows = measure_loaders(
        data, Augmentation(image_size=75), accelerator=select("cpu"), peers=["timm", "torchvision"], repeats=2
    )
    loaders = ["ours", "timm", "torchvision"]
    assert [row["loader"] for row in rows] == ["ours", SHARDS, *loaders[1:], *loaders, *loaders]
    assert [row["recipe"] for row in rows] == [
        title for title, k in zip(RECIPES, (4, 3, 3), strict=True) for _ in range(k)
    ]
    for row in rows:
        assert len(row["runs"]) == 2 and 0 < row["least"] <= row["images_per_second"] <= row["most"]
    assert rows[0]["ratio"] > 0 and {row["ratio"] for row in rows if row["loader"] == "timm"} == {1}


@pytest.mark.slow
def test_of_many_pictures_some_of_each_class_are_measured_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_data, "_FEWEST", 1)
    monkeypatch.setattr(bench_data, "_MOST", 8)
    class_folders(tmp_path, {"a": 16, "b": 16})
    seen: dict[str, set[int]] = {}

    def counted(batches: Iterable[Tensor]) -> float:
        seen.setdefault("pictures", set()).add(sum(len(images) for images in batches))
        return 1.0

    monkeypatch.setattr(bench_data, "_speed", counted)
    data = Data(data_dir=str(tmp_path), batch_size=4, workers=1)
    measure_loaders(
        data, Augmentation(image_size=75), accelerator=select("cpu"), peers=["timm", "torchvision"], repeats=1
    )
    assert seen == {"pictures": {8}}, "all programs the same number"


def test_unknown_peers_and_missing_pictures(tmp_path: Path) -> None:
    class_folders(tmp_path / "here", {"a": 4, "b": 4})
    for folder, peers, error in (("here", ["tim"], ValueError), ("there", [], FileNotFoundError)):
        with pytest.raises(error, match=r"'tim'|'there'"):
            measure_loaders(
                Data(data_dir=str(tmp_path / folder), workers=0, batch_size=4),
                Augmentation(),
                accelerator=select("cpu"),
                peers=peers,
            )
