"""`explain`: heat where the object was planted, by both methods, from any runtime; files for people."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from colours import colour_network
from finding import CORNERS, NAMES, SIDE, finder, pixels, scene
from PIL import Image, ImageDraw
from temporary import NewFolder

from inception_v4.cli.main import run
from inception_v4.inference.factory import open_model
from inception_v4.inference.predict import Predictor
from inception_v4.pages.explaining import class_number, explain_picture, methods_for, stems
from inception_v4.pages.heat import METHODS, grad_cam, occlusion


@pytest.fixture(scope="module")
def weights(module_folder: NewFolder) -> Path:
    return finder(module_folder("finder"))


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    return Predictor(str(weights), device="cpu")


@pytest.fixture(scope="module")
def exported(module_folder: NewFolder) -> Path:
    return colour_network(module_folder("colours"))


def quarter_of(heat: torch.Tensor) -> tuple[int, int]:
    """Column and row of the quarter that holds the most heat, and well over half of all."""
    half = SIDE // 2
    sums = {(c, r): float(heat[r * half :, c * half :][:half, :half].sum()) for c, r in CORNERS.values()}
    best = max(sums, key=lambda place: sums[place])
    assert sums[best] > 0.6 * sum(sums.values()), sums
    return best


def colours(images: torch.Tensor) -> torch.Tensor:
    """Logits of `NAMES` from the share of yellow and of blue, in no time."""
    yellow = (images[:, :2].mean(1) - images[:, 2]) / 2
    bars, disc = (40 * (sign * yellow).relu().mean((1, 2)) for sign in (-1, 1))
    return torch.stack([bars, disc, torch.ones(len(images))], 1)


@pytest.mark.parametrize("kind", ["disc", "bars"])
@pytest.mark.parametrize("corner", CORNERS)
def test_heat_is_where_the_object_was_planted(predictor: Predictor, corner: str, kind: str) -> None:
    images = predictor.network_input(pixels(scene(kind, *CORNERS[corner]))[None])
    for method, model in ((grad_cam, predictor.model), (occlusion, colours)):
        heat = method(model, images, [NAMES.index(kind)])
        assert heat.shape == (1, SIDE, SIDE) and heat.min() >= 0 and heat.max() == 1
        assert quarter_of(heat[0]) == CORNERS[corner], method


def test_two_objects_have_each_their_own_heat(predictor: Predictor) -> None:
    images = predictor.network_input(pixels(two_objects())[None])
    for method, model in ((grad_cam, predictor.model), (occlusion, colours)):
        bars, disc = method(model, images, [0, 1])
        assert quarter_of(disc) == (0, 0) and quarter_of(bars) == (1, 1), method


@pytest.mark.slow
def test_both_methods_agree_on_the_network_itself(predictor: Predictor) -> None:
    found = explain_picture(predictor, pixels(two_objects()), top_k=2)
    assert set(found.classes) == {"disc", "bars"} and all(p > 0.05 for p in found.probabilities)
    for method in METHODS:
        disc, bars = (found.heats[method][found.classes.index(name)] for name in ("disc", "bars"))
        assert quarter_of(disc) == (0, 0) and quarter_of(bars) == (1, 1), method


def two_objects() -> Image.Image:
    both, half = scene("disc", *CORNERS["top left"]), SIDE // 2
    both.paste(scene("bars", *CORNERS["bottom right"]).crop((half, half, SIDE, SIDE)), (half, half))
    return both


def test_a_class_that_is_not_there_has_no_heat(predictor: Predictor) -> None:
    images = predictor.network_input(pixels(scene("disc", 0, 0))[None])
    bars, disc = grad_cam(predictor.model, images, [0, 1])
    assert disc.any() and not bars.any()
    assert not occlusion(lambda x: 1e-4 * colours(x), images, [1]).any()  # a fall of nothing is not blown up


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("corner", CORNERS)
def test_maps_of_a_single_place_are_not_taken(predictor: Predictor, weights: Path, corner: str, fused: bool) -> None:
    """At 75 px the last maps are 1x1: heat from them would cover the whole picture.

    This network's last map sees the middle alone, so a second disc lies there.
    """
    side, picture = 75, scene("disc", *CORNERS[corner])
    middle = SIDE // 2
    ImageDraw.Draw(picture).ellipse((middle - 14, middle - 14, middle + 14, middle + 14), fill=(250, 240, 60))
    model = predictor.model if fused else open_model(str(weights)).model
    images = predictor.network_input(pixels(picture.resize((side, side)))[None])
    (heat,) = grad_cam(model, images, [NAMES.index("disc")])
    assert heat.shape == (side, side) and heat.max() == 1
    column, row = CORNERS[corner]
    thirds = heat.unfold(0, side // 3, side // 3).unfold(1, side // 3, side // 3).mean((2, 3))
    assert divmod(int(thirds.argmax()), 3) == (2 * row, 2 * column), thirds
    assert thirds[2 - 2 * row, 2 - 2 * column] < 0.2 * thirds.max(), thirds


def test_captum_finds_the_same_heat() -> None:
    """On live weights, whose maps are anything but plain."""
    attr = pytest.importorskip("captum.attr")
    from exported import drawn, network
    from torch.nn.functional import interpolate

    from inception_v4.data.normalise import Normalise
    from inception_v4.preprocessing import Preprocessing

    model = network()
    images = Normalise(Preprocessing(image_size=SIDE))(interpolate(drawn(1).float(), SIDE).byte()).requires_grad_()
    ours = grad_cam(model, images.detach(), [0, 3])
    theirs = attr.LayerGradCam(model, model.features[-1]).attribute(images, 3, relu_attributions=True).detach()
    wide = interpolate(theirs, (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
    assert torch.allclose(ours[1], wide / wide.max(), atol=1e-4) and wide.max() > 0
    assert not torch.allclose(ours[0], ours[1], atol=0.05)


def test_the_command_writes_a_sheet_and_each_overlay(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        scene("disc", 1, 0).save(tmp_path / name / "x.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG and no more")
    out = tmp_path / "out"
    words = ["explain", f"--ckpt-path={weights}", f"-o{out}", "--method=gradcam", "--top-k=2", "--device=cpu"]
    assert run([*words, str(tmp_path / "a"), str(tmp_path / "broken.png"), str(tmp_path / "b")]) == 1
    shown = capsys.readouterr()
    assert shown.out.split() == [str(out / "x.png"), str(out / "x-2.png")]
    assert "broken.png" in shown.err and "1 of 3 pictures could not be read" in shown.err
    assert {path.name for path in out.iterdir()} == {
        "x.png", "x-1-disc-gradcam.png", "x-2-nothing-gradcam.png",
        "x-2.png", "x-2-1-disc-gradcam.png", "x-2-2-nothing-gradcam.png",
    }  # fmt: skip
    plain, hot = Image.open(tmp_path / "a" / "x.png"), Image.open(out / "x-1-disc-gradcam.png").convert("RGB")
    change = (pixels(hot.resize(plain.size)).float() - pixels(plain).float()).abs().mean(0)
    assert quarter_of(change) == (1, 0)


def test_what_cannot_be_explained_is_one_line(
    weights: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(tmp_path / "x.png")
    scene("bars", 0, 0).save(picture)
    for words, part in (
        (["--class=dist", f"--ckpt-path={weights}"], "no class 'dist': disc"),
        (["--method=gradcam", f"--ckpt-path={exported}"], "--method occlusion"),
        ([], "--ckpt-path FILE or --pretrained"),
    ):
        assert run(["explain", picture, f"-o{tmp_path / 'out'}", "--device=cpu", *words]) != 0
        assert part in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_exported_file_is_explained_by_occlusion(exported: Path) -> None:
    predictor = Predictor(str(exported), device="cpu")
    picture = torch.full((3, 75, 75), 60, dtype=torch.uint8)
    picture[2, 40:, 40:] = 255
    assert methods_for(predictor, None) == ("occlusion",)
    (blue,) = explain_picture(predictor, picture, methods=["occlusion"], class_name="blue").heats["occlusion"]
    assert blue[40:, 40:].mean() > 5 * blue[:40, :40].mean()


def test_names_of_classes_and_of_files() -> None:
    assert class_number(("n01440764", "n02123045"), "tabby") == 1 and class_number(NAMES, "bars") == 0
    assert class_number(NAMES, "2") == 2 and class_number(("7", "2", "9"), "2") == 1
    with pytest.raises(ValueError, match="are among the 3"):
        class_number(NAMES, "zebra")
    assert list(stems(["a/x.png", "b/X.jpg", "c/x-2.png", "d/x.gif"])) == ["x", "X-2", "x-2-2", "x-3"]
