"""Shards of pictures: packed and read back, others' shards, their order, and what is wrong with broken ones."""

from __future__ import annotations

import gc
import io
import json
import pickle
import re
import tarfile
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import class_folders, photos
from temporary import NewFolder

from inception_v4.cli.main import run
from inception_v4.data.loader import EvalLoader, TrainLoader
from inception_v4.data.order import EpochSampler, Key
from inception_v4.data.packed import Contents
from inception_v4.data.sources import Source, open_source
from inception_v4.data.tars import tar_members
from inception_v4.distributed import World
from inception_v4.pages.inspection import inspect_data
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.schema import Augmentation, Data


@pytest.fixture(scope="module")
def folders(module_folder: NewFolder) -> Path:
    root = module_folder("folders")
    class_folders(root / "train", {"ape": 14, "bear": 9})
    class_folders(root / "val", {"ape": 3, "bear": 4})
    return root


@pytest.fixture(scope="module")
def packed(folders: Path, module_folder: NewFolder) -> Path:
    target = module_folder("packed") / "shards"
    assert run(["pack", str(folders), str(target), "--shard-mb", "0.02"]) == 0
    return target


def opened(root: Path | str, split: str = "train", **settings: object) -> Source:
    kind = {"dataset": "wds"} | settings
    return open_source(Data(data_dir=str(root), **kind), split, world=World(), seed=0)


