from __future__ import annotations

import io
import struct
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from photos import encoded, photos
from PIL import Image

from inception_v4.data.crops import draw_box, resize
from inception_v4.data.jpeg import Box, IsUnusual, frame_of
from inception_v4.data.pictures import CorruptImage, Decoding, decode_box, decode_picture, read_picture
from inception_v4.data.shapes import draw_shape
from inception_v4.settings.schema import Augmentation


def _pillow(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


def test_photographs_equal_pillow_bit_for_bit() -> None:
    shapes = set()
    for data in photos(40):
        picture = decode_picture(data, "photo")
        assert picture.dtype == torch.uint8 and torch.equal(picture, _pillow(data))
        shapes.add(tuple(picture.shape))
    assert len(shapes) > 10


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpeg_colour_modes(mode: str) -> None:
    data = encoded(draw_shape("heart", 1, 50).convert(mode), quality=95)
    assert torch.equal(decode_picture(data, "x"), _pillow(data))


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM"])
def test_other_formats_also_under_a_wrong_suffix(fmt: str, tmp_path: Path) -> None:
    data = encoded(draw_shape("heart", 1, 50), fmt)
    (tmp_path / "picture.JPEG").write_bytes(data)
    assert torch.equal(read_picture(tmp_path / "picture.JPEG"), _pillow(data))


def test_sixteen_bits_keep_the_high_byte_and_alpha_is_dropped() -> None:
    grey = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    picture = decode_picture(encoded(Image.fromarray(grey), "PNG"), "x")
    assert torch.equal(picture, torch.from_numpy((grey >> 8).astype(np.uint8)).expand(3, -1, -1))
    image = draw_shape("heart", 1, 50)
    transparent = image.copy()
    transparent.putalpha(0)
    assert torch.equal(decode_picture(encoded(transparent, "PNG"), "x"), decode_picture(encoded(image, "PNG"), "x"))


def test_exif_rotation_is_applied_unless_it_is_off() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(draw_shape("arrow", 1, 60).crop((0, 0, 60, 40)), exif=exif.tobytes())
    assert decode_picture(data, "x").shape == (3, 60, 40)
    assert decode_picture(data, "x", Decoding(exif_rotation=False)).shape == (3, 40, 60)


@pytest.mark.parametrize("keep", [0, 2, 11, 300, 0.3, 0.9, -30])
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_truncated_file_is_named(fmt: str, keep: float) -> None:
    whole = encoded(draw_shape("star", 2, 64), fmt)
    end = int(keep * len(whole)) if isinstance(keep, float) else keep
    decode_picture(whole, "whole")
    with pytest.raises(
        CorruptImage, match=r"^cannot decode /data/a\.jpg \(.+\): replace or delete it.*--on-corrupt"
    ) as e:
        decode_picture(whole[:end], "/data/a.jpg")
    assert "\n" not in str(e.value)


def test_what_is_not_a_picture() -> None:
    with pytest.raises(CorruptImage, match="the file is empty"):
        decode_picture(b"", "x")
    with pytest.raises(CorruptImage, match="not a picture format"):
        decode_picture(b"<html>not found</html>", "x")
    with pytest.raises(CorruptImage):  # a header that promises a gigantic picture
        decode_picture(
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0, 0), "x"
        )
    with pytest.raises(FileNotFoundError):
        read_picture("/nowhere/at/all.jpg")


def _box(seed: int, how: Augmentation | None = None):
    return lambda height, width: draw_box(Random(seed), height, width, how or Augmentation())


def test_the_part_of_a_photograph_has_the_pixels_of_the_whole() -> None:
    for seed, data in enumerate(photos(60)):
        whole = decode_picture(data, "photo")
        assert torch.equal(decode_box(data, "photo", _box(seed)), _box(seed)(*whole.shape[1:]).cut(whole))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_parts_of_every_kind_of_jpeg(mode: str, options: dict[str, object], subsampling: int) -> None:
    image = draw_shape("heart", 1, 101).convert(mode)
    data = encoded(image, quality=90, **options, **({"subsampling": subsampling} if mode == "RGB" else {}))
    whole = decode_picture(data, "x")
    for top, height in ((0, 1), (0, 101), (0, 15), (13, 3), (50, 14), (16, 16), (70, 31)):
        box = Box(top, 7, height, 60)
        assert torch.equal(decode_box(data, "x", lambda h, w, box=box: box), box.cut(whole))


def test_parts_of_other_formats() -> None:
    data = encoded(draw_shape("heart", 1, 50), "PNG")
    assert torch.equal(decode_box(data, "x", lambda h, w: Box(1, 2, 30, 20)), decode_picture(data, "x")[:, 1:31, 2:22])
    with pytest.raises(IsUnusual):
        frame_of(data)


@pytest.mark.parametrize("keep", [0, 2, 11, 300, 0.3, 0.9, -30, -1])
def test_a_truncated_file_is_named_whatever_the_part(keep: float) -> None:
    whole = encoded(draw_shape("star", 2, 64))
    end = int(keep * len(whole)) if isinstance(keep, float) else keep
    with pytest.raises(CorruptImage, match=r"^cannot decode /data/a\.jpg"):
        decode_box(whole[: end - 2 if end == -1 else end], "/data/a.jpg", lambda h, w: Box(0, 0, 8, 8))


def test_a_large_part_comes_smaller_and_looks_the_same() -> None:
    how, differences, moved = Augmentation(image_size=75, scale=(0.4, 1.0)), [], []
    files = [data for data in photos(32) if Image.open(io.BytesIO(data)).mode != "CMYK"]  # those come at full size
    for seed, data in enumerate(files):
        whole = decode_picture(data, "photo")
        box = _box(seed, how)(*whole.shape[1:])
        small = decode_box(data, "photo", lambda h, w, box=box: box, least=75)
        fraction = next((n for n in (8, 4, 2) if min(box.height, box.width) >= 75 * n), 1)
        edges = (box.top, box.left, box.top + box.height, box.left + box.width)
        top, left, bottom, right = ((2 * edge + fraction) // (2 * fraction) for edge in edges)
        assert small.shape[1:] == (bottom - top, right - left)
        assert min(small.shape[1:]) >= 75 or fraction == 1
        snapped = Box(*(fraction * side for side in (top, left, bottom - top, right - left)))
        exact = resize(snapped.cut(whole), [75, 75], how).int()
        differences.append((resize(small, [75, 75], how) - exact).abs().float().mean())
        aside = snapped._replace(left=max(0, snapped.left - 4))
        moved.append((resize(aside.cut(whole), [75, 75], how) - exact).abs().float().mean())
    assert max(differences) < 4 and np.mean(differences) < 2, "grey levels"
    assert np.mean(moved) > 2 * np.mean(differences), "the same boxes 4 pixels aside"
