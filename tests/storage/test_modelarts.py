"""The cloud's job form: what its keys name is fetched, unpacked, trained on and uploaded, against a real server."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import fill, small_disk
from running import ROOT
from temporary import NewFolder

from inception_v4.cli.main import run
from inception_v4.data.sources import open_source
from inception_v4.distributed import World
from inception_v4.files import DiskFull
from inception_v4.settings.recipes import build_config, load_config
from inception_v4.storage import archives
from inception_v4.storage.archives import ArchiveError, unpack_zip
from inception_v4.storage.remote import Place

CONFIG = str(ROOT / "tests" / "fixtures" / "modelzoo_default_config.yaml")
NAME = "ImageNet_Original"


@pytest.fixture(scope="module")
def zipped(module_folder: NewFolder) -> Path:
    """A zipped data set of two classes, in the folders that the job's code expects."""
    folder = module_folder("data")
    data = {"dataset": "shapes", "data_dir": str(folder), "shapes_train": 8, "shapes_val": 4, "shapes_classes": 2}
    source = open_source(build_config(data).data, "train", world=World(), seed=1)
    drawn = Path(source.name(0)).parents[2]
    archive = folder / f"{NAME}.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for split, name in (("train", "train"), ("val", "validation_preprocess")):
            for picture in sorted((drawn / split).rglob("*.*")):
                packed.write(picture, f"{NAME}/{name}/{picture.relative_to(drawn / split)}")
    return archive


def _job(store: Callable[[str], str], cache: Path, **more: object) -> dict[str, object]:
    return {
        "enable_modelarts": "True", "data_url": store("data"), "train_url": store("results"),
        "need_modelarts_dataset_unzip": "True", "modelarts_dataset_unzip_name": NAME, "data_path": str(cache / "data"),
        "output_path": str(cache / "train"), "dataset_path": str(cache / "data"),
    } | more  # fmt: skip


def test_zipped_data_is_fetched_and_unpacked_where_the_job_says(
    store: Callable[[str], str], tmp_path: Path, zipped: Path
) -> None:
    Place(store("data")).put(zipped, zipped.name)
    Place(store("data")).put(Path(__file__), "not-needed.bin")
    config, _ = load_config(CONFIG, _job(store, tmp_path, num_classes="2"))
    assert config.run.output_dir == str(tmp_path / "train") and config.run.upload_to == store("results")
    source = open_source(config.data, "train", world=World(), seed=1)
    held_out = open_source(config.data, "val", world=World(), seed=1)
    assert (len(source), len(held_out)) == (8, 4) and Path(source.name(0)).is_relative_to(tmp_path / "data")
    assert not list(tmp_path.rglob("not-needed.bin"))
    again = open_source(config.data, "train", world=World(), seed=1)
    assert again.name(0) == source.name(0), "unpacked once"


def test_a_zipped_data_set_that_is_not_there(store: Callable[[str], str], tmp_path: Path) -> None:
    config, _ = load_config(CONFIG, _job(store, tmp_path))
    with pytest.raises(RuntimeError, match=rf"{store('data')}/{NAME}.zip holds no files: check the address"):
        open_source(config.data, "train", world=World(), seed=1)
    with pytest.raises(FileNotFoundError, match="no archive"):
        open_source(build_config({"data_dir": str(tmp_path), "data_zip": "x"}).data, "train", world=World(), seed=1)


@pytest.mark.long
def test_the_jobs_run(
    store: Callable[[str], str], tmp_path: Path, zipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Place(store("data")).put(zipped, zipped.name)
    here = {"device_target": "CPU", "platform": "CPU", "amp_level": "O0", "num_classes": "2", "batch_size": "4",
            "work_nums": "0", "image_size": "75"}  # fmt: skip
    job = _job(store, tmp_path, **here, epoch_size="1", warmup_epochs="0", max_steps="1", keep_checkpoint_max="1")
    words = [f"--{name}={value}" for name, value in job.items()]
    assert run(["train", "--config_path", CONFIG, *words]) == 0, capsys.readouterr().err
    results = {entry.name for entry in Place(store("results")).entries()}
    assert {"config.yaml", "metrics.jsonl", "best.safetensors", "checkpoints/step-00000001.pt"} <= results
    shutil.rmtree(tmp_path / "train")
    job = _job(store, tmp_path, **here, checkpoint_url=store("results"), checkpoint_path="./best.safetensors")
    words = [f"--{name}={value}" for name, value in job.items()]
    assert run(["validate", "--config_path", CONFIG, *words]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "(4 pictures" in said.out and os.environ["AWS_SECRET_ACCESS_KEY"] not in said.out + said.err


def _zip(path: Path, name: str, content: bytes = b"x", mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        member.compress_type = zipfile.ZIP_DEFLATED
        packed.writestr(member, content)
    return path


@pytest.mark.parametrize(
    "name", ["../escaped", "/tmp/escaped", "a/../../escaped", "..\\escaped", "C:/escaped", "a/./../..//../escaped"]
)
def test_no_member_leaves_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="outside its folder: it is not unpacked"):
        unpack_zip(_zip(tmp_path / "a.zip", name), tmp_path / "out")
    assert not list(tmp_path.rglob("escaped")) and not Path("/tmp/escaped").exists()


def test_links_and_doubles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="a link or a device"):
        unpack_zip(_zip(tmp_path / "a.zip", "link", b"/etc/passwd", mode=0o120777), tmp_path / "out")
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "b.zip", "w") as packed:
        packed.writestr("same", b"1")
        packed.writestr("same", b"2")
    with pytest.raises(ArchiveError, match="two members 'same'"):
        unpack_zip(tmp_path / "b.zip", tmp_path / "out")


