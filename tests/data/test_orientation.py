"""Orientation against Pillow's own transposition, in every format and every reader."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import yaml
from exported import CLASSES, HOW, folder, network, weights_file
from photos import encoded
from PIL import Image, ImageDraw, ImageOps
from running import ROOT
from temporary import NewFolder

from inception_v4.cli.main import run
from inception_v4.data.crops import draw_box, resize
from inception_v4.data.jpeg import Box
from inception_v4.data.loader import EvalLoader, TrainLoader
from inception_v4.data.pictures import CorruptImage, Decoding, decode_box, decode_picture, read_picture
from inception_v4.data.sources import FolderSource
from inception_v4.distributed import World
from inception_v4.export.plan import calibration_pictures
from inception_v4.inference.predict import Predictor
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.recipes import load_config
from inception_v4.settings.schema import Augmentation, Data
from inception_v4.training.parts import turned_otherwise
from inception_v4.weights import WeightsInfo, read_weights, save_weights

__all__ = ["folder"]

AS_STORED = Decoding(exif_rotation=False)
EIGHT = pytest.mark.parametrize("orientation", range(1, 9))
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""How a camera stores an upright picture under each orientation."""


def scene(seed: int, width: int = 163, height: int = 117) -> Image.Image:
    """Neither square nor symmetric: smooth colours, noise, and a red corner at the top left."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 30, (height, width))
    pixels = np.stack([x * 200 // width + noise, y * 220 // height + noise, (x + 2 * y) % 200 + noise], axis=2)
    image = Image.fromarray(pixels.astype(np.uint8))
    ImageDraw.Draw(image).rectangle((0, 0, 30, 20), fill=(220, 30, 30))
    return image


def tagged(orientation: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", orientation
    return exif


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def turned(data: bytes) -> torch.Tensor:
    """By Pillow alone."""
    return tensor(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


def plain(data: bytes) -> torch.Tensor:
    return tensor(Image.open(io.BytesIO(data)))


KINDS = {
    "jpeg": ("JPEG", {"quality": 90}), "grey jpeg": ("JPEG", {}), "cmyk jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}), "png": ("PNG", {}), "16 bit png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}), "lossy webp": ("WEBP", {}), "tiff": ("TIFF", {}),
    "packed tiff": ("TIFF", {"compression": "tiff_lzw"}), "avif": ("AVIF", {}),
}  # fmt: skip


def file_of(kind: str, orientation: int, seed: int = 1) -> bytes:
    fmt, options = KINDS[kind]
    image = scene(seed)
    if kind == "16 bit png":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif kind.split()[0] in ("grey", "cmyk"):
        image = image.convert({"grey": "L", "cmyk": "CMYK"}[kind.split()[0]])
    return encoded(image, fmt, exif=tagged(orientation).tobytes(), **options)


@EIGHT
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_equals_pillows_transposition(kind: str, orientation: int, tmp_path: Path) -> None:
    data = file_of(kind, orientation)
    (tmp_path / "picture").write_bytes(data)
    picture = read_picture(tmp_path / "picture")
    upright = turned(data)
    if kind == "16 bit png":
        # Pillow clips such a picture to white; its own arithmetic on the turned one is exact.
        grey = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))) >> 8
        upright = torch.from_numpy(grey.astype(np.uint8)).expand(3, -1, -1)
    assert torch.equal(picture, upright)
    assert picture.shape[1:] == ((117, 163) if orientation < 5 else (163, 117))
    if kind != "16 bit png":
        assert torch.equal(decode_picture(data, "x", AS_STORED), plain(data)), "off: as Pillow opens it"
    box = Box(11, 7, 50, 90)
    assert torch.equal(decode_box(data, "x", lambda h, w: box), box.cut(upright))


@EIGHT
def test_a_turned_camera_gives_the_upright_scene(orientation: int) -> None:
    stored = scene(2).transpose(UNDO[orientation]) if orientation > 1 else scene(2)
    data = encoded(stored, "PNG", exif=tagged(orientation))
    assert torch.equal(decode_picture(data, "x"), tensor(scene(2)))
    assert orientation == 1 or not torch.equal(decode_picture(data, "x", AS_STORED), tensor(scene(2)))


@EIGHT
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_parts_of_a_turned_jpeg_are_those_of_the_upright_picture(orientation: int, subsampling: int) -> None:
    data = encoded(scene(3), quality=88, subsampling=subsampling, exif=tagged(orientation).tobytes())
    whole = turned(data)
    for seed in range(25):
        seen: list[tuple[int, int]] = []

        def choose(height: int, width: int, seed: int = seed, seen: list[tuple[int, int]] = seen) -> Box:
            seen.append((height, width))
            return draw_box(Random(seed), height, width, Augmentation())

        part = decode_box(data, "x", choose)
        assert seen == [tuple(whole.shape[1:])], "asked once, about the upright picture"
        assert torch.equal(part, draw_box(Random(seed), *whole.shape[1:], Augmentation()).cut(whole))


@EIGHT
def test_scaled_parts_of_a_turned_jpeg(orientation: int) -> None:
    """At a fraction of its size a part is the turned part of the stored picture, and looks like the scene."""
    big = scene(4, 811, 593)
    data = encoded(big, quality=95, exif=tagged(orientation).tobytes())
    whole = turned(data)
    height, width = whole.shape[1:]
    places = np.arange(593 * 811).reshape(593, 811).astype(np.int32)  # each pixel's place in the stored picture
    marked = Image.fromarray(places)
    marked.getexif()[0x0112] = orientation
    upright_places = np.asarray(ImageOps.exif_transpose(marked))
    for seed in range(6):
        box = draw_box(Random(seed), height, width, Augmentation(scale=(0.5, 1.0)))
        part = decode_box(data, "x", lambda h, w, box=box: box, least=80)
        inside = upright_places[box.top : box.top + box.height, box.left : box.left + box.width]
        rows, columns = inside // 811, inside % 811
        stored = Box(int(rows.min()), int(columns.min()), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
        small = decode_box(data, "x", lambda h, w, stored=stored: stored, AS_STORED, least=80)
        mode = Image.fromarray(small.permute(1, 2, 0).contiguous().numpy())
        mode.getexif()[0x0112] = orientation
        assert torch.equal(part, tensor(ImageOps.exif_transpose(mode)))
        assert min(part.shape[1:]) >= 80 and max(part.shape[1:]) < max(box.height, box.width) / 2 + 1
        how = Augmentation(image_size=80)
        exact = resize(box.cut(whole), [80, 80], how).float()
        assert (resize(part, [80, 80], how).float() - exact).abs().mean() < 4, "grey levels"


def test_xmp_says_it_where_exif_does_not() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    without = Image.Exif()
    without[0x010F] = "Maker"
    for options in ({"xmp": xmp}, {"xmp": xmp, "exif": without.tobytes()}, {"xmp": xmp, "exif": tagged(3).tobytes()}):
        data = encoded(scene(5), **options)
        assert torch.equal(decode_picture(data, "x"), turned(data))
        assert torch.equal(decode_box(data, "x", lambda h, w: Box(0, 0, h, w)), turned(data))


@pytest.mark.parametrize("value", [0, 9, 65535])
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_does_not_exist_turns_nothing(fmt: str, value: int) -> None:
    data = encoded(scene(6), fmt, exif=tagged(value).tobytes())
    assert torch.equal(decode_picture(data, "x"), plain(data))


@pytest.mark.parametrize("kind", ["jpeg", "cmyk jpeg"])
def test_damaged_exif_does_not_cost_the_picture(kind: str) -> None:
    data = file_of(kind, 6)
    start = data.index(b"Exif\0\0") + 6
    for seed in range(100):
        rng = np.random.default_rng(seed)
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 12))):
            damaged[start + int(rng.integers(0, 36))] = int(rng.integers(256))
        for picture in (
            decode_picture(bytes(damaged), "x"),
            decode_box(bytes(damaged), "x", lambda h, w: Box(0, 0, h, w)),
        ):
            assert sorted(picture.shape[1:]) == [117, 163]
    with pytest.raises(CorruptImage):
        decode_picture(data[: start + 20], "x")


@pytest.fixture(scope="module")
def phone(module_folder: NewFolder) -> tuple[Path, Path]:
    """Photos as a phone stores them, in all orientations and several formats, and the same, upright, as PNG."""
    root = module_folder("phone")
    for i in range(24):
        kind, orientation = ("jpeg", "png", "webp")[i // 8], i % 8 + 1
        data = file_of(kind, orientation, seed=i)
        for name, content in (("stored", data), ("upright", encoded(ImageOps.exif_transpose(
            Image.open(io.BytesIO(data))), "PNG"))):  # fmt: skip
            path = root / name / "train" / "ab"[i % 2] / f"{i:02}.{'png' if name == 'upright' else kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root / "stored" / "train", root / "upright" / "train"


def batches(root: Path, how: Augmentation, *, train: bool) -> torch.Tensor:
    source = FolderSource(root)
    if train:
        loader = TrainLoader(source, Data(batch_size=24, workers=0), how, world=World(), seed=1)
        return next(loader.epoch(0)).images
    return next(iter(EvalLoader(source, how.preprocessing(), batch_size=24, workers=0, world=World()))).images


@pytest.mark.parametrize("train", [True, False])
def test_loaders_see_upright_pictures(phone: tuple[Path, Path], train: bool) -> None:
    stored, upright = phone
    how = Augmentation(image_size=75)
    assert torch.equal(batches(stored, how, train=train), batches(upright, how, train=train))
    off = how.model_copy(update={"exif_rotation": False})
    assert not torch.equal(batches(stored, off, train=train), batches(upright, off, train=train))


def test_calibration_sees_upright_pictures(phone: tuple[Path, Path]) -> None:
    info = WeightsInfo(2, None, HOW)
    stored, upright = (torch.cat(calibration_pictures(str(root), info)) for root in phone)
    assert torch.equal(stored, upright)
    off = info.replace(preprocessing=HOW.replace(exif_rotation=False))
    assert not torch.equal(torch.cat(calibration_pictures(str(phone[0]), off)), upright)


def described(folder: Path, name: str, preprocessing: dict[str, object]) -> Path:
    """The live weights with a record of their own."""
    info = WeightsInfo(len(CLASSES), CLASSES, HOW, source="tests")
    path = save_weights(network(), folder / name, info)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    record = json.loads(header["__metadata__"]["inception_v4"])
    header["__metadata__"]["inception_v4"] = json.dumps(record | {"preprocessing": preprocessing})
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return path


@pytest.mark.slow
def test_predict_follows_the_weights_record(folder: Path, phone: tuple[Path, Path], tmp_path: Path) -> None:
    stored, upright = (sorted(map(str, root.rglob("*.*")))[:6] for root in phone)
    on = Predictor(str(weights_file(folder)), device="cpu")
    expected = on.probabilities(upright)
    assert on.preprocessing.exif_rotation and torch.equal(on.probabilities(stored), expected)
    record = HOW.to_dict()
    for name, changed in (("off", record | {"exif_rotation": False}), ("old", dict(list(record.items())[:-1]))):
        predictor = Predictor(str(described(tmp_path, f"{name}.safetensors", changed)), device="cpu")
        assert not predictor.preprocessing.exif_rotation, name
        assert not torch.equal(predictor.probabilities(stored), expected)


@pytest.mark.slow
def test_predict_and_validate_can_be_told_otherwise(
    folder: Path, phone: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(weights_file(folder))

    def probability(*more: str) -> float:
        assert run(["predict", picture, "--ckpt-path", file, "--device", "cpu", "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)[0]["probability"]

    picture = str(phone[0] / "b" / "05.jpeg")
    assert probability() == probability("--exif-rotation") != probability("--no-exif-rotation")
    for word, kept in (([], True), (["--no-exif-rotation"], False)):
        words = ["validate", "--ckpt-path", file, "--data-dir", str(phone[0].parent), "--device", "cpu", "--json"]
        assert run([*words, "--num-classes", "6", "--workers", "0", *word]) == 0
        assert json.loads(capsys.readouterr().out)["preprocessing"]["exif_rotation"] is kept


def test_records_say_it() -> None:
    record = Preprocessing().to_dict()
    assert record["exif_rotation"] is True and Preprocessing.from_dict(record).exif_rotation
    assert not Preprocessing.from_dict(record | {"exif_rotation": False}).exif_rotation
    old = {name: value for name, value in record.items() if name != "exif_rotation"}
    assert not Preprocessing.from_dict(old).exif_rotation, "it was measured with pictures as they are stored"
    for timms in ({"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.9}, {}):
        assert Preprocessing.from_dict(timms).exif_rotation


def test_a_run_that_goes_on_otherwise_says_so() -> None:
    record = Preprocessing().to_dict()
    on, off = (Preprocessing.from_dict(stored) for stored in (record, dict(list(record.items())[:-1])))
    for before, how, remedy in (
        (on, True, None), (off, False, None), (on, False, "add --exif-rotation"), (off, True, "add --no-exif-rotation")
    ):  # fmt: skip
        lines = turned_otherwise(before, {"exif_rotation": how})
        assert not lines if remedy is None else lines[0].endswith(remedy)


def test_a_run_turns_pictures_as_its_weights_say_unless_told() -> None:
    for before in (Preprocessing(), Preprocessing(exif_rotation=False)):
        assert Augmentation().prepared_like(before).exif_rotation is before.exif_rotation
        assert not turned_otherwise(before, {})
        assert Augmentation(exif_rotation=True).prepared_like(before).exif_rotation


def test_weights_without_a_record_are_for_upright_pictures(folder: Path, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "timm.pth")
    assert read_weights(tmp_path / "timm.pth").info.preprocessing.exif_rotation


def test_recipes_decide_it() -> None:
    """ImageNet's are compared with published figures; the others are for people's own photos."""
    files = {p.stem: yaml.safe_load(p.read_text()) for p in (ROOT / "configs").glob("*.yaml")}
    decided = {name: leaves["exif_rotation"] for name, leaves in files.items() if "exif_rotation" in leaves}
    assert decided == {name: False for name in files if name.startswith("imagenet")} and len(decided) == 3
    fixtures = ROOT / "tests" / "fixtures"
    for name in ("mindcv_inception_v4_ascend", "modelzoo_default_config", "timm_args"):
        assert not load_config(fixtures / f"{name}.yaml")[0].augmentation.exif_rotation, name
    assert load_config("finetune", {"data_dir": "photos"})[0].augmentation.exif_rotation
