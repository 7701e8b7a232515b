"""color_jitter: one to four numbers, meaning what they mean in timm and torchvision."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from running import ROOT
from timm.data import create_transform
from torchvision.transforms import v2

from inception_v4.data.augment import TrainTransform, jitter_strengths, seeded
from inception_v4.settings.recipes import ConfigError, build_config, load_config, to_yaml
from inception_v4.settings.schema import Augmentation

FIXTURES = ROOT / "tests" / "fixtures"
FORMS = [0.4, (0.4, 0.3), (0.4, 0.3, 0.2), (0.4, 0.3, 0.2, 0.1), (0.0, 0.0, 0.0, 0.25)]


def colours(how: Augmentation, picture: torch.Tensor, seed: int) -> torch.Tensor:
    return TrainTransform(how)(picture, Random(seed))


@pytest.mark.parametrize("strengths", FORMS)
def test_pixels_are_torchvisions(strengths: float | tuple[float, ...]) -> None:
    how = Augmentation(image_size=75, hflip=0, color_jitter=strengths)
    picture = torch.randint(256, (3, 75, 75), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    given = (strengths,) * 3 if isinstance(strengths, float) else strengths
    peer = v2.ColorJitter(**dict(zip(("brightness", "contrast", "saturation", "hue"), given, strict=False)))
    for seed in range(5):
        rng = Random(seed)
        for _ in range(2):  # the flips
            rng.random()
        with seeded(rng.getrandbits(64)):
            expected = peer(picture)
        result = colours(how, picture, seed)
        assert torch.equal(result, expected) and not torch.equal(result, picture)


@pytest.mark.parametrize("strengths", [0.4, (0.4, 0.3, 0.2), (0.4, 0.3, 0.2, 0.1)])
def test_ranges_are_timms(strengths: float | tuple[float, ...]) -> None:
    transform = create_transform((3, 75, 75), is_training=True, color_jitter=strengths, auto_augment=None)
    (timms,) = (step for step in transform.transforms if type(step).__name__ == "ColorJitter")
    ours = v2.ColorJitter(*jitter_strengths(strengths))
    for name in ("brightness", "contrast", "saturation", "hue"):
        low, high = getattr(timms, name) or (None, None)
        assert tuple(getattr(ours, name) or (None, None)) == (low, high), name


def test_each_number_is_for_its_own() -> None:
    assert jitter_strengths(0.4) == (0.4, 0.4, 0.4, 0.0)
    assert jitter_strengths((0.4, 0.3)) == (0.4, 0.3, 0.0, 0.0)
    assert jitter_strengths((0.4, 0.3, 0.2, 0.1)) == (0.4, 0.3, 0.2, 0.1)
    picture = torch.full((3, 75, 75), 100, dtype=torch.uint8)
    off = Augmentation(image_size=75, hflip=0, color_jitter=(0.0, 0.0, 0.0, 0.0))
    assert torch.equal(colours(off, picture, 1), picture)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("0.4", 0.4), ("0.4,0.4,0.4", (0.4, 0.4, 0.4)), ("[0.4, 0.4, 0.4, 0.1]", (0.4, 0.4, 0.4, 0.1)),
        ([0.4, 0.4, 0.4], (0.4, 0.4, 0.4)), ([0.4], 0.4), ((0.1, 0.2), (0.1, 0.2)), (0, 0.0), ("none", 0.0),
        (None, 0.0),
    ],
)  # fmt: skip
def test_forms_of_the_setting(typed: object, read: object, tmp_path: Path) -> None:
    config = build_config({"color_jitter": typed})
    assert config.augmentation.color_jitter == read
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml")[0].augmentation.color_jitter == read


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.4,0.4,0.4,0.6", "hue 0.6 is more than 0.5"), ("1,2,3,4,5", "5 numbers, give one to four"),
        ("0.4,-0.1", "must not be negative"), (-1, "must not be negative"), ([], "0 numbers, give one to four"),
        ("much", "valid number"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^color_jitter=.*{message}") as error:
        build_config({"color_jitter": value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", ["mindcv_inception_v4_ascend", "timm_args"])
@pytest.mark.parametrize(
    ("value", "read"),
    [([0.4, 0.4, 0.4], (0.4, 0.4, 0.4)), ([0.4, 0.4, 0.4, 0.1], (0.4, 0.4, 0.4, 0.1)), (0.4, 0.4), (None, 0.0)],
)
def test_recipes_of_others(recipe: str, value: object, read: object, tmp_path: Path) -> None:
    leaves = yaml.safe_load((FIXTURES / f"{recipe}.yaml").read_text()) | {"color_jitter": value}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(leaves))
    assert load_config(tmp_path / "recipe.yaml")[0].augmentation.color_jitter == read
