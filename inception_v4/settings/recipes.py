"""Settings of a run from a YAML recipe and the command line, checked, with errors that name the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from inception_v4.preprocessing import check_size
from inception_v4.settings.addresses import is_address, redacted, require_plain
from inception_v4.settings.dialects import FLAGS, DialectError, translate
from inception_v4.settings.schema import OPTIMIZER_OWN, Config
from inception_v4.settings.yaml_files import read_documents

AMP_ALIASES = {"o0": "off", "o1": "fp16", "o2": "fp16", "o3": "fp16"}
_HERE = Path(__file__).parent.parent
RECIPE_FOLDERS = (_HERE / "configs", _HERE.parent / "configs")
"""Where the shipped recipes are: inside an installed package, beside it in a checkout."""


_NOT_GIVEN_BY_SMOKE = ("image_size", "first_image_size", "dataset", "shapes_train", "shapes_val")


class ConfigError(ValueError):
    """A setting that is unknown, malformed, out of range or contradicts another; one line with the remedy."""

    exit_code = 2


def leaf_fields() -> dict[str, tuple[str, FieldInfo]]:
    """Every setting by its name: (section, field)."""
    return {
        name: (section, field)
        for section, holder in Config.model_fields.items()
        for name, field in holder.annotation.model_fields.items()  # type: ignore[union-attr]
    }


def load_config(file: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> tuple[Config, list[str]]:
    """The configuration of a run.

    Args:
        file: a YAML recipe (nested by section or flat): a path, or the name of a shipped recipe.
        overrides: settings that win over the file, by name; strings are converted.
    Returns:
        The configuration and notices for the user: what was translated from another project's spelling, what
        has no effect here and why.
    Raises:
        FileNotFoundError, ConfigError: one line naming the value and the remedy.
    """
    leaves = read_recipe(file) if file is not None else {}
    try:
        values, notices = translate(dict(overrides or {}), leaves)
    except DialectError as error:
        raise ConfigError(str(error)) from None
    if file is not None:
        values.setdefault("recipe", Path(file).stem)
    if leaves.get("first_image_size") is not None:
        own = translate(dict(overrides or {}))[0]
        if "image_size" in own and "first_image_size" not in own:
            del values["first_image_size"]  # of the recipe, whose sizes are another range
    own_rate = _meant(overrides or {})
    if "lr" in own_rate and "lr_base_batch" not in own_rate and values.get("lr_base_batch"):
        # A rate that somebody types is meant as typed; a recipe's follows the batch.
        values["lr_base_batch"] = None
        notices.append(f"lr {values['lr']} is used as given, whatever the batch: the recipe's lr_base_batch is off")
    if leaves and overrides and "opt" in overrides:
        notices += _other_optimizer(values, leaves, overrides)
    config, remarks = _build(values)
    notices += remarks
    if config.run.smoke:
        config = shrink(config, flags=translate(dict(overrides or {}))[0])
    return config, notices


def _meant(overrides: Mapping[str, Any]) -> set[str]:
    """This project's settings that the words of a command line give, each by itself, in whoever's spelling."""
    found: set[str] = set()
    for name, value in overrides.items():
        try:
            found |= translate({name: value})[0].keys()
        except DialectError:
            continue  # it means something only together with others
    return found


def _other_optimizer(values: dict[str, Any], leaves: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Takes a recipe's numbers and keywords out of `values` where somebody asks for another optimizer."""
    recipe, own = translate({}, leaves)[0], translate(overrides, {})[0]
    meant_for = recipe.get("opt", Config().optimizer.opt)
    lost = [name for name in OPTIMIZER_OWN if recipe.get(name) is not None and name not in own and name in values]
    if not lost or str(values["opt"]).lower() == meant_for.lower():
        return []
    for name in lost:
        del values[name]
    off = ", ".join(f"{name} {recipe[name]}" for name in lost)
    return [f"opt {values['opt']} with its own numbers: the recipe's {off} for {meant_for} no longer count"]


def build_config(values: Mapping[str, Any]) -> Config:
    """A checked `Config` from leaf names and values."""
    return _build(values)[0]


