"""Shards behind an address: fetched when they are wanted, once while there is room, and within the limit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from photos import class_folders

from inception_v4.cli.main import run
from inception_v4.data.loader import EvalLoader, TrainLoader
from inception_v4.data.sources import open_source
from inception_v4.distributed import World
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.schema import Augmentation, Data
from inception_v4.storage.on_demand import Ahead, OnDemand
from inception_v4.storage.remote import Place, RemoteFile, StorageError


@pytest.fixture
def address(tmp_path: Path, store: Callable[[str], str]) -> str:
    class_folders(tmp_path / "data" / "train", {"ape": 16, "bear": 16})
    class_folders(tmp_path / "data" / "val", {"ape": 2, "bear": 2})
    assert run(["pack", str(tmp_path / "data"), store("shards"), "--shard-mb", "0.02"]) == 0
    return store("shards")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counts: Counter[str] = Counter()
    get = Place.get

    def counted(self: Place, entry: RemoteFile, target: Path) -> None:
        counts[entry.name] += 1
        get(self, entry, target)

    monkeypatch.setattr(Place, "get", counted)
    return counts


def settings(address: str, cache: Path, **changes: object) -> Data:
    usual = {"dataset": "wds", "data_dir": address, "data_cache": str(cache), "batch_size": 4, "workers": 0}
    return Data(**usual | {"shard_buffer": 4} | changes)


def sizes(cache: Path) -> int:
    total = 0
    for path in cache.rglob("*.tar"):
        with suppress(FileNotFoundError):  # it has just been removed
            total += path.stat().st_size
    return total


def test_each_shard_is_fetched_once_and_pictures_are_the_same(
    address: str, fetched: Counter[str], tmp_path: Path
) -> None:
    data = settings(address, tmp_path / "cache")
    source = open_source(data, "train", world=World(), seed=0)
    loader = TrainLoader(source, data, Augmentation(image_size=75), world=World(), seed=1)
    labels = [batch.labels.tolist() for epoch in (0, 1) for batch in loader.epoch(epoch)]
    shards = {name for name in fetched if name.endswith(".tar")}
    assert len(labels) == 16 and len(shards) > 4 and set(fetched.values()) == {1}
    local = settings(str(tmp_path / "data"), tmp_path / "cache", dataset="folder")
    there = open_source(local, "train", world=World(), seed=0)
    assert sorted(source.content(i) for i in range(32)) == sorted(there.content(i) for i in range(32))


def test_copies_keep_within_the_limit(address: str, fetched: Counter[str], tmp_path: Path) -> None:
    largest = max(entry.size for entry in Place(address).entries())
    data = settings(address, tmp_path / "cache", data_cache_gb=2.5 * largest / 1e9)
    source = open_source(data, "train", world=World(), seed=0)
    loader = TrainLoader(source, data, Augmentation(image_size=75), world=World(), seed=1)
    for _ in loader.epoch(0):
        assert 0 < sizes(tmp_path / "cache") <= 2.5 * largest
    val = EvalLoader(
        open_source(data, "val", world=World(), seed=0), Preprocessing(image_size=75), batch_size=1, workers=0,
        world=World(),
    )  # fmt: skip
    assert sum(len(batch) for batch in val) == 4
    small = settings(address, tmp_path / "other", data_cache_gb=largest / 2e9)
    with pytest.raises(StorageError, match=r"train-00000\d.tar has .* raise data_cache_gb"):
        open_source(small, "train", world=World(), seed=0).content(0)


def test_shards_are_fetched_ahead_of_what_is_asked_for(address: str, fetched: Counter[str], tmp_path: Path) -> None:
    files = [entry for entry in Place(address).entries() if entry.name.startswith("train") and ".tar" in entry.name]
    copies = OnDemand(address, files, cache=tmp_path, limit=4 * max(file.size for file in files) + 9)
    ahead = Ahead(copies, [(10 * number, number) for number in range(len(files))])
    waited = _until(lambda: len(fetched) >= 2)
    assert waited and len(files) > 4
    time.sleep(0.3)
    assert len(fetched) == 3, "two shards ahead of the first, and no more"
    ahead.reach(10)
    assert _until(lambda: len(fetched) == 4)
    ahead.close()
    ahead.join(10)
    assert not ahead.is_alive() and ahead.error is None


def test_a_store_that_is_gone_is_one_line(address: str, tmp_path: Path) -> None:
    data = settings(address, tmp_path / "cache", workers=1)
    source = open_source(data, "train", world=World(), seed=0)
    place = Place(address)
    for entry in place.entries():
        place.delete(entry.name)
    loader = TrainLoader(source, data, Augmentation(image_size=75), world=World(), seed=1)
    with pytest.raises(StorageError, match=r"shards/train-00000\d.tar does not exist"):
        list(loader.epoch(0))


def _until(holds: Callable[[], bool]) -> bool:
    for _ in range(100):
        if holds():
            return True
        time.sleep(0.05)
    return False
