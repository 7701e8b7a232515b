"""Sizes of the input that grow over the epochs: their rule, the loader's pictures, and runs that go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from running import THREADS, TINY, as_flags, differing, final_state, run, run_script, tiny
from temporary import NewFolder

from inception_v4.data.loader import TrainLoader
from inception_v4.data.sizes import ImageSizes, ladder
from inception_v4.data.sources import open_source
from inception_v4.distributed import World
from inception_v4.settings.recipes import ConfigError, build_config, load_config, to_yaml
from inception_v4.settings.schema import Augmentation, Data
from inception_v4.training.smallest import last_map
from inception_v4.training.train import train
from inception_v4.weights import read_weights

GROWS = {
    "shapes_train": 4, "shapes_val": 4, "batch_size": 2, "epochs": 2, "image_size": "75-107", "ckpt_steps": 1,
    "ckpt_interval": 2, "keep_checkpoint_max": 9,
    "freeze": "inception_b", "mixup": 0.2, "re_prob": 0.5, "drop_rate": 0.3,
}  # fmt: skip
"""Two steps an epoch: one of 75 pixels and one of 107, the last blocks learning."""


def test_the_ladder_has_the_sizes_that_suit_the_network() -> None:
    assert ladder(75, 299) == (75, 107, 139, 171, 203, 235, 267, 299)
    for size in ladder(75, 299)[1:]:
        assert last_map(size) == last_map(size - 1) + 1, "a pixel less, and the last map loses a column"
    assert ladder(128, 299) == (128, 171, 203, 235, 267, 299), "139 is too near"
    assert ladder(128, 288) == (128, 171, 203, 235, 267, 288) and ladder(224, 224) == (224,)


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 12, 90])
def test_sizes_rise_from_the_first_to_the_last_which_the_last_quarter_has(epochs: int) -> None:
    sizes = ImageSizes(ladder(128, 299), epochs)
    found = [sizes(epoch) for epoch in range(epochs)]
    quarter = -(-epochs // 4)
    assert found == sorted(found) and found[-quarter:] == [299] * quarter == [sizes(epochs + 5)] * quarter
    smaller = [found.count(size) for size in ladder(128, 299)[:-1]]
    assert epochs == 1 or found[0] == 128
    assert max(smaller) - min(smaller) <= 1, "shared evenly"


def test_what_is_said_names_every_size_and_epoch() -> None:
    assert str(ImageSizes(ladder(128, 203), 5)) == "128 px (epochs 1-2), 171 px (epoch 3), 203 px (epochs 4-5)"
    assert str(ImageSizes(ladder(128, 203), 1)) == "203 px" and str(ImageSizes((75,), 9)) == "75 px"


def test_a_range_is_one_setting_and_survives_a_file(tmp_path: Path) -> None:
    config = build_config({"image_size": "128-299"})
    assert (config.augmentation.image_size, config.augmentation.first_image_size) == (299, 128)
    assert config.augmentation.preprocessing().image_size == 299
    (tmp_path / "grown.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "grown.yaml")[0].augmentation == config.augmentation
    plain, _ = load_config(tmp_path / "grown.yaml", {"image_size": "224"})
    assert (plain.augmentation.image_size, plain.augmentation.first_image_size) == (224, None)
    smoke, _ = load_config(tmp_path / "grown.yaml", {"smoke": "true"})
    assert (smoke.augmentation.image_size, smoke.augmentation.first_image_size) == (107, 75)


@pytest.mark.parametrize("text", ["299-128", "64-128", "128-", "128-299-300", "a-b"])
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="image_size"):
        build_config({"image_size": text})


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_follows_with_the_same_crops_and_boxes_in_proportion(workers: int) -> None:
    """A worker lives through all epochs; sample i of epoch e is that of a loader of that size alone."""
    data = Data(dataset="shapes", shapes_train=8, shapes_val=4, shapes_classes=2, batch_size=4, workers=workers)
    source = open_source(data, "train", world=World(), seed=3)
    how = Augmentation(image_size=107, first_image_size=75, re_prob=0.9, color_jitter=0.3)
    grown = TrainLoader(source, data, how, world=World(), seed=3, sizes=ImageSizes.of(how, 3))
    for epoch, size in ((0, 75), (2, 107), (1, 75)):
        alone = TrainLoader(source, data, how.model_copy(update={"image_size": size}), world=World(), seed=3)
        for ours, theirs in zip(grown.epoch(epoch), alone.epoch(epoch), strict=True):
            assert ours.images.shape[-2:] == (size, size) and torch.equal(ours.images, theirs.images)
            assert ours.erase is not None and theirs.erase is not None and torch.equal(ours.erase, theirs.erase)
            assert int(ours.erase.max()) <= size


@pytest.fixture(scope="module")
def grown_run(module_folder: NewFolder, live_file: str) -> Path:
    torch.set_num_threads(THREADS)  # before the tests' own fixture: a test compares bits with this run's
    folder = module_folder("grown") / "run"
    train(tiny(folder, **GROWS, ckpt_path=live_file))
    return folder


@pytest.mark.slow
def test_a_run_grows_and_its_weights_are_of_the_final_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], grown_run: Path
) -> None:
    assert read_weights(grown_run / "best.safetensors").info.preprocessing.image_size == 107
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(grown_run / "checkpoints" / "step-00000001.pt", tmp_path / "checkpoints")
    train(tiny(tmp_path, **GROWS, resume="auto"))
    said = capsys.readouterr().err
    assert "75 px (epoch 1), 107 px (epoch 2)" in said and "image size 107 px from epoch 2 on" in said
    names = ("model", "optimizer", "step")
    whole, resumed = final_state(grown_run), final_state(tmp_path)
    assert differing({n: whole[n] for n in names}, {n: resumed[n] for n in names}) == []


@pytest.mark.slow
def test_another_first_size_gives_other_weights(grown_run: Path, tmp_path: Path) -> None:
    """The comparison above can fail."""
    train(tiny(tmp_path, **GROWS | {"image_size": 107}))
    assert differing(final_state(grown_run)["model"], final_state(tmp_path)["model"])


@pytest.mark.slow
def test_two_processes_grow_together(tmp_path: Path) -> None:
    words = ("train", *as_flags(TINY | GROWS | {"shapes_train": 8}), "--output-dir=run")
    said = run_script("node_local.py", *words, cwd=tmp_path)
    assert "image size 107 px from epoch 2 on" in said.stderr and final_state(tmp_path / "node0" / "run")["step"] == 4


@pytest.mark.slow
def test_the_modern_recipe_runs_with_sizes_that_grow(tmp_path: Path) -> None:
    said = run("train", "-c", "imagenet_modern", "--smoke", "--device=cpu", f"--output-dir={tmp_path / 'run'}").stderr
    assert "75 px (epoch 1), 107 px (epoch 2)" in said and "image size 107 px from epoch 2 on" in said
    assert "lamb lr" in said and "best top-1" in said


def test_the_modern_recipe_is_what_its_comment_says() -> None:
    config, notices = load_config("imagenet_modern", {"data_dir": "x"})
    how, opt, plan = config.augmentation, config.optimizer, config.schedule
    assert (how.first_image_size, how.image_size, how.mixup, how.cutmix, how.aug_repeats) == (128, 299, 0.1, 1.0, 3)
    assert opt.peak_lr(8 * 64) == 0.005 and (opt.opt, opt.weight_decay, opt.ema) == ("lamb", 0.02, True)
    assert (opt.weight_decay_filter, plan.scheduler, plan.warmup_epochs) == ("no_norm_bias", "cosine", 5)
    assert (config.training.loss, how.auto_augment, notices) == ("bce", "randaug-m7-n2-p0.5-mstd0.5", [])