def written(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def test_what_is_packed_comes_back_with_its_bytes_and_labels(folders: Path, packed: Path) -> None:
    for split in ("train", "val"):
        there, here = (opened(root, split, dataset=kind) for root, kind in ((folders, "folder"), (packed, "wds")))
        assert here.class_names == there.class_names == ("ape", "bear")
        assert Counter(zip([here.content(i) for i in range(len(here))], here.labels, strict=True)) == Counter(
            zip([there.content(i) for i in range(len(there))], there.labels, strict=True)
        )
    assert len({here.name(i) for i in range(len(here))}) == 7 and "val-000000.tar/" in here.name(0)
    assert here.labels == there.labels, "those for validation keep their order"
    assert len(list(packed.glob("train-*.tar"))) > 2
    assert opened(packed).labels != sorted(opened(packed).labels), "training pictures are mixed"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_other_programs_read_them(packed: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(map(str, packed.glob("train-*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    ours = opened(packed)
    assert [int(sample["cls"]) for sample in samples] == ours.labels
    gc.collect()
    pictures = [next(sample[k] for k in ("jpg", "jpeg", "png") if k in sample) for sample in samples]
    assert pictures == [ours.content(i) for i in range(len(ours))]
    assert {json.loads(sample["json"])["class_name"] for sample in samples} == {"ape", "bear"}


def test_the_same_pictures_give_the_same_bytes_and_an_interruption_is_gone_on_from(
    folders: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    again.mkdir()
    kept = sorted(packed.glob("train-*.tar"))[0]
    (again / kept.name).write_bytes(kept.read_bytes())
    half = sorted(packed.glob("train-*.tar"))[1]
    (again / f".{half.name}.99.tmp").write_bytes(half.read_bytes()[:700])
    inode = (again / kept.name).stat().st_ino
    assert run(["pack", str(folders), str(again), "--shard-mb", "0.02"]) == 0
    assert (again / kept.name).stat().st_ino == inode, "a finished one stays"
    for file in packed.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
    capsys.readouterr()
    assert run(["pack", str(folders), str(again), "--shard-mb", "0.02"]) == 1
    assert "holds shards of 'train' already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([{"cls": b"1"}, {"cls": b"0"}], ("0", "1")),
        ([{"json": b'{"label": 2}'}, {"json": b'{"label": 0}'}], ("0", "1", "2")),
        ([{"json": b'{"class_name": "owl"}'}, {"cls": b"elk\n"}], ("elk", "owl")),
    ],
)
def test_shards_of_others(labels: list[dict[str, bytes]], names: tuple[str, ...], tmp_path: Path) -> None:
    pictures = photos(2)
    members = {}
    for number, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
        members |= {f"./deep/a{number}.JPG": picture, **{f"./deep/a{number}.{k}": v for k, v in label.items()}}
    written(tmp_path / "imagenet-train-00.tar", members | {"./deep/b.txt": b"no picture"})
    written(tmp_path / "imagenet-validation-00.tar", members)
    written(tmp_path / "imagenet-test-00.tar", {"x.txt": b""})
    source = opened(tmp_path, data_cache=str(tmp_path / "cache"))
    assert source.class_names == names and [source.content(i) for i in (0, 1)] == list(pictures)
    assert len(opened(tmp_path, "val", data_cache=str(tmp_path / "cache"))) == 2


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.jpg": b"x"}, r"train.tar/a has no label: a .cls"),
        ({"a.jpg": b"x", "a.cls": b"1", "b.jpg": b"x", "b.cls": b"owl"}, "some labels are numbers and some are names"),
        ({"a.txt": b"x"}, "no pictures in these shards"),
        ({"a.jpg": b"x", "a.json": b"{"}, "a.json is no JSON"),
        ({"a.jpg": b"x", "a.json": b"[" * 60_000}, "a.json is no JSON"),
        ({"a.jpg": b"x", "a.json": b'{"label": -1}'}, "train.tar/a has the label -1: classes have numbers from 0"),
        ({"a.jpg": b"x", "a.cls": b"4000000000"}, "train.tar/a has the label 4000000000: classes"),
        ({"a.jpg": b"x", "a.cls": b"9" * 9000}, r"train.tar/a has the label 9{20}: classes"),
        (
            {"a.jpg": b"x", "a.cls": b"owl" * 9000, "class_names.json": b'["cat"]'},
            "class '(owl)+ow' is not in",
        ),
        ({"a.jpg": b"x", "a.cls": b"owl" * 9000, "b.jpg": b"x", "b.cls": b"1"}, "some are names, as '(owl)+ow': give"),
        ({f"{'long' * 900}.jpg": b"x"}, "train.tar/(long)+ has no label"),
    ],
)
def test_shards_that_lack_something(members: dict[str, bytes], said: str, tmp_path: Path) -> None:
    if "class_names.json" in members:
        (tmp_path / "class_names.json").write_bytes(members["class_names.json"])
    written(tmp_path / "train.tar", members)
    with pytest.raises(ValueError, match=said) as error:
        opened(tmp_path, data_cache=str(tmp_path / "cache"))
    assert len(str(error.value)) < 500


def pax_record(key: str, value: str) -> bytes:
    line = f" {key}={value}\n"
    return str(next(n for n in range(99) if len(f"{n}{line}") == n)).encode() + line.encode()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("size", "-1536", "'a.jpg' has -1536 bytes"),
        ("size", "-2048", "'a.jpg' has -2048 bytes"),
        ("GNU.sparse.size", "x", "invalid literal"),
    ],
)
def test_headers_that_lead_back(key: str, value: str, said: str, tmp_path: Path) -> None:
    """A size below 0 makes Python's reader come to the same header again and again."""
    record = pax_record(key, value)
    extended, plain = tarfile.TarInfo("pax"), tarfile.TarInfo("a.jpg")
    extended.type, extended.size, plain.size = tarfile.XHDTYPE, len(record), 5
    (tmp_path / "a.tar").write_bytes(
        extended.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + plain.tobuf(tarfile.USTAR_FORMAT)
        + b"hello".ljust(512, b"\0") + bytes(1024)
    )  # fmt: skip
    with pytest.raises(ValueError, match=rf"a.tar is damaged \({said}"):
        list(islice(tar_members(tmp_path / "a.tar"), 9))


