"""Settings: where they come from, how they are checked, and what the errors say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from running import ROOT

from inception_v4.cli.settings import with_keywords
from inception_v4.settings.recipes import (
    RECIPE_FOLDERS,
    ConfigError,
    build_config,
    find_recipe,
    leaf_fields,
    load_config,
    to_yaml,
)
from inception_v4.settings.schema import Config

RECIPES = sorted(p for folder in RECIPE_FOLDERS for p in folder.glob("*.yaml"))


def test_leaf_names_are_unique_and_no_section_is_a_leaf() -> None:
    names = [name for holder in Config.model_fields.values() for name in holder.annotation.model_fields]
    assert len(names) == len(set(names))
    assert not set(names) & set(Config.model_fields)
    assert all(field.description for _, field in leaf_fields().values())


def test_nested_and_flat_files_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "flat.yaml").write_text("lr: 4e-5\nepochs: 3\nscale: [0.2, 1]\nrecipe: x\n")
    (tmp_path / "nested.yaml").write_text(
        "optimizer: {lr: 4e-5}\nschedule: {epochs: 3}\naugmentation: {scale: [0.2, 1]}\nrun: {recipe: x}\n"
    )
    flat, _ = load_config(tmp_path / "flat.yaml")
    assert flat == load_config(tmp_path / "nested.yaml")[0]
    assert flat.optimizer.lr == 4e-5


def test_command_line_wins_and_strings_are_converted() -> None:
    config, _ = load_config(
        "quickstart", {"epochs": "7", "scale": "(0.2, 1)", "shuffle": "False", "clip_grad": "none", "amp": "O2"}
    )
    assert config.schedule.epochs == 7
    assert config.augmentation.scale == (0.2, 1.0)
    assert config.data.shuffle is False and config.optimizer.clip_grad is None
    assert config.training.amp == "fp16"


def test_another_optimizer_does_not_inherit_the_recipes_numbers() -> None:
    config, notices = load_config("imagenet_rmsprop", {"opt": "adamw", "opt_beta2": "0.9", "data_dir": "x"})
    assert (config.optimizer.opt_eps, config.optimizer.momentum, config.optimizer.opt_beta2) == (None, None, 0.9)
    assert any(
        "opt adamw with its own numbers: the recipe's momentum 0.9, opt_alpha 0.9, opt_eps 1.0" in n for n in notices
    )
    same, notices = load_config("imagenet_rmsprop", {"opt": "rmsproptf", "data_dir": "x"})
    assert (same.optimizer.opt_eps, same.optimizer.momentum) == (1.0, 0.9) and not any("its own" in n for n in notices)


def test_keywords_of_an_optimizer_come_in_every_form(tmp_path: Path) -> None:
    expected = {"ns_steps": 3, "fallback_lr_scale": 0.1, "nesterov": True, "adjust_lr_fn": "original"}
    for words in (
        "ns_steps=3,fallback_lr_scale=1e-1,nesterov=true,adjust_lr_fn=original",
        "ns_steps=3 fallback_lr_scale=0.1 nesterov=True adjust_lr_fn=original",
        expected,
    ):
        found = build_config({"opt": "muon", "opt_kwargs": words}).optimizer.opt_kwargs
        assert found == expected and [type(v) for v in found.values()] == [int, float, bool, str]
    recipe = tmp_path / "muon.yaml"
    recipe.write_text("opt: muon\nopt_kwargs: {ns_steps: 3, fallback_lr_scale: 0.1}\ndataset: shapes\n")
    assert load_config(recipe)[0].optimizer.opt_kwargs == {"ns_steps": 3, "fallback_lr_scale": 0.1}
    other, notices = load_config(recipe, {"opt": "lamb"})
    assert other.optimizer.opt_kwargs is None and any("the recipe's opt_kwargs" in n for n in notices)
    assert build_config({"opt_kwargs": "none"}).optimizer.opt_kwargs is None
    words = ["-c", "x", "--opt-kwargs", "ns_steps=3", "nesterov=true", "--epochs=2", "a=b"]
    assert with_keywords(words) == ["-c", "x", "--opt-kwargs", "ns_steps=3,nesterov=true", "--epochs=2", "a=b"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_valid_documented_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    assert text.startswith("#") and ("inception-v4 train" in text or "inception_v4 train" in text)
    config, _ = load_config(path, {"data_dir": "somewhere"} if "dataset: shapes" not in text else {})
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml")[0] == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_smoke_shrinks_every_recipe(path: Path) -> None:
    config, _ = load_config(path, {"smoke": "true"})
    smallest = config.augmentation.first_image_size or config.augmentation.image_size
    assert smallest == 75 and config.augmentation.image_size <= 107 and config.data.batch_size <= 8
    assert config.data.dataset == "shapes" and config.schedule.epochs <= 2


def test_shipped_recipes_are_found_by_name_and_by_path_of_a_checkout() -> None:
    shipped = ROOT / "configs" / "quickstart.yaml"
    by_name = find_recipe("quickstart")
    assert by_name.name == shipped.name and by_name.read_bytes() == shipped.read_bytes(), "the checkout's, or installed"
    assert find_recipe("configs/quickstart.yaml").resolve() == shipped.resolve()
    assert find_recipe(str(shipped)) == shipped, "a path is taken as it is"
    with pytest.raises(FileNotFoundError, match=r"'nosuch'.*quickstart"):
        find_recipe("nosuch")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rte": 1}, "unknown setting 'learning_rte'"),
        ({"batchsize": 8}, "did you mean 'batch_size'"),
        ({"epochs": "three"}, "epochs='three': input should be a valid integer"),
        ({"epochs": 0}, r"epochs=0: .*greater than or equal to 1"),
        ({"image_size": 74}, "image_size 74 .*75"),
        ({"mean": [0.5, 0.5]}, "one per channel"),
        ({"mean": [0.5], "std": [0.5]}, "in_channels is 3"),
        ({"warmup_epochs": 9, "epochs": 3}, "warmup_epochs 9 is longer than epochs 3"),
        ({"min_lr": 1.0, "lr": 0.1}, "min_lr 1 is above lr 0.1"),
        ({"scheduler": "multi_step"}, "needs milestones"),
        ({"scheduler": "cosin"}, "scheduler='cosin': input should be 'constant'"),
        ({"pretrained": True, "ckpt_path": "x"}, "exclude each other"),
        ({"dataset": "imagenet"}, "needs data_dir"),
        ({"dataset_download": True, "dataset": "folder", "data_dir": "x"}, "only cifar10"),
        ({"scale": [1, 0.1]}, "rising pair"),
        ({"lr": float("nan")}, "lr=nan: .*finite"),
        ({"opt_alpha": 1.5}, "opt_alpha=1.5"),
        ({"opt_kwargs": "ns_steps"}, "opt_kwargs='ns_steps': give NAME=VALUE, .* in place of 'ns_steps'"),
    ],
)
def test_errors_are_one_line_with_the_value_and_the_remedy(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_config(values)
    assert "\n" not in str(caught.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1,\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "twice.yaml").write_text("lr: 1\noptimizer: {lr: 2}\n")
    for name, message in (("broken", "not valid YAML"), ("list", "holds a list"), ("twice", "'lr' twice")):
        with pytest.raises(ConfigError, match=message) as caught:
            load_config(tmp_path / f"{name}.yaml")
        assert f"{name}.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_yaml_off_is_the_word() -> None:
    assert build_config(yaml.safe_load("amp: off")).training.amp == "off"
    assert build_config({"amp": "O0"}).training.amp == "off"
