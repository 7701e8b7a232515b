"""Which formats are read as pictures: those that are promised, whatever else Pillow would open."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import encoded
from PIL import Image
from test_suffixes import heic

from inception_v4.data.pictures import CorruptImage, decode_picture
from inception_v4.data.shapes import draw_shape

PROMISED = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "AVIF", "JPEG2000", "HEIF")
DRAWING = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


def held(kind: str) -> bytes:
    image = draw_shape("heart", 1, 64)
    return heic(image) if kind == "HEIF" else encoded(image, kind, **({"save_all": True} if kind == "MPO" else {}))


@pytest.mark.parametrize("kind", PROMISED)
def test_what_is_promised_is_read(kind: str) -> None:
    data = held(kind)
    found = decode_picture(data, "picture.jpg")
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    assert expected.shape[1:] == (64, 64) and expected.float().std() > 9
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["picture.jpg", "picture.png"])
def test_a_drawing_under_a_pictures_name_starts_no_program(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    with pytest.raises(CorruptImage, match=f"cannot decode {name} .*not a picture format that can be read"):
        decode_picture(DRAWING, name)
    assert not (tmp_path / "called").exists()
    with pytest.raises(Exception, match=r".*"):
        Image.open(io.BytesIO(DRAWING)).load()
    assert (tmp_path / "called").exists(), "the control: Pillow itself starts it"


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(CorruptImage, match="not a picture format that can be read"):
        decode_picture(held(kind), "x")


def test_a_pillow_without_some_formats_reads_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    for kind in ("AVIF", "JPEG2000", "WEBP"):
        monkeypatch.delitem(Image.OPEN, kind)
    assert decode_picture(held("TIFF"), "x").shape == (3, 64, 64)
    with pytest.raises(CorruptImage, match="not a picture format that can be read"):
        decode_picture(held("AVIF"), "x")


def test_a_common_picture_is_read_without_the_plugins_of_all_formats(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(held("PNG"))
    code = (
        f"import sys; from inception_v4.data.pictures import read_picture; read_picture({str(tmp_path / 'a.png')!r}); "
        "print(sorted(name for name in sys.modules if name in ('PIL.FpxImagePlugin', 'PIL.EpsImagePlugin')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["TIFF", "PPM"])
def test_pictures_of_floating_point_numbers_are_refused(kind: str) -> None:
    image = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    with pytest.raises(
        CorruptImage, match=r"cannot decode x \(.*floating point.*\): save it with 8 or 16 bits"
    ) as error:
        decode_picture(encoded(image, kind), "x")
    assert "\n" not in str(error.value)