@pytest.mark.parametrize("size", [-600, 1 << 33, 1 << 62, 1 << 80])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE, b"Z"])
def test_headers_of_sizes_that_are_not_there(kind: bytes, size: int, tmp_path: Path) -> None:
    """Python's reader would ask for so many bytes at once, or go to a place that no file has."""
    header = tarfile.TarInfo("a.jpg")
    header.type, header.size = kind, size
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(512 + 1024))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a\.tar is damaged"):
            list(islice(tar_members(tmp_path / "a.tar"), 9))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_damaged_shards_and_tables(packed: Path, tmp_path: Path) -> None:
    whole = written(tmp_path / "w" / "train-0.tar", {"a.jpg": photos(1)[0], "a.cls": b"0"})
    for cut in (100, 512, 1024, 3000):
        place = tmp_path / str(cut)
        place.mkdir()
        (place / "train-0.tar").write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(ValueError, match=r"train-0.tar.*(end is missing|damaged)"):
            opened(place, data_cache=str(tmp_path / "cache"))
    written(tmp_path / "z" / "train-0.tar.gz", {"a.jpg": b""}, "w:gz")
    with pytest.raises(FileNotFoundError, match=r"no shards \(.tar\): train-0.tar.gz is compressed"):
        opened(tmp_path / "z")
    with pytest.raises(FileNotFoundError, match=r"no shards of 'dev': it has train-000000.tar"):
        opened(packed, "val", val_split="dev")
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in packed.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    (moved / "train-000001.tar").write_bytes((moved / "train-000001.tar").read_bytes()[:-512])
    with pytest.raises(ValueError, match=r"train-000001.tar has \d+ bytes, the table of contents says"):
        opened(moved)
    table = Contents.read(packed / "train-contents.safetensors")
    for change, said in (
        ({"offset": table.offset + 10**9}, "beyond the end"),
        ({"offset": table.offset - 10**9}, "beyond the end"),
        ({"label": table.label + 7}, "of a class that is not there"),
        ({"shard": table.shard + 90}, "in an archive that is not there"),
        ({"size": table.size[1:]}, "different lengths"),
        ({"archives": (("../x.tar", 10**9),) * len(table.archives)}, "outside its folder"),
    ):
        Contents(**(vars(table) | change)).write(moved / "train-contents.safetensors")
        with pytest.raises(ValueError, match=f"no table of contents .*{said}"):
            opened(moved)
    (moved / "train-contents.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ValueError, match="no table of contents"):
        opened(moved)


ALONE = World()


def test_splits_that_number_the_same_classes_otherwise_are_refused(packed: Path, tmp_path: Path) -> None:
    for file in packed.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert len(opened(tmp_path)) == 23, "the control"
    table = Contents.read(packed / "val-contents.safetensors")
    Contents(**(vars(table) | {"class_names": ("bear", "ape")})).write(tmp_path / "val-contents.safetensors")
    with pytest.raises(ValueError, match=r"the classes differ \(the same names in another order\)"):
        opened(tmp_path)


def keys(source: Source, world: World = ALONE, epoch: int = 0, start: int = 0, buffer: int = 4) -> list[list[Key]]:
    data = Data(batch_size=4 // world.size, drop_last=False, shard_buffer=buffer)
    sampler = EpochSampler(len(source), data, 0, world=world, seed=7, source=source)
    sampler.epoch, sampler.start = epoch, start
    return list(sampler)


def test_the_order_goes_from_shard_to_shard_and_is_one_of_all_pictures(packed: Path, folders: Path) -> None:
    source = opened(packed)
    batches = keys(source)
    pictures = [key.picture for batch in batches for key in batch]
    assert sorted(pictures) == list(range(23))
    assert batches == keys(source) and batches != keys(source, epoch=1) and batches[2:] == keys(source, start=8)
    assert source.shards is not None
    visits = source.shards[pictures]
    for shard in set(visits.tolist()):
        places = np.flatnonzero(visits == shard)
        assert np.ptp(places) < len(places) + 2 * 4, "within the buffer, the pictures of a shard come together"
    assert visits.tolist() != sorted(visits.tolist())
    two = [[key for batch in keys(source, World(rank, 2)) for key in batch] for rank in (0, 1)]
    assert Counter(key.picture for part in two for key in part) >= Counter(range(23))
    wide = [key.picture for batch in keys(source, buffer=10**6) for key in batch]
    assert sorted(wide) == list(range(23)) and wide != pictures
    plain = opened(folders, dataset="folder")
    assert plain.shards is None and keys(plain, buffer=1) == keys(plain, buffer=9), (
        "the control: folders have no buffer"
    )


def test_samples_are_those_of_the_folder_whatever_the_workers(folders: Path, packed: Path) -> None:
    there, here = opened(folders, dataset="folder"), opened(packed)
    place = {there.content(i): i for i in range(len(there))}
    augmentation = Augmentation(image_size=75)
    loaders = [
        TrainLoader(here, Data(batch_size=5, workers=workers), augmentation, world=World(), seed=3)
        for workers in (0, 2)
    ]
    first, second = (list(loader.epoch(0)) for loader in loaders)
    assert len(first) == len(second) == 4
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert [there.labels[place[here.content(i)]] for i in a.indices.tolist()] == a.labels.tolist()
    val = EvalLoader(opened(packed, "val"), Preprocessing(image_size=75), batch_size=2, workers=1, world=World())
    same = EvalLoader(
        opened(folders, "val", dataset="folder"), Preprocessing(image_size=75), batch_size=2, workers=0, world=World()
    )
    for a, b in zip(val, same, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def test_many_threads_read_what_one_reads(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inception_v4.data.packed._OPEN_AT_ONCE", 1)
    source = pickle.loads(pickle.dumps(opened(packed)))
    expected = [source.content(i) for i in range(len(source))]
    with ThreadPoolExecutor(8) as several:
        order = [i for _ in range(40) for i in range(len(source))]
        assert list(several.map(source.content, order)) == expected * 40


def test_a_report_names_the_broken_pictures_in_shards(tmp_path: Path) -> None:
    class_folders(tmp_path / "data" / "train", {"ape": 3, "bear": 3})
    broken = class_folders(tmp_path / "data" / "val", {"ape": 2, "bear": 2}) / "bear" / "001.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    assert run(["pack", str(tmp_path / "data"), str(tmp_path / "shards")]) == 0
    found = inspect_data(Data(dataset="wds", data_dir=str(tmp_path / "shards")), 0)
    assert [name for name, _ in found.broken] == [f"val: {tmp_path}/shards/val-000000.tar/00000003.jpg"]


def test_without_validation_shards_a_part_is_held_out(packed: Path, tmp_path: Path) -> None:
    for file in packed.glob("*"):
        if not file.name.startswith("val"):
            (tmp_path / file.name).symlink_to(file)
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert (
        len(train) + len(val) == 23 and len(val) >= 2 and train.shards is not None and len(train.shards) == len(train)
    )
    assert not {train.content(i) for i in range(len(train))} & {val.content(i) for i in range(len(val))}
    folds = [opened(packed, "val", folds=3, fold=k) for k in (1, 2, 3)]
    assert sum(map(len, folds)) == 23


def test_arrays_become_png_and_a_corrupt_picture_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(tmp_path / "data" / "train", {"ape": 3, "bear": 3})
    class_folders(tmp_path / "data" / "val", {"ape": 1, "bear": 1})
    broken = sorted((tmp_path / "data" / "train" / "bear").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:300])
    assert run(["pack", str(tmp_path / "data"), str(tmp_path / "shards")]) == 0
    source = opened(tmp_path / "shards")
    loader = EvalLoader(source, Preprocessing(image_size=75), batch_size=2, workers=0, world=World(), on_corrupt="skip")
    assert sum(len(batch) for batch in loader) == 5
    (message,) = loader.skipped
    assert re.search(r"shards/train-000000.tar/0000000\d", message), message
