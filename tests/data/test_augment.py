from __future__ import annotations

import math
from functools import partial
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import timm.data
import torch
from augmix import AugMixOnPillow
from photos import photos
from PIL import Image
from running import ROOT
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from inception_v4.data.augment import (
    TrainTransform,
    draw_erased_box,
    policy,
)
from inception_v4.data.crops import EvalTransform, pad_crop
from inception_v4.data.mixing import MixAndErase
from inception_v4.data.normalise import Normalise
from inception_v4.data.pictures import decode_picture
from inception_v4.data.views import eval_transform
from inception_v4.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from inception_v4.settings.schema import Augmentation

_MINDSPORE = ROOT / "tests" / "fixtures" / "mindspore_resize_bilinear.npz"
"""A picture [500, 700, 3] and what MindSpore's Resize(341, BILINEAR) and a centre crop of 299 make of it: a cross of 30
rows and 30 columns, so that every row and every column is there; all else is black in both."""


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _augmented(how: Augmentation, picture: Tensor, seed: int = 0) -> Tensor:
    transform, rng = TrainTransform(how), Random(seed)
    return transform(transform.box(*picture.shape[1:], rng).cut(picture), rng)


def _furthest(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize(("size", "crop_pct"), [(299, 0.875), (75, 0.9), (107, 1.0)])
def test_evaluation_equals_timm(interpolation: str, size: int, crop_pct: float) -> None:
    ours = eval_transform(Preprocessing(size, crop_pct=crop_pct, interpolation=interpolation))
    theirs = timm.data.create_transform(
        (3, size, size), interpolation=interpolation, crop_pct=crop_pct, use_prefetcher=True
    )
    differences = []
    for data in photos(8):
        picture = decode_picture(data, "photo")
        expected = torch.from_numpy(np.asarray(theirs(Image.fromarray(picture.permute(1, 2, 0).numpy()))))
        assert ours(picture).shape == expected.shape == (3, size, size)
        differences.append((ours(picture).int() - expected).abs().flatten())
    difference = torch.cat(differences)
    if interpolation == "nearest":
        assert (difference > 0).float().mean() < 0.05  # ties: a row and a column in 83
    else:
        assert difference.max() <= (2 if interpolation == "bicubic" else 1)
        assert (difference > 1).float().mean() < 1e-5 and (difference > 0).float().mean() < 0.01


def test_evaluation_without_antialiasing_is_another_function() -> None:
    picture = decode_picture(photos(1)[0], "photo")
    how = Preprocessing(75)
    assert _furthest(eval_transform(how)(picture), eval_transform(how.replace(antialias=False))(picture)) > 20


def test_evaluation_without_antialiasing_equals_mindspore() -> None:
    values = np.load(_MINDSPORE)
    picture, expected = (torch.from_numpy(values[name]).permute(2, 0, 1) for name in ("img", "resized"))
    how = Preprocessing(interpolation="bilinear", antialias=False)
    ours, other = (EvalTransform(h)(picture) for h in (how, how.replace(antialias=True)))
    for part in ((slice(None), slice(40, 70)), (slice(None), slice(None), slice(80, 110))):
        assert expected[part].float().std() > 30
        assert _furthest(ours[part], expected[part]) <= 1
        assert _furthest(other[part], expected[part]) > 20


def test_centre_crop_offset_is_mindspores_without_antialiasing_and_timms_with() -> None:
    picture = torch.arange(454, dtype=torch.int32).fmod(256).to(torch.uint8).expand(3, 299, 454)
    how = Preprocessing(299, crop_pct=1.0, interpolation="bilinear")
    assert EvalTransform(how.replace(antialias=False))(picture)[0, 0, 0] == 77
    assert EvalTransform(how)(picture)[0, 0, 0] == 78


@pytest.mark.parametrize("crop", ["random_resized", "pad", "centre"])
@pytest.mark.parametrize("shape", [(32, 32), (90, 300), (1, 1), (333, 17)])
def test_every_picture_becomes_a_square(crop: str, shape: tuple[int, int]) -> None:
    result = _augmented(Augmentation(image_size=75, train_crop=crop, vflip=0.5, color_jitter=0.4), _random(3, *shape))
    assert result.shape == (3, 75, 75) and result.dtype == torch.uint8


def test_pad_crop_is_cifars() -> None:
    how = Augmentation(image_size=96, train_crop="pad", interpolation="nearest")
    picture = _random(3, 32, 32) | 1  # no black pixel
    seen = set()
    rng = Random(0)
    for _ in range(400):
        small = pad_crop(picture, how, rng)[:, 1::3, 1::3]
        rows, columns = (small[0] != 0).any(1), (small[0] != 0).any(0)
        top = int(rows.nonzero()[0]) or int(rows.nonzero()[-1]) - 31
        left = int(columns.nonzero()[0]) or int(columns.nonzero()[-1]) - 31
        padded = torch.nn.functional.pad(picture, [4] * 4)
        assert torch.equal(small, padded[:, 4 - top : 36 - top, 4 - left : 36 - left])
        seen |= {(0, top), (1, left)}
    assert seen == {(axis, offset) for axis in (0, 1) for offset in range(-4, 5)}


def test_flips() -> None:
    picture = _random(3, 75, 75)
    still = {"image_size": 75, "train_crop": "centre", "crop_pct": 1.0, "interpolation": "nearest"}
    assert torch.equal(_augmented(Augmentation(**still, hflip=1), picture), picture.flip(2))
    assert torch.equal(_augmented(Augmentation(**still, hflip=0, vflip=1), picture), picture.flip(1))
    assert torch.equal(_augmented(Augmentation(**still, hflip=0), picture), picture)
    flipped = [torch.equal(_augmented(Augmentation(**still), picture, seed), picture.flip(2)) for seed in range(100)]
    assert 35 < sum(flipped) < 65


@pytest.mark.parametrize(
    ("text", "kind", "attributes"),
    [
        ("autoaug", v2.AutoAugment, {}),
        ("original", v2.AutoAugment, {}),
        ("randaug", v2.RandAugment, {"magnitude": 9, "num_ops": 2, "num_magnitude_bins": 11}),
        ("rand-m7-n3-inc1", v2.RandAugment, {"magnitude": 7, "num_ops": 3, "probability": 1.0, "deviation": 0.0}),
        ("rand-m7-p0.5-mstd0.4", v2.RandAugment, {"magnitude": 7, "probability": 0.5, "deviation": 0.4}),
        ("RandAug-M10-mstd0", v2.RandAugment, {"magnitude": 10}),
        ("trivialaugwide", v2.TrivialAugmentWide, {}),
        ("augmix", v2.AugMix, {"severity": 3, "mixture_width": 3, "chain_depth": -1}),
        ("augmix-m5-w4-d2", v2.AugMix, {"severity": 5, "mixture_width": 4, "chain_depth": 2}),
    ],
)
def test_policies(text: str, kind: type, attributes: dict[str, int]) -> None:
    how = Augmentation(image_size=75, auto_augment=text, color_jitter=0.4)
    found = policy(text, [128, 128, 128]).policy
    assert isinstance(found, kind) and {name: getattr(found, name) for name in attributes} == attributes
    results = [_augmented(how, _random(3, 60, 80), seed) for seed in range(8)]
    assert all(r.shape == (3, 75, 75) and r.dtype == torch.uint8 for r in results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("autoagu", "auto_augment 'autoagu' is unknown: choose autoaug, randaug"),
        ("3a", "is unknown"),
        ("randaug-m9-t1", "option 't1' is not supported; randaug takes m0..10, n1..14, p0..1, mstd0..100"),
        ("randaug-m9-p1.5", "'p1.5' must be between 0 and 1"),
        ("randaug-m11", "'m11' must be between 0 and 10"),
        ("randaug-m9.5", "option 'm9.5'"),
        ("randaug--m9", "option ''"),
        ("autoaug-m9", "option 'm9' is not supported; autoaug takes no options"),
        ("augmix-m0", "'m0' must be between 1 and 10"),
    ],
)
def test_policies_that_would_mean_something_else(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        policy(text, [128, 128, 128])
    assert message in str(error.value)


def _changed(text: str, picture: Tensor, times: int = 200) -> float:
    torch.manual_seed(0)
    transform = policy(text, [128, 128, 128])
    return sum(not torch.equal(transform(picture), picture) for _ in range(times)) / times


def test_operations_are_left_out_with_the_probability_given() -> None:
    picture = _random(3, 40, 40)
    always = _changed("randaug-m5-n1", picture)
    assert always > 0.8 and abs(_changed("randaug-m5-n1-p0.5", picture) - always / 2) < 0.12
    assert _changed("randaug-m5-n2-p0", picture) == 0


@pytest.mark.parametrize("operation", ["Rotate", "Solarize", "Brightness", "Posterize", "Equalize"])
def test_a_strength_that_varies_stays_on_its_scale(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[float] = []
    monkeypatch.setattr(
        v2.RandAugment, "_apply_image_or_video_transform",
        lambda self, image, name, magnitude, *rest: applied.append(magnitude) or image,
    )  # fmt: skip
    found = policy("randaug-m9-mstd2", [0, 0, 0]).policy
    strengths = found._AUGMENTATION_SPACE[operation][0](11, 40, 40)
    middle = 0.0 if strengths is None else float(strengths[9])
    torch.manual_seed(0)
    for _ in range(300):
        found._apply_image_or_video_transform(_random(3, 40, 40), operation, -middle, None, None)
    seen = torch.tensor(applied).abs()
    if strengths is None:
        assert seen.unique().tolist() == [0.0]
    else:
        low, high = sorted((float(strengths[0]), float(strengths[10])))
        assert low - 1e-4 <= seen.min() and seen.max() <= high + 1e-4 and max(applied) <= 0
        at_its_end = (seen - float(strengths[10])).abs() < 1e-6
        assert 0.25 < at_its_end.double().mean() < 0.75, "a third lies beyond the scale"
        assert len(seen.unique()) > 50


@pytest.mark.parametrize(
    ("text", "torchvisions"),
    [("autoaug", v2.AutoAugment), ("randaug-m9-n3", partial(v2.RandAugment, 3, 9, 11)),
     ("trivialaugwide", v2.TrivialAugmentWide), ("augmix", AugMixOnPillow)],
)  # fmt: skip
@pytest.mark.parametrize("channels", [3, 1])
def test_policies_give_torchvisions_pixels_on_pillow_pictures(text: str, torchvisions: type, channels: int) -> None:
    """Whatever an operation runs on, in every order of operations."""
    mean = [124, 116, 104][:channels]
    ours = policy(text, mean)
    reference = torchvisions(interpolation=InterpolationMode.BILINEAR, fill=mean)
    changed = 0
    for seed in range(150):
        picture = _random(channels, 41, 40, seed=seed)
        torch.manual_seed(seed)
        found = ours(picture)
        torch.manual_seed(seed)
        expected = pil_to_tensor(reference(to_pil_image(picture)))
        assert torch.equal(found, expected)
        changed += not torch.equal(found, picture)
    assert changed > 100


@pytest.mark.parametrize("text", ["randaug-m9-n3", "trivialaugwide"])
def test_shifts_by_whole_pixels_are_those_of_the_filter(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = policy(text, [9, 8, 7]).policy
    kind = next(one for one in type(ours).__mro__ if one.__module__.startswith("torchvision"))
    seen: set[tuple[str, object]] = set()
    plain = kind._apply_image_or_video_transform
    for name in ("TranslateX", "TranslateY"):
        for pixels in (-70.0, -1.2, 3.0, 31.9):
            picture = Image.fromarray(_random(80, 91, 3).numpy())
            expected = plain(ours, picture, name, pixels, ours.interpolation, ours._fill)
            found = ours._apply_image_or_video_transform(picture, name, pixels, ours.interpolation, ours._fill)
            assert np.array_equal(np.array(found), np.array(expected)) and not np.array_equal(found, picture)

    def noted(self: v2.Transform, image: Image.Image, name: str, magnitude: float, how: object, fill: object) -> object:
        seen.add((name[:9], how))
        return plain(self, image, name, magnitude, how, fill)

    monkeypatch.setattr(kind, "_apply_image_or_video_transform", noted)
    torch.manual_seed(0)
    for _ in range(60):
        ours(picture)
    assert {how for name, how in seen if name == "Translate"} == {InterpolationMode.NEAREST}
    assert {how for name, how in seen if name == "Rotate"} == {InterpolationMode.BILINEAR}


def test_uncovered_corners_get_the_mean_colour() -> None:
    transform = policy("randaug-m10-n1", [124, 116, 104])
    white = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    corners = {tuple(transform(white)[:, 0, 0].tolist()) for _ in range(60)}
    assert (124, 116, 104) in corners


def test_erased_boxes() -> None:
    how = Augmentation(image_size=100, re_prob=0.5, re_scale=(0.05, 0.3), re_ratio=(0.5, 2.0))
    rng = Random(0)
    boxes = torch.stack([draw_erased_box(how, rng) for _ in range(600)])
    drawn = boxes[boxes.any(1)].double()
    assert boxes.dtype == torch.int32 and 0.44 < len(drawn) / len(boxes) < 0.56
    height, width = drawn[:, 2] - drawn[:, 0], drawn[:, 3] - drawn[:, 1]
    area, aspect = height * width / 10000, height / width
    assert drawn.min() >= 0 and drawn.max() <= 100
    assert 0.047 < area.min() < 0.08 and 0.26 < area.max() < 0.31
    assert 0.47 < aspect.min() < 0.6 and 1.7 < aspect.max() < 2.1
    impossible = how.model_copy(update={"re_prob": 1.0, "re_scale": (0.9, 0.9), "re_ratio": (3.0, 3.0)})
    assert not draw_erased_box(impossible, rng).any()


def _batch(count: int = 8, size: int = 75, erase: Tensor | None = None) -> SimpleNamespace:
    return SimpleNamespace(images=_random(count, 3, size, size), labels=torch.arange(count) % 5, erase=erase)


class OnDevice:
    """Both steps in a row, as training takes them."""

    def __init__(self, how: Augmentation, memory_format: torch.memory_format = torch.contiguous_format) -> None:
        self.normalise, self.mix = Normalise(how, memory_format), MixAndErase(how, num_classes=5)

    def __call__(self, batch: SimpleNamespace, seed: int) -> tuple[Tensor, Tensor]:
        return self.mix(self.normalise(batch.images), batch, seed)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("mean", "std"), [((0.5,) * 3, (0.5,) * 3), (IMAGENET_MEAN, IMAGENET_STD)])
def test_normalisation(memory_format: torch.memory_format, mean: tuple, std: tuple) -> None:
    images = _random(4, 3, 75, 75)
    how = Preprocessing(75, mean, std)
    result = Normalise(how, memory_format)(images)
    expected = v2.functional.normalize(images.double() / 255, list(mean), list(std))
    assert result.dtype == torch.float32 and result.is_contiguous(memory_format=memory_format)
    assert _furthest(result, expected) < 1e-6
    if mean[0] == 0.5:
        assert result.min() == -1 and result.max() == 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("value", [0.0, 0.25, "random"])
def test_erasing_on_the_device(memory_format: torch.memory_format, value: float | str) -> None:
    boxes = torch.tensor([[10, 20, 40, 60], [0, 0, 0, 0], [0, 0, 75, 75]], dtype=torch.int32)
    how = Augmentation(image_size=75, re_prob=0.5, re_value=value)
    batch = _batch(3, erase=boxes)
    device = OnDevice(how, memory_format)
    images, labels = device(batch, seed=3)
    plain = device.normalise(batch.images)
    changed = (images != plain).any(1)
    assert images.is_contiguous(memory_format=memory_format) and torch.equal(labels, batch.labels)
    assert not changed[1].any() and changed[2].float().mean() > 0.99
    assert changed[0].sum() > 0.99 * 30 * 40 and not changed[0, :10].any() and not changed[0, :, 60:].any()
    if value == "random":
        assert abs(images[2].mean()) < 0.05 and abs(images[2].std() - 1) < 0.05
        assert torch.equal(images, device(batch, seed=3)[0])
        assert not torch.equal(images, device(batch, seed=4)[0])
    else:
        assert (images[0, :, 10:40, 20:60] == value).all() and (images[2] == value).all()


def _mixing(size: int = 75, **settings: float) -> tuple[OnDevice, SimpleNamespace, Tensor, Tensor]:
    batch = _batch(size=size)
    device = OnDevice(Augmentation(image_size=75, **settings))
    return device, batch, device.normalise(batch.images), torch.nn.functional.one_hot(batch.labels, 5).float()


def _partner(targets: Tensor, hard: Tensor) -> tuple[Tensor, float]:
    """The rotation and the share that explain mixed targets."""
    for shift in range(1, len(hard)):
        other = hard.roll(shift, 0)
        row = int((hard != other).any(1).nonzero()[0])
        share = targets[row][other[row] == 1].item()
        if torch.allclose(targets, torch.lerp(hard, other, share), atol=1e-6):
            return torch.arange(len(hard)).roll(shift), share
    raise AssertionError("no rotation explains the targets")


def test_mixup() -> None:
    device, batch, plain, hard = _mixing(mixup=0.8)
    shares = []
    for seed in range(20):
        images, targets = device(batch, seed)
        order, share = _partner(targets, hard)
        torch.testing.assert_close(images, torch.lerp(plain, plain[order], share), atol=1e-5, rtol=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        shares.append(share)
    assert min(shares) < 0.3 and max(shares) > 0.7


def test_cutmix_share_is_the_pasted_area() -> None:
    device, batch, plain, hard = _mixing(cutmix=1.0)
    areas = set()
    for seed in range(20):
        images, targets = device(batch, seed)
        order, share = _partner(targets, hard) if not torch.equal(targets, hard) else (torch.arange(8), 0.0)
        pasted = (images != plain).any(1)
        assert torch.equal(images, torch.where(pasted[:, None], plain[order], plain))
        assert math.isclose(pasted.float().mean().item(), share, abs_tol=0.002)
        areas.add(round(share, 2))
    assert len(areas) > 10


def test_both_take_turns_and_cutmix_prob_is_for_either() -> None:
    device, batch, plain, hard = _mixing(size=24, mixup=1.0, cutmix=1.0, cutmix_prob=0.6)
    kinds = []
    for seed in range(1000):
        images, targets = device(batch, seed)
        same = (images == plain).float().mean().item()
        kinds.append("none" if same == 1 else "mixup" if same < 0.05 and not torch.equal(targets, hard) else "cutmix")
        if kinds[-1] == "none":
            assert targets.dtype == torch.float32 and (targets - hard).abs().max() < 1e-6
    counts = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert 0.35 < counts["none"] < 0.45 and 0.25 < counts["mixup"] < 0.35 and 0.25 < counts["cutmix"] < 0.35


def test_mixing_is_a_function_of_its_seed_and_touches_no_global_generator() -> None:
    device, batch, *_ = _mixing(mixup=0.2, cutmix=1.0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = device(batch, 1), device(batch, 1), device(batch, 2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(numpy_before, np.random.get_state()[1])


def test_one_picture_is_not_mixed() -> None:
    device = OnDevice(Augmentation(image_size=75, mixup=1.0))
    images, targets = device(_batch(1), 0)
    assert images.shape == (1, 3, 75, 75) and torch.equal(targets, torch.tensor([[1.0, 0, 0, 0, 0]]))
