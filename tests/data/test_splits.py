"""Batches in parts, the first of them clean, and the loss that compares them: timm's are the oracle."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from timm.data.dataset import AugMixDataset
from timm.data.loader import fast_collate
from timm.loss import JsdCrossEntropy

from inception_v4.data.augment import TrainTransform
from inception_v4.data.loader import Batch, TrainLoader
from inception_v4.data.order import Key
from inception_v4.data.sources import Source, open_source
from inception_v4.distributed import World
from inception_v4.settings.dialects import DialectError
from inception_v4.settings.recipes import ConfigError, build_config, load_config
from inception_v4.settings.schema import Augmentation, Data
from inception_v4.training.step import make_criterion, split_criterion

SPLIT = {"image_size": 75, "auto_augment": "augmix-m3", "re_prob": 0.9, "aug_splits": 3}
DATA = {"dataset": "shapes", "shapes_train": 12, "shapes_val": 4, "shapes_classes": 2, "batch_size": 4, "workers": 0}


@pytest.fixture(scope="module")
def pictures() -> Source:
    return open_source(Data(**DATA), "train", world=World(), seed=3)


def first_batches(source: Source, world: World | None = None, *, how: dict[str, Any] = SPLIT, **settings: Any) -> Batch:
    data = Data(**DATA | settings)
    return next(TrainLoader(source, data, Augmentation(**how), world=world or World(), seed=5).epoch(1))


@pytest.mark.parametrize("splits", [2, 3, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_timms(splits: int, smoothing: float) -> None:
    logits = 3 * torch.randn(splits * 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    targets = torch.arange(6).repeat(splits)
    loss = split_criterion(make_criterion("ce", smoothing), splits)(ours, targets)
    expected = JsdCrossEntropy(splits, smoothing=smoothing)(theirs, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(loss, ours)[0], torch.autograd.grad(expected, theirs)[0]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert loss.item() > make_criterion("ce", smoothing)(logits[:6], targets[:6]).item(), "the parts differ"


def test_the_order_of_a_batch_is_that_of_timms_collation(pictures: Source) -> None:
    """First the clean pictures, then each once more in the same order, with the labels repeated."""
    batch = first_batches(pictures)
    assert batch.images.shape == (12, 3, 75, 75)

    class Listed:
        """What AugMixDataset wraps: our clean pictures, in our order."""

        transform = None

        def __getitem__(self, number: int) -> tuple[Any, int]:
            return Image.fromarray(batch.images[number].permute(1, 2, 0).numpy()), int(batch.labels[number])

    wrapped = AugMixDataset(Listed(), num_splits=3)
    numbers = iter(range(12))
    wrapped.augmentation = lambda image: image
    wrapped.normalize = lambda image: torch.full((3, 2, 2), next(numbers), dtype=torch.uint8)
    images, labels = fast_collate([wrapped[number] for number in range(4)])
    assert images[:, 0, 0, 0].tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11], "picture 0 was seen as 0, 1 and 2"
    assert batch.labels.tolist() == labels.tolist() and batch.indices.tolist() == batch.indices[:4].tolist() * 3


def test_the_first_part_is_clean_and_the_others_are_what_becomes_of_it(pictures: Source) -> None:
    batch, plain = first_batches(pictures), first_batches(pictures, how={"image_size": 75})
    assert torch.equal(batch.images[:4], plain.images), "only placed: its crop and flips are those of a plain loader"
    assert batch.erase is not None and not batch.erase[:4].any() and batch.erase[4:].any()
    parts = batch.images.unflatten(0, (3, 4))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert all(not torch.equal(parts[a, n], parts[b, n]) for n in range(4)), "every part has its own randomness"
    transform = TrainTransform(Augmentation(**SPLIT))
    key = Key(1, int(batch.indices[2]), 0)
    again = transform.recolour(parts[0, 2], key.generator(5, 2))
    assert torch.equal(again, parts[2, 2]), (
        "a function of seed, epoch, picture, draw and part, and of the clean picture"
    )


def test_workers_and_processes_change_no_part(pictures: Source) -> None:
    whole = first_batches(pictures)
    other = first_batches(pictures, workers=2)
    assert torch.equal(whole.images, other.images)
    halves = [first_batches(pictures, World(rank, 2), batch_size=2) for rank in (0, 1)]
    together = torch.stack([half.images.unflatten(0, (3, 2)) for half in halves], 2).flatten(0, 2)
    assert torch.equal(whole.images, together)


def test_streams_of_parts_are_unrelated_and_the_first_is_the_samples_own() -> None:
    key = Key(2, 11, 1)
    assert key.generator(7, 0).random() == key.generator(7).random() == Random("2 7 2 11 1").random()
    numbers = {Key(*k).generator(7, split).random() for k in ((2, 11, 1), (2, 1, 11)) for split in range(4)}
    assert len(numbers) == 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"aug_splits": 1}, "aug_splits 1: give 0, or at least 2"),
        ({"aug_splits": 3}, "without auto_augment, color_jitter or re_prob"),
        ({"aug_splits": 3, "color_jitter": 0.4, "mixup": 0.2}, "with mixup or cutmix"),
        ({"aug_splits": 3, "color_jitter": 0.4, "loss": "bce"}, "with loss bce"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_config(settings)


def timm_recipe(folder: Path, **settings: Any) -> Path:
    file = folder / "args.yaml"
    file.write_text(yaml.safe_dump({"sched": "cosine", "model_ema": False, "aa": "augmix-m3", **settings}))
    return file


def test_timms_flags_and_mindcvs_setting_mean_it(tmp_path: Path) -> None:
    config, notices = load_config(timm_recipe(tmp_path, aug_splits=3, jsd_loss=True, reprob=0.2))
    assert config.augmentation.aug_splits == 3 and any("resplit=False" in line for line in notices)
    config, notices = load_config(timm_recipe(tmp_path, aug_splits=3, jsd_loss=True, reprob=0.2, resplit=True))
    assert config.augmentation.aug_splits == 3 and not any("resplit" in line for line in notices)
    assert load_config(timm_recipe(tmp_path, aug_splits=0, jsd_loss=False))[0].augmentation.aug_splits == 0
    flags, _ = load_config(None, {"aug_splits": "3", "jsd_loss": "true", "aa": "augmix-m3"})
    assert flags.augmentation.aug_splits == 3
    for alone in ({"aug_splits": 3}, {"jsd_loss": True}):
        with pytest.raises((ConfigError, DialectError), match="give both"):
            load_config(timm_recipe(tmp_path, **alone))
