"""Pictures with more pixels than wanted in memory: decoded smaller where the format can, else one clear error."""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import folder, weights_file
from photos import class_folders, encoded
from PIL import Image, ImageOps
from test_orientation import scene, tagged, tensor
from test_suffixes import heic

from inception_v4.cli.main import run
from inception_v4.data.jpeg import Box, decodes_row_by_row, frame_of
from inception_v4.data.loader import EvalLoader, TrainLoader
from inception_v4.data.pictures import CorruptImage, Decoding, decode_box, decode_picture
from inception_v4.data.sources import open_source
from inception_v4.distributed import World
from inception_v4.preprocessing import MAX_PIXELS, Preprocessing
from inception_v4.settings.schema import Augmentation, Data

__all__ = ["folder"]

WIDTH, HEIGHT = 811, 593
PIXELS = WIDTH * HEIGHT


def whole(height: int, width: int) -> Box:
    return Box(0, 0, height, width)


def shrunk(picture: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Averaged to the size of another."""
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    return tensor(image.resize(like.shape[:0:-1], Image.Resampling.BOX))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6, 8, 3])
@pytest.mark.parametrize(("limit", "fraction"), [(PIXELS - 1, 2), (PIXELS // 5, 4), (PIXELS // 20, 8)])
def test_a_large_jpeg_comes_smaller(limit: int, fraction: int, orientation: int, mode: str) -> None:
    data = encoded(scene(1, WIDTH, HEIGHT).convert(mode), quality=95, exif=tagged(orientation).tobytes())
    how = Decoding(max_pixels=limit)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    for read in (decode_picture, lambda data, name, how: decode_box(data, name, whole, how)):
        picture = read(data, "x", how)
        height, width = picture.shape[1:] if orientation < 5 else picture.shape[:0:-1]
        assert abs(height - HEIGHT / fraction) < 1 > abs(width - WIDTH / fraction) and height * width <= limit
        smaller = stored.reduce(fraction).crop((0, 0, width, height))
        smaller.getexif()[0x0112] = orientation
        expected = tensor(ImageOps.exif_transpose(smaller))
        assert (picture.float() - expected.float()).abs().mean() < 4, "grey levels"
    exact = tensor(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert torch.equal(decode_picture(data, "x"), exact)
    assert torch.equal(decode_picture(data, "x", Decoding(max_pixels=PIXELS)), exact), "the limit itself is fine"


@pytest.mark.parametrize("orientation", [1, 6])
def test_parts_of_a_large_jpeg(orientation: int) -> None:
    data = encoded(scene(2, WIDTH, HEIGHT), quality=95, exif=tagged(orientation).tobytes())
    how = Decoding(max_pixels=PIXELS // 20)
    exact = decode_picture(data, "x")
    for box in (Box(0, 0, 400, 300), Box(101, 77, 320, 290), Box(300, 200, 3, 2), Box(580, 580, 1, 1), Box(0, 0, 1, 1)):
        part = decode_box(data, "x", lambda h, w, box=box: box, how)
        assert min(part.shape[1:]) >= 1 and abs(part.shape[1] - box.height / 8) <= 1
        if min(box[2:]) > 8:
            assert (part.float() - shrunk(box.cut(exact), part).float()).abs().mean() < 8, "grey levels"
    least = decode_box(data, "x", lambda h, w: Box(0, 0, 500, 500), Decoding(max_pixels=PIXELS - 1), least=120)
    assert least.shape[1:] == (125, 125), "the smaller of both"


LIMITED = {
    "png": ("PNG", {}), "tiff": ("TIFF", {}), "webp": ("WEBP", {}), "bmp": ("BMP", {}), "gif": ("GIF", {}),
    "avif": ("AVIF", {}), "jpeg 2000": ("JPEG2000", {}), "ppm": ("PPM", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*LIMITED, "heic"])
def test_others_are_refused(kind: str) -> None:
    """A progressive JPEG too: its decoder keeps six bytes for each pixel, whatever comes out."""
    image = scene(4)
    data = heic(image) if kind == "heic" else encoded(image, LIMITED[kind][0], **LIMITED[kind][1])
    pixels = 163 * 117
    expected = rf"^cannot decode /x\.y \(163 x 117 pixels are more than max_pixels {pixels - 1}\): make it smaller, "
    for read in (decode_picture, lambda data, name, how: decode_box(data, name, whole, how)):
        assert read(data, "/x.y", Decoding(max_pixels=pixels)).shape == (3, 117, 163)
        with pytest.raises(CorruptImage, match=expected + r"raise max_pixels, or leave .*--on-corrupt skip$"):
            read(data, "/x.y", Decoding(max_pixels=pixels - 1))


def test_a_jpeg_that_is_too_large_at_an_eighth() -> None:
    with pytest.raises(CorruptImage, match=f"{WIDTH} x {HEIGHT} pixels are more than max_pixels 7000"):
        decode_picture(encoded(scene(1, WIDTH, HEIGHT)), "x", Decoding(max_pixels=7000))


def test_which_jpegs_are_decoded_row_by_row() -> None:
    for options, expected in (({}, True), ({"progressive": True}, False)):
        data = encoded(scene(1), **options)
        assert decodes_row_by_row(data, frame_of(data)) == expected
    data = bytearray(encoded(scene(1)))
    data[data.index(b"\xff\xda") + 4] = 1  # a first scan of one colour alone: the others come later
    assert not decodes_row_by_row(bytes(data), frame_of(bytes(data)))


def png_bomb(side: int) -> bytes:
    """A whole PNG of side x side black pixels, of one bit each."""
    rows = zlib.compress(bytes((side // 8 + 1) * side), 1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff_bomb(side: int) -> bytes:
    data = bytearray(encoded(Image.new("L", (64, 64)), "TIFF", compression="tiff_lzw"))
    count = struct.unpack_from("<H", data, struct.unpack_from("<I", data, 4)[0])[0]
    for i in range(count):
        at = struct.unpack_from("<I", data, 4)[0] + 2 + 12 * i
        if struct.unpack_from("<H", data, at)[0] in (256, 257):
            struct.pack_into("<HII", data, at + 2, 4, 1, side)
    return bytes(data)


@pytest.mark.parametrize("bomb", [png_bomb, tiff_bomb])
def test_bombs_cost_no_memory(bomb: object) -> None:
    data = bomb(20_000)  # type: ignore[operator]
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for read in (decode_picture, lambda data, name: decode_box(data, name, whole)):
        with pytest.raises(CorruptImage, match=f"20000 x 20000 pixels are more than max_pixels {MAX_PIXELS}"):
            read(data, "bomb")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < 30 << 20


def test_pillows_own_limit_does_not_count_and_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode_picture(encoded(scene(1), "PNG"), "x").shape == (3, 117, 163)
    assert Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(CorruptImage):
        decode_picture(b"nothing", "x")
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.fixture
def panorama(tmp_path: Path) -> Path:
    """Six small pictures and, in class b, a panorama as JPEG and as PNG."""
    class_folders(tmp_path / "train", {"a": 3, "b": 3})
    for name in ("b/wide.jpg", "b/wide.png"):
        image = scene(1, 640, 150)
        image.save(tmp_path / "train" / name)
    return tmp_path


@pytest.mark.parametrize("train", [True, False])
def test_loaders_keep_to_the_setting(panorama: Path, train: bool) -> None:
    def indices(**settings: object) -> list[int]:
        data = Data(dataset="imagenet", data_dir=str(panorama), val_split="train", workers=0, batch_size=8, **settings)
        source = open_source(data, "train" if train else "val", world=World(), seed=0)
        if train:
            how = Augmentation(image_size=75)
            batch = next(TrainLoader(source, data, how, world=World(), seed=0).epoch(0))
        else:
            loader = EvalLoader(
                source, Preprocessing(75), batch_size=8, workers=0, world=World(), on_corrupt=data.on_corrupt
            )
            batch = next(iter(loader))
        return sorted(batch.indices.tolist())

    assert np.array_equal(indices(), range(8))
    limit = 640 * 150 - 1
    with pytest.raises(CorruptImage, match=rf"wide\.png \(640 x 150 pixels are more than max_pixels {limit}\)"):
        indices(max_pixels=limit)
    kept = indices(max_pixels=limit, on_corrupt="skip")
    assert 6 in kept and 7 not in kept, "the JPEG is decoded smaller, the PNG left out"


def test_predict_has_the_limit(panorama: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--ckpt-path", str(weights_file(folder)), "--device", "cpu", "--json", "--max-pixels", "50000"]
    assert run([*words, str(panorama / "train" / "b" / "wide.jpg")]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert run([*words, str(panorama / "train" / "b" / "wide.png")]) == 1
    assert "640 x 150 pixels are more than max_pixels 50000" in capsys.readouterr().err
