"""Kinds of picture files, those that are left aside, and what systems leave behind in folders."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import torch
from exported import folder, weights_file
from photos import class_folders, encoded
from PIL import Image, ImageOps, features
from test_orientation import scene, tagged

from inception_v4.cli.main import run
from inception_v4.data.named_files import pictures_in
from inception_v4.data.pictures import CorruptImage, Decoding, decode_picture
from inception_v4.data.sources import FolderSource, Subset
from inception_v4.data.suffixes import PICTURE_SUFFIXES, Sieve, is_heif
from inception_v4.export.plan import calibration_pictures
from inception_v4.export.target import ExportError
from inception_v4.weights import WeightsInfo

__all__ = ["folder"]


def heic(image: Image.Image, orientation: int = 1) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, exif=tagged(orientation).tobytes())
    return buffer.getvalue()


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


@pytest.mark.parametrize(("suffix", "fmt"), [("avif", "AVIF"), ("jp2", "JPEG2000"), ("j2k", "JPEG2000")])
def test_avif_and_jpeg_2000_equal_pillow(suffix: str, fmt: str) -> None:
    assert features.check("avif") and features.check("jpg_2000")
    data = encoded(scene(1), fmt, **({"no_jp2": True} if suffix == "j2k" else {}))
    assert not is_heif(data)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    assert torch.equal(decode_picture(data, f"a.{suffix}"), torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize("exif_rotation", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_turned_once(orientation: int, exif_rotation: bool) -> None:
    """Its orientation is a part of the format, which pillow-heif follows."""
    image = scene(3)
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    picture = decode_picture(heic(scene(3), orientation), "a.heic", Decoding(exif_rotation)).permute(1, 2, 0).numpy()
    assert picture.shape == upright.shape
    assert np.abs(picture - upright).mean() < 2, "grey levels"
    assert min(np.abs(other - upright).mean() for other in (picture[::-1], picture[:, ::-1])) > 20


def test_heic_without_pillow_heif(without_heif: None) -> None:
    with pytest.raises(
        CorruptImage, match=r"x\.heic \(HEIC, for which pillow-heif is needed\): pip install .*\[heif\]"
    ):
        decode_picture(heic(scene(1)), "x.heic")
    assert decode_picture(encoded(scene(1)), "x.heic").shape == (3, 117, 163), "a JPEG, whatever it is called"


@pytest.mark.parametrize("keep", [24, 60, 400, -30])
def test_damaged_heic(keep: int) -> None:
    stub = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + b"\0" * 64
    for data in (heic(scene(1))[:keep], stub):
        with pytest.raises(CorruptImage, match=r"cannot decode x\.heic \(.+\): replace or delete it") as error:
            decode_picture(data, "x.heic")
        assert "\n" not in str(error.value)
    assert "HEIC that pillow-heif cannot read" in str(error.value)


def test_what_is_never_read_says_what_to_do() -> None:
    with pytest.raises(CorruptImage, match=r"drawing\.svg \(not a picture format.*\): save them as PNG"):
        decode_picture(b"<svg/>", "drawing.svg")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two classes of four JPEG, and much else."""
    root = class_folders(tmp_path / "photos", {"cat": 4, "dog": 4})
    files = {
        "cat/a.heic": heic(scene(1)), "cat/b.HEIC": encoded(scene(2)), "dog/c.avif": encoded(scene(3), "AVIF"),
        "dog/d.jp2": encoded(scene(4), "JPEG2000"), "dog/e.jfif": encoded(scene(5)),
        "cat/drawing.svg": b"<svg/>", "cat/IMG_1.CR2": b"II*\0", "dog/IMG_2.nef": b"MM\0*", "dog/layers.psd": b"8BPS",
        "cat/notes.txt": b"", "cat/data.json": b"{}",
        "__MACOSX/cat/._a.jpg": b"\0\5\x16\7", "@eaDir/a.jpg": b"", "$RECYCLE.BIN/x.jpg": b"", "lost+found/y.jpg": b"",
        "System Volume Information/z.jpg": b"", ".ipynb_checkpoints/a.jpg": b"", "cat/.ipynb_checkpoints/a.jpg": b"",
        "cat/@eaDir/a.jpg/THUMB.jpg": b"", "cat/Thumbs.db": b"", "dog/Thumbs.db": b"", "dog/._000.jpg": b"\0\5\x16\7",
        "cat/.DS_Store": b"", "cat/.hidden.jpg": b"",
    }  # fmt: skip
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


