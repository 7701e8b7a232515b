"""What `pack` takes and says, odd names in shards, and which file of a sample is its picture."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from photos import class_folders, photos
from test_shards import opened, written

from inception_v4.cli.main import run
from inception_v4.data.packed import Contents, PackedSource
from inception_v4.data.shards import ShardFolder
from inception_v4.data.sources import FolderSource
from inception_v4.settings.schema import Data
from inception_v4.storage.on_demand import OnDemand
from inception_v4.storage.remote import Place

PICTURES = photos(8)


def scanned(root: Path) -> PackedSource:
    data = Data(dataset="wds", data_dir=str(root), data_cache=str(root.with_name(f"{root.name}-cache")))
    return ShardFolder(data).source("train")


def test_names_that_are_no_text_come_back_as_they_were(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "shards"
    for split in ("train", "val"):
        class_folders(data / split, {"größe": 2})
        odd = Path(os.fsdecode(os.fsencode(data / split) + b"/caf\xe9"))
        odd.mkdir()
        (odd / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(PICTURES[0])
    assert run(["pack", str(data), str(target)]) == 0
    names = FolderSource(data / "train").class_names
    assert names == (os.fsdecode(b"caf\xe9"), "größe")
    assert opened(target).class_names == names
    assert "größe" in (target / "class_names.json").read_text(encoding="utf-8"), "what is text stays readable"
    for table in target.glob("*.safetensors"):
        table.unlink()
    source = opened(target, data_cache=str(tmp_path / "cache"))
    assert source.class_names == names and PICTURES[0] in [source.content(i) for i in range(len(source))]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_pictures_of_several_classes_are_not_packed(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class_folders(tmp_path / "pictures", {"ape": 6})
    rows = [(f"pictures/ape/00{i}.jpg", ["cat", "dog"][: 1 + i % 2], ["train", "val"][i // 4]) for i in range(6)]
    listed = tmp_path / f"all.{kind}"
    keys = ("path", "label", "split")
    listed.write_text(
        "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)
        if kind == "jsonl"
        else "path,label,split\n" + "".join(f"{path},{'|'.join(labels)},{split}\n" for path, labels, split in rows)
    )
    assert run(["pack", str(listed), str(tmp_path / "shards")]) == 1
    said = capsys.readouterr().err.strip()
    assert f"{listed}: some pictures have several classes, as 'cat' and 'dog'" in said
    assert "train from the list itself" in said and "\n" not in said
    assert not (tmp_path / "shards").exists()
    listed.write_text(listed.read_text().replace("cat|dog", "dog").replace('"cat", "dog"', '"dog"'))
    assert run(["pack", str(listed), str(tmp_path / "shards")]) == 0, "the control"
    assert opened(tmp_path / "shards").class_names == ("cat", "dog")


def test_what_is_left_aside_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(tmp_path / "data", {"ape": 4, "bear": 4})
    (tmp_path / "data" / "ape" / "raw.nef").write_bytes(b"x")
    assert run(["pack", str(tmp_path / "data"), str(tmp_path / "shards")]) == 0
    assert capsys.readouterr().err.count("left aside, not read as pictures: 1 .nef") == 1


def test_names_of_classes_that_are_given_later_count(tmp_path: Path) -> None:
    written(tmp_path / "train.tar", {"a.jpg": PICTURES[0], "a.cls": b"0", "b.jpg": PICTURES[1], "b.cls": b"1"})
    for text, names in (
        (None, ("0", "1")),
        ('["ape", "bear"]', ("ape", "bear")),
        ('["ape", "bears"]', ("ape", "bears")),
    ):
        if text:
            (tmp_path / "class_names.json").write_text(text)
        assert scanned(tmp_path).class_names == names


@pytest.mark.parametrize(
    ("members", "name"),
    [
        (["a.depth.png", "a.jpg"], "a.jpg"),
        (["a.jpg", "a.depth.png"], "a.jpg"),
        (["a.depth.txt", "a.left.png"], "a.left.png"),
        (["A.Seg.PNG", "A.JPEG"], "A.jpeg"),
    ],
)
def test_a_samples_picture_is_the_one_with_nothing_in_its_suffix(members: list[str], name: str, tmp_path: Path) -> None:
    contents = {member: PICTURES[i] for i, member in enumerate(members)}
    written(tmp_path / "train.tar", {**contents, f"{members[0][0]}.cls": b"0", "b.jpg": PICTURES[7], "b.cls": b"1"})
    source = scanned(tmp_path)
    assert [source.name(i).rpartition("/")[2] for i in (0, 1)] == [name, "b.jpg"] and len(source) == 2
    place = next(member for member in members if member.lower() == name.lower())
    assert source.content(0) == contents[place]


@pytest.mark.parametrize(
    ("offset", "size", "archive"),
    [
        (2**63 - 1, 1, 4096),
        (1, 2**63 - 1, 4096),
        (2**62, 2**62, 4096),
        (2**63 - 1, 2**63 - 1, 2**63 - 1),
        (2, 1, -(2**63)),
        (0, 1, 2**63),
    ],
)
def test_a_hostile_table_is_refused(offset: int, size: int, archive: int, tmp_path: Path) -> None:
    rows = [(0, offset, size, 0, "a.jpg")]
    Contents.of([("a.tar", archive)], ("ape",), rows).write(tmp_path / "t")
    with pytest.raises(ValueError, match="no table of contents"):
        Contents.read(tmp_path / "t")
    Contents.of([("a.tar", 2**63 - 1)], ("ape",), [(0, 2**62, 2**62 - 1, 0, "a")]).write(tmp_path / "t")
    assert Contents.read(tmp_path / "t").offset.tolist() == [2**62], "the control"


def test_copies_that_are_gone_are_not_kept_open(tmp_path: Path) -> None:
    """Their bytes are on the disk for as long as they are open."""
    shards = [written(tmp_path / "there" / f"train-{i}.tar", {"a.jpg": PICTURES[i], "a.cls": b"0"}) for i in range(6)]
    place = Place(f"file://{tmp_path}/there")
    largest = max(shard.stat().st_size for shard in shards)
    copies = OnDemand(f"file://{tmp_path}/there", place.entries(), cache=tmp_path / "cache", limit=2 * largest)
    members = [(i, 512, len(PICTURES[i]), 0, "a.jpg") for i in range(6)]
    table = Contents.of([(shard.name, shard.stat().st_size) for shard in shards], ("ape",), members)
    source = PackedSource(table, copies, title="x")
    before = _unlinked()
    for index in np.random.default_rng(1).integers(0, 6, 30).tolist():
        assert source.content(index) == PICTURES[index]
        assert _unlinked() == before


def test_few_copies_are_open_at_once(tmp_path: Path) -> None:
    shards = [
        written(tmp_path / "there" / f"train-{i:02}.tar", {"a.jpg": PICTURES[0], "a.cls": b"0"}) for i in range(20)
    ]
    copies = OnDemand(
        f"file://{tmp_path}/there", Place(f"file://{tmp_path}/there").entries(), cache=tmp_path / "cache", limit=None
    )
    table = Contents.of(
        [(shard.name, shard.stat().st_size) for shard in shards],
        ("ape",),
        [(i, 512, len(PICTURES[0]), 0, "a.jpg") for i in range(20)],
    )
    source = PackedSource(table, copies, title="x")
    for index in range(20):
        source.content(index)
    held = [target for target in _open_files() if target.startswith(str(copies.folder))]
    assert 1 <= len(held) <= 8


def _open_files() -> list[str]:
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        if os.path.islink(link := f"/proc/self/fd/{descriptor}"):
            found.append(os.readlink(link))
    return found


def _unlinked() -> int:
    return sum(target.endswith(".tar (deleted)") for target in _open_files())
