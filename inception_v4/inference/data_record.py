"""Which pictures weights were validated on: recorded in their metadata, so that `validate` finds the same ones.

No folder is recorded, because weights are given away: that is in the config.yaml of their run directory.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inception_v4.settings.recipes import ConfigError, load_config
from inception_v4.settings.schema import Data, Run
from inception_v4.weights import WeightsInfo

KEY = "data"
"""Of the record in `WeightsInfo.extra`."""

_SHAPES = ("shapes_train", "shapes_val", "shapes_classes", "shapes_size")
_SPLITS = ("train_split", "val_split", "val_fraction", "folds", "fold")
_IN_A_FOLDER = ("folder", "imagenet", "list", "wds")


def record(data: Data, seed: int) -> dict[str, Any]:
    """The settings that decide which pictures validation sees, but for their folder."""
    names = (*(_SHAPES if data.kind == "shapes" else _SPLITS), "val_samples", "num_classes")
    return {"dataset": data.kind, "seed": seed} | {name: getattr(data, name) for name in names}


def validation_data(data: Data, seed: int | None, *, source: str, info: WeightsInfo) -> tuple[Data, int | None]:
    """The pictures to validate `source` on: those that were given, else those of its record.

    Where the same kind of data is given by its folder, the record says how it was split. Class folders are in the
    order of the weights.

    Args:
        data: its settings count as given where they were set and are not None.
        seed: of split and subsets; None: not given.
        source: as the weights were called.
        info: of the weights.

    Raises:
        ValueError: neither settings nor the record say which pictures, or not where they are.
    """
    given = {name: value for name in data.model_fields_set if (value := getattr(data, name)) is not None}
    if "class_order" not in given:
        data = data.model_copy(update={"class_order": info.class_order})
    named = any(name in ("dataset", "data_dir", *_SHAPES) for name in given)
    stored = info.extra.get(KEY)
    if not isinstance(stored, dict) or (named and data.kind != stored.get("dataset")):
        if named:
            return data, seed
        raise ValueError(
            f"{source} does not say which pictures it was validated on: give --data-dir FOLDER, or --dataset"
        )
    names = ("dataset", *_SHAPES, *_SPLITS, "val_samples", *(() if named else ("num_classes",)))
    try:
        recorded = Data.model_validate({name: stored[name] for name in names if stored.get(name) is not None})
        recorded_seed = Run(seed=stored.get("seed", -1)).seed
    except ValidationError as error:
        raise ValueError(f"{source}: its record of the data is not usable: give --data-dir FOLDER") from error
    usable = recorded.model_dump(exclude_unset=True)
    if data.data_dir:
        # Another copy of the data may have no folders of these names. Lists and shards say themselves what they have.
        named_folders = [name for name in _SPLITS[:2] if name in usable and data.kind not in ("list", "wds")]
        absent = [name for name in named_folders if not Path(data.data_dir, usable[name]).is_dir()]
        usable = {name: value for name, value in usable.items() if name not in absent}
    else:
        usable["data_dir"] = _folder(source, stored)
    others = data.model_dump(exclude_unset=True)
    return Data.model_validate(others | usable | given), recorded_seed if seed is None else seed


def _folder(source: str, stored: dict[str, Any]) -> str | None:
    """The folder of the recorded data, from the run directory that `source` is or lies in; None: the usual one."""
    place = Path(source).expanduser()
    file = (place if place.is_dir() else place.parent) / "config.yaml"
    if file.is_file():
        # It may be another program's, or another run's.
        with contextlib.suppress(ConfigError):
            config, _ = load_config(file)
            if record(config.data, config.run.seed) == stored:
                return config.data.data_dir
    if stored.get("dataset") not in _IN_A_FOLDER:
        return None
    raise ValueError(
        f"{source} was validated on pictures of a folder ({stored['dataset']}), which only the config.yaml of its run "
        "directory names, and that is not beside it: give --data-dir FOLDER"
    )