LITTER = (
    "passed over 1 '$RECYCLE.BIN', 1 '.DS_Store', 1 '._*', 1 '.hidden.jpg', 2 '.ipynb_checkpoints', 2 '@eaDir', "
    "1 'System Volume Information', 2 'Thumbs.db', 1 '__MACOSX', 1 'lost+found'"
)
ASIDE = (
    "left aside, not read as pictures: 1 .cr2, 1 .nef (develop them with the camera's program and save JPEG or PNG); "
    "1 .psd, 1 .svg (save them as PNG)"
)


def test_litter_is_no_class_and_no_picture(mixed: Path) -> None:
    source = FolderSource(mixed)
    assert source.class_names == ("cat", "dog") and len(source) == 8 + 5
    names = {Path(source.name(i)).name for i in range(8, 13)} | {Path(source.name(i)).name for i in range(8)}
    assert {"a.heic", "b.HEIC", "c.avif", "d.jp2", "e.jfif"} < names and not any(n.startswith(".") for n in names)
    assert [source.load(i).shape[0] for i in range(13)] == [3] * 13, "what is counted can be read"
    assert source.remarks == (f"{mixed}: {LITTER}", f"{mixed}: {ASIDE}")
    assert Subset(source, [1]).remarks == source.remarks


def test_clean_folders_say_nothing(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"a": 1, "b": 1})
    (root / "a" / "labels.csv").touch()
    (root / "README").touch()
    (root / "a" / ".gitkeep").touch()
    assert FolderSource(root).remarks == ()


def test_heic_is_left_aside_without_pillow_heif(mixed: Path, without_heif: None) -> None:
    source = FolderSource(mixed)
    names = {Path(source.name(i)).name for i in range(len(source))}
    assert "a.heic" not in names and "b.HEIC" in names, "one is a JPEG"
    assert "1 .heic (pip install 'inception-v4[heif]')" in source.remarks[1]
    only = mixed.parent / "iphone"
    for name in ("cat", "dog"):
        (only / name).mkdir(parents=True)
        (only / name / "1.HEIC").write_bytes(heic(scene(1)))
    with pytest.raises(ValueError, match=r"cat holds no pictures but 1 \.heic \(pip install 'inception-v4\[heif\]'\)"):
        FolderSource(only)
    with pytest.raises(ValueError, match=r"no pictures in .*: 2 \.heic \(pip install 'inception-v4\[heif\]'\)"):
        pictures_in([str(only)])


def test_a_pillow_without_avif(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    (tmp_path / "a.avif").write_bytes(encoded(scene(1), "AVIF"))
    sieve = Sieve()
    assert not sieve.is_picture(str(tmp_path), "a.avif")
    assert "a Pillow with avif is needed: pip install -U Pillow" in sieve.unread()


def test_suffixes_that_pillow_reads() -> None:
    known = Image.registered_extensions()
    assert {suffix for suffix in PICTURE_SUFFIXES if suffix not in known} <= {".heic", ".heif", ".hif"}


def test_predict_says_what_it_passed_over(
    mixed: Path, folder: Path, capsys: pytest.CaptureFixture[str], without_heif: None
) -> None:
    words = ["predict", "--ckpt-path", str(weights_file(folder)), "--device", "cpu", "--json"]
    assert run([*words, str(mixed)]) == 0
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)) == 12
    assert LITTER in shown.err and "1 .heic (pip install" in shown.err and "1 .cr2, 1 .nef" in shown.err
    assert run([*words, str(mixed / "cat" / "a.heic")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert "a.heic (HEIC, for which pillow-heif is needed): pip install 'inception-v4[heif]'" in said[-1]
    assert run([*words, str(mixed / "cat" / "IMG_1.CR2")]) == 1
    assert "IMG_1.CR2: .CR2 files are not read: develop them" in capsys.readouterr().err


@pytest.mark.slow
def test_train_and_validate_say_what_they_passed_over(
    mixed: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data-dir", str(mixed), "--device", "cpu", "--workers", "0"]
    assert run(["train", *words, "--smoke", "--max-steps", "1", "--output-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert said.count(LITTER) == said.count(ASIDE) == 1 and "2 classes" in said
    assert run(["validate", *words, "--ckpt-path", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert said.count(LITTER) == said.count(ASIDE) == 1


def test_calibration_says_what_it_passed_over(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = WeightsInfo(2)
    assert sum(map(len, calibration_pictures(str(mixed), info))) == 13
    assert LITTER in capsys.readouterr().err
    for path in mixed.rglob("*.*"):
        if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            path.unlink()
    with pytest.raises(ExportError, match="holds no pictures"):
        calibration_pictures(str(mixed), info)
