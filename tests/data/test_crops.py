from __future__ import annotations

import random
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from inception_v4.data.crops import _MODES, EvalTransform, below, draw_box, middle_of_strip, resize
from inception_v4.data.views import CropsTransform
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.schema import Augmentation

_BOXES = 4000


def _ours(height: int, width: int, how: Augmentation) -> np.ndarray:
    return np.array([draw_box(Random(seed), height, width, how) for seed in range(_BOXES)], dtype=float)


def _timms(height: int, width: int, how: Augmentation) -> np.ndarray:
    image, state = Image.new("L", (width, height)), random.getstate()
    random.seed(0)
    params = RandomResizedCropAndInterpolation.get_params
    boxes = [params(image, how.scale, how.ratio) for _ in range(_BOXES)]
    random.setstate(state)
    return np.array(boxes, dtype=float)


def _statistics(boxes: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    top, left, h, w = boxes.T
    return {
        "area": h * w / (height * width),
        "aspect": w / h,
        # Where the box lies in the room it has; 0.5 where it has none.
        "down": np.where(h < height, top / np.maximum(height - h, 1), 0.5),
        "right": np.where(w < width, left / np.maximum(width - w, 1), 0.5),
    }


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov's and Smirnov's: the largest difference of the two distribution functions."""
    points = np.concatenate([a, b])
    return np.abs(
        np.searchsorted(np.sort(a), points, "right") / len(a) - np.searchsorted(np.sort(b), points, "right") / len(b)
    ).max()


_LIMIT = 1.95 * (2 / _BOXES) ** 0.5  # exceeded once in a thousand by samples of one distribution


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (100, 900), (64, 64)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.35, 1.0)])
def test_boxes_are_distributed_as_timms(height: int, width: int, scale: tuple[float, float]) -> None:
    how = Augmentation(scale=scale)
    ours = _statistics(_ours(height, width, how), height, width)
    theirs = _statistics(_timms(height, width, how), height, width)
    distances = {name: _distance(ours[name], theirs[name]) for name in ours}
    assert max(distances.values()) < _LIMIT, distances


def test_another_distribution_is_seen() -> None:
    theirs = _statistics(_timms(375, 500, Augmentation()), 375, 500)
    area = _statistics(_ours(375, 500, Augmentation(scale=(0.12, 1.0))), 375, 500)
    aspect = _statistics(_ours(375, 500, Augmentation(ratio=(0.8, 4 / 3))), 375, 500)
    assert _distance(area["area"], theirs["area"]) > _LIMIT
    assert _distance(aspect["aspect"], theirs["aspect"]) > _LIMIT


def test_boxes_lie_inside() -> None:
    for height, width in ((1, 1), (1, 700), (299, 3), (40, 41)):
        for top, left, h, w in _ours(height, width, Augmentation())[:300]:
            assert h >= 1 and w >= 1 and top >= 0 and left >= 0 and top + h <= height and left + w <= width


def test_below_reaches_both_ends() -> None:
    rng = Random(0)
    assert {below(rng, 3) for _ in range(100)} == {0, 1, 2}


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("filter_", ["bicubic", "bilinear", "nearest"])
def test_resizing_is_torchvisions_to_the_last_bit(
    filter_: str, antialias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = {name: InterpolationMode(word) for name, word in _MODES.items()}
    how = Preprocessing(interpolation=filter_, antialias=antialias)
    for case, (sides, size) in enumerate(
        ((((301, 500)), [113]), ((500, 301), [341]), ((64, 64), [64]), ((90, 80), [75, 99]))
    ):
        picture = torch.randint(256, (3, *sides), generator=torch.Generator().manual_seed(case), dtype=torch.uint8)
        for channels in (3, 1):
            expected = functional.resize(picture[:channels], size, modes[filter_], antialias=antialias)
            found = resize(picture[:channels], size, how)
            assert torch.equal(found, expected) and found.dtype is torch.uint8
            if found.shape[1:] != picture.shape[1:]:
                assert not torch.equal(found[:, 1:], expected[:, :-1])
            # Where the filter for bytes is slow, numbers are resized: as torchvision does then.
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
            expected = functional.resize(picture[:channels], size, modes[filter_], antialias=antialias)
            assert torch.equal(resize(picture[:channels], size, how), expected)
            monkeypatch.undo()


@pytest.mark.parametrize(("antialias", "offset"), [(True, 2), (False, 1)])
def test_the_centre_is_where_torchvision_and_mindspore_have_it(antialias: bool, offset: int) -> None:
    picture = torch.arange(78 * 78, dtype=torch.int64).remainder(251).to(torch.uint8).view(1, 78, 78).expand(3, -1, -1)
    how = Preprocessing(75, crop_pct=75 / 78 - 1e-9, antialias=antialias)
    found = EvalTransform(how)(picture)
    if antialias:
        assert torch.equal(found, functional.center_crop(picture, [75, 75]))
    assert torch.equal(found, picture[:, offset : offset + 75, offset : offset + 75])


def test_a_strip_is_cut_to_its_middle_and_other_pictures_stay_as_they_are() -> None:
    columns = torch.arange(1000, dtype=torch.float32).div(4).to(torch.uint8).expand(3, 2, -1)
    middle = middle_of_strip(columns)
    assert torch.equal(middle, columns[..., 400:600]) and torch.equal(middle_of_strip(columns.mT), middle.mT)
    assert middle_of_strip(columns[..., :200]).shape == (3, 2, 200)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_a_thin_picture_takes_no_memory(shape: tuple[int, int]) -> None:
    """Resized as a whole by its shorter side it would have 21 GB."""
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    how = Preprocessing(image_size=299)
    assert EvalTransform(how)(image).shape == (3, 299, 299)
    assert CropsTransform(how, 12)(image).shape == (6, 3, 299, 299)