def test_a_bomb_is_refused_before_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SMALL", 1000)
    bomb = _zip(tmp_path / "bomb.zip", "zeros", bytes(3_000_000))
    with pytest.raises(ArchiveError, match=r"would grow to 3 MB in 1 files: more than 200 times its size"):
        archives.unpack_zip(bomb, tmp_path / "out")
    lying = bytearray(bomb.read_bytes())
    size = (3_000_000).to_bytes(4, "little")
    assert lying.count(size) == 2
    (tmp_path / "lying.zip").write_bytes(bytes(lying).replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(ArchiveError, match="cannot be unpacked"):
        archives.unpack_zip(tmp_path / "lying.zip", tmp_path / "out")
    assert not list((tmp_path / "out").glob("[!.]*")), "nothing that looks whole"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "a/b.jpg"), r"'a/b.jpg' that is no file's name \((File exists|Not a directory)"),
        (("x" * 300,), r"x+' that is no file's name \(File name too long"),
        ((".",), "'.' outside its folder"),
    ],
)
def test_names_that_no_disk_takes(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in names:
            packed.writestr(name, b"x")
    with pytest.raises(ArchiveError, match=said):
        unpack_zip(tmp_path / "a.zip", tmp_path / "out")


def test_what_an_interrupted_unpacking_wrote_needs_no_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ("1.jpg", "2.jpg"):
            packed.writestr(name, os.urandom(1_200_000))
    with small_disk(tmp_path / "disk", 4) as disk:
        ballast = fill(disk, leave=1_300_000)
        with monkeypatch.context() as patch, pytest.raises(DiskFull):
            patch.setattr(archives, "require_room", lambda *_: None)  # as where others write meanwhile
            unpack_zip(tmp_path / "a.zip", disk / "out")
        (part,) = (disk / "out").glob(".*.part")
        assert [path.name for path in part.iterdir()] == ["1.jpg"]
        ballast.unlink()
        (part / ".2.jpg.4711.tmp").write_bytes(bytes(1_000_000))  # as a process leaves it that is killed
        fill(disk, leave=1_000_000)
        whole = unpack_zip(tmp_path / "a.zip", disk / "out")
        assert sorted(path.name for path in whole.iterdir()) == ["1.jpg", "2.jpg"]


def test_a_member_that_begins_before_the_archive(tmp_path: Path) -> None:
    """Of a damaged archive Python's reader computes places before its start."""
    whole = _zip(tmp_path / "a.zip", "a.jpg", b"x" * 99).read_bytes()
    end = whole.rindex(b"PK\5\6")
    place = int.from_bytes(whole[end + 16 : end + 20], "little")
    moved = whole[: end + 16] + (place + 9).to_bytes(4, "little") + whole[end + 20 :]
    (tmp_path / "a.zip").write_bytes(moved)
    with pytest.raises(ArchiveError, match=r"cannot be unpacked .*: fetch it again"):
        unpack_zip(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("cut", [0, 10, 60, 150])
def test_damaged_archives_are_one_line(tmp_path: Path, cut: int) -> None:
    whole = _zip(tmp_path / "a.zip", "name", os.urandom(100)).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:cut])
    with pytest.raises(ArchiveError, match=r"cannot be unpacked .*: fetch it again"):
        unpack_zip(tmp_path / "cut.zip", tmp_path / "out")
    flipped = bytearray(whole)
    flipped[60] ^= 255
    (tmp_path / "flipped.zip").write_bytes(flipped)
    with pytest.raises(ArchiveError):
        unpack_zip(tmp_path / "flipped.zip", tmp_path / "out")