def _build(values: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The checked configuration, and lines about values that were adapted."""
    leaves = leaf_fields()
    sections: dict[str, dict[str, Any]] = {name: {} for name in Config.model_fields}
    for name, value in values.items():
        if name not in leaves:
            raise ConfigError(unknown_setting(name))
        if name in ("amp", "val_amp"):
            value = AMP_ALIASES.get(str(value).lower(), value)
            value = "off" if value is False else value  # YAML 1.1 reads a bare off as false
        sections[leaves[name][0]][name] = value
    try:
        config = Config.model_validate(sections)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    config, notices = _for_grey(config)
    _check_together(config)
    return config, notices


def _for_grey(config: Config) -> tuple[Config, list[str]]:
    """With one mean and std where there is one input channel: the average of three; a line where they were given."""
    aug = config.augmentation
    averages = {name: (sum(v) / len(v),) for name in ("mean", "std") if len(v := getattr(aug, name)) == 3}
    if config.network.in_channels != 1 or not averages:
        return config, []
    grey = aug.model_copy(update=averages)
    grey.model_fields_set.intersection_update(aug.model_fields_set)
    given = [f"{name} {averages[name][0]:.4g}" for name in averages if name in aug.model_fields_set]
    lines = [f"in_channels 1: {' and '.join(given)}, the average of the three given"] if given else []
    return config.model_copy(update={"augmentation": grey}), lines


def unknown_setting(name: str) -> str:
    """The message for a name that is not a setting, with the nearest one."""
    near = difflib.get_close_matches(name, [*leaf_fields(), *FLAGS], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`inception-v4 train --help` lists all settings"
    return f"unknown setting {name!r}: {hint}"


def read_recipe(file: str | Path) -> dict[str, Any]:
    """Leaf settings of a YAML file, as they are spelled there."""
    path = find_recipe(file)
    try:
        documents = read_documents(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    # A ModelZoo file holds three documents: values, help texts, choices. Only the first one is settings.
    values = documents[0] if documents else {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not settings: write `name: value` lines")
    return _flatten(values, path)


def find_recipe(file: str | Path) -> Path:
    """The path itself, or the shipped recipe of that name."""
    path = Path(file)
    if path.is_file():
        return path
    for folder in RECIPE_FOLDERS:
        shipped = folder / f"{path.stem}.yaml"
        if shipped.is_file():
            return shipped
    names = sorted(p.stem for folder in RECIPE_FOLDERS for p in folder.glob("*.yaml"))
    raise FileNotFoundError(f"no recipe {str(file)!r}: give a YAML file or one of {', '.join(dict.fromkeys(names))}")


def to_yaml(config: Config) -> str:
    """All settings, nested by section; `load_config` reads it back to an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def shrink(config: Config, flags: Container[str] = ()) -> Config:
    """The recipe at laptop size (`--smoke`): same code paths, under a minute on a CPU.

    A smaller input and drawn pictures do not count as given, unless they are in `flags`: weights that are validated
    say what theirs are.
    """
    values = config.flat()
    smaller: dict[str, Any] = {}
    if values["data_dir"] is None:
        # The network's classes follow the generated pictures, whatever the recipe was made for.
        smaller |= {"dataset": "shapes", "num_classes": None, "dataset_download": False, "extract": False}
    epochs = min(values["epochs"], 2)
    smaller |= {
        **({} if "image_size" in flags else _smallest_sizes(grows=values["first_image_size"] is not None)),
        "epochs": epochs,
        "start_epoch": 0,
        "swa_epochs": min(values["swa_epochs"], epochs),
        "bn_momentum": max(values["bn_momentum"], 0.1),  # a few steps must fill the running statistics
        "warmup_epochs": min(values["warmup_epochs"], 1) if epochs > 1 else 0,
        "decay_epochs": None if values["scheduler"].startswith("cosine") else values["decay_epochs"],
        "batch_size": min(values["batch_size"], 8),
        "val_batch_size": min(values["val_batch_size"] or 8, 8),
        "num_samples": min(values["num_samples"] or 32, 32),
        "val_samples": min(values["val_samples"] or 16, 16),
        "shapes_train": min(values["shapes_train"], 80),
        "shapes_val": min(values["shapes_val"], 40),
        "workers": 0 if values["workers"] is None else min(values["workers"], 2),
        "accum_steps": min(values["accum_steps"], 2),
        "log_interval": 1,
        "compile": False,
    }
    small = build_config(config.given() | smaller)
    for section in (small.data, small.augmentation):
        section.model_fields_set.difference_update(name for name in _NOT_GIVEN_BY_SMOKE if name not in flags)
    return small


def _smallest_sizes(*, grows: bool) -> dict[str, Any]:
    return {"image_size": 107, "first_image_size": 75} if grows else {"image_size": 75}


def _flatten(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        is_section = name in Config.model_fields and isinstance(value, Mapping)
        for leaf, leaf_value in (value if is_section else {name: value}).items():
            leaf = str(leaf)
            if leaf in leaves:
                raise ConfigError(f"{path} gives {leaf!r} twice: keep one")
            leaves[leaf] = leaf_value
    return leaves


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        name = next((str(part) for part in reversed(item["loc"]) if part in leaf_fields()), "")
        message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if not name:
            lines.append(message)
        elif not any(line.startswith(f"{name}=") for line in lines):
            # A union reports each of its members: the first says enough.
            field = leaf_fields()[name][1]
            lines.append(
                f"{name}={redacted(repr(item['input']))}: {message[0].lower()}{message[1:]} ({field.description})"
            )
    return "; ".join(lines)


def _require_plain(address: str) -> None:
    try:
        require_plain(address)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_together(config: Config) -> None:
    """Contradictions between sections, and addresses that nobody may see."""
    for text in (config.data.data_dir, config.network.ckpt_path, config.run.output_dir, config.run.upload_to,
                 config.run.resume):  # fmt: skip
        if text is not None and is_address(text):
            _require_plain(text)
    aug, net, opt, plan, data = (
        config.augmentation, config.network, config.optimizer, config.schedule, config.data
    )  # fmt: skip
    if net.in_channels not in (1, 3):
        raise ConfigError(
            f"in_channels {net.in_channels}: pictures are read as RGB, or as grey for 1; use the Python API "
            "(InceptionV4) for others"
        )
    if not (net.ckpt_path or net.pretrained) or "stem" in net.model_fields_set:  # else the weights say which
        try:
            check_size(aug.first_image_size or aug.image_size, net.stem)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if len(aug.mean) != net.in_channels or len(aug.std) != net.in_channels:
        raise ConfigError(
            f"mean has {len(aug.mean)} and std {len(aug.std)} values but in_channels is {net.in_channels}: "
            "give one value per channel, and in_channels 1 for grey pictures"
        )
    if plan.warmup_epochs > plan.epochs:
        raise ConfigError(f"warmup_epochs {plan.warmup_epochs:g} is longer than epochs {plan.epochs}: shorten it")
    if plan.min_lr > opt.lr:
        raise ConfigError(f"min_lr {plan.min_lr:g} is above lr {opt.lr:g}: lower it")
    if plan.scheduler in ("one_cycle", "cyclic") and (plan.warmup_epochs or plan.lr_epoch_stair):
        raise ConfigError(f"scheduler {plan.scheduler} rises by itself, step by step: set warmup_epochs 0, no stairs")
    if plan.start_epoch >= plan.epochs:
        raise ConfigError(f"start_epoch {plan.start_epoch} is not below epochs {plan.epochs}: epochs count from 0")
    if aug.aug_splits and config.training.loss != "ce":
        raise ConfigError(
            f"aug_splits {aug.aug_splits} with loss {config.training.loss}: its loss is cross-entropy (ce)"
        )
    if opt.swa_epochs > plan.epochs:
        raise ConfigError(f"swa_epochs {opt.swa_epochs} is more than epochs {plan.epochs}: lower it")
    if opt.unfreeze_at and config.training.fused_optimizer:
        raise ConfigError(
            "unfreeze_at with fused_optimizer: its memory is laid out for the parameters of the first step"
        )
    if plan.scheduler == "multi_step" and not plan.milestones:
        raise ConfigError("scheduler multi_step needs milestones, for example --milestones 30,60,90")
    if data.dataset_download and data.dataset not in ("cifar10", "cifar100"):
        raise ConfigError(f"dataset_download with dataset={data.dataset}: only cifar10 and cifar100 can be fetched")
    if data.dataset in ("imagenet", "folder", "list", "wds") and data.data_dir is None and not config.run.smoke:
        raise ConfigError(f"dataset={data.dataset} needs data_dir: give --data-dir FOLDER (or --smoke to try without)")
    if data.num_classes is not None and data.dataset == "shapes" and data.num_classes < data.shapes_classes:
        raise ConfigError(f"num_classes {data.num_classes} is below shapes_classes {data.shapes_classes}")
