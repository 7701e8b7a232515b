"""Classes of unequal size: weights in the loss, balanced order, folds. Each is exact and has a control."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from photos import class_folders
from sklearn.utils.class_weight import compute_class_weight

from inception_v4.data.class_weights import class_weights, counts_line
from inception_v4.data.labelled import ArraySource
from inception_v4.data.order import EpochSampler, Key
from inception_v4.data.sources import open_source
from inception_v4.data.splits import fold_part
from inception_v4.distributed import World
from inception_v4.inference.data_record import KEY, record, validation_data
from inception_v4.settings.recipes import ConfigError, build_config
from inception_v4.settings.schema import Data
from inception_v4.training.step import make_criterion
from inception_v4.weights import WeightsInfo

LABELS = [0] * 20 + [1] * 5 + [2] * 3
NAMES = ("ape", "bear", "cat")


def test_balanced_weights_are_scikit_learns() -> None:
    theirs = compute_class_weight("balanced", classes=torch.arange(3).numpy(), y=LABELS)
    assert class_weights("balanced", [20, 5, 3], NAMES) == pytest.approx(theirs.tolist())
    assert class_weights("balanced", [20, 0], NAMES[:2]) == [0.5, 0.0]


@pytest.mark.parametrize(("name", "text"), [("w.csv", "bear,2\nape, 1\n\ncat,0.5\n"), ("w.json", None)])
def test_weights_of_a_file_go_by_name(tmp_path: Path, name: str, text: str | None) -> None:
    path = tmp_path / name
    path.write_text(text or json.dumps({"bear": 2, "ape": 1, "cat": 0.5}))
    assert class_weights(str(path), [20, 5, 3], NAMES) == [1.0, 2.0, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [("ape,1\nbear,2", "missing: cat"), ("ape,1\nbear,2\ncat,1\ndog,1", "unknown: dog"), ("ape 1", "lines of class,"),
     ("ape,1\nbear,x\ncat,1", "bear has 'x': give a number"), ("ape,1\nbear,-1\ncat,1", "bear has '-1'"),
     ("ape,1\nbear,inf\ncat,1", "bear has 'inf'")],
)  # fmt: skip
def test_other_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "w.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        class_weights(str(tmp_path / "w.csv"), [20, 5, 3], NAMES)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file: give one, or the word balanced"):
        class_weights("balancd", [20, 5, 3], NAMES)


def test_weights_multiply_a_pictures_loss_and_parts_add_up() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1, 2])
    weights = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    plain, weighted = make_criterion("ce", 0.0), make_criterion("ce", 0.0, weights)
    each = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(weighted(logits, labels), (each * weights[labels]).mean())
    assert abs(weighted(logits, labels) - plain(logits, labels)) > 0.05
    soft = F.one_hot(labels, 3).double()
    torch.testing.assert_close(weighted(logits, soft), weighted(logits, labels))
    smooth = make_criterion("ce", 0.1, weights)
    parts = (smooth(logits[:4], labels[:4]) * 4 + smooth(logits[4:], labels[4:]) * 2) / 6
    torch.testing.assert_close(parts, smooth(logits, labels))
    binary = make_criterion("bce", 0.0, weights)(logits, labels)
    torch.testing.assert_close(binary, F.binary_cross_entropy_with_logits(logits, soft, weight=weights))


PICTURES = ArraySource(
    np.zeros((len(LABELS), 1, 1, 3), np.uint8), np.array(LABELS), class_names=("a", "b", "c"), title="black"
)


def keys(world: World, epoch: int = 0, **settings: Any) -> list[Key]:
    data = Data(batch_size=4 // world.size, drop_last=False, **settings)
    sampler = EpochSampler(len(LABELS), data, 0, world=world, seed=7, source=PICTURES)
    sampler.epoch = epoch
    return [key for batch in sampler for key in batch]


def test_balanced_sampling_draws_every_class_equally_often_and_its_pictures_evenly() -> None:
    drawn = keys(World(), balanced_sampling=True)
    assert len(drawn) == 28 and len(set(drawn)) == 28, "no sample twice: a picture that comes again has another draw"
    classes = Counter(LABELS[key.picture] for key in drawn)
    assert sorted(classes.values()) == [9, 9, 10]
    pictures = Counter(key.picture for key in drawn)
    for label in (1, 2):
        times = {pictures[i] for i in range(28) if LABELS[i] == label}
        assert max(times) - min(times) <= 1 <= min(times)
    assert Counter(LABELS[key.picture] for key in keys(World())) == Counter(LABELS), "the control"
    assert drawn == keys(World(), balanced_sampling=True) != keys(World(), 1, balanced_sampling=True)
    two = [keys(World(rank, 2), balanced_sampling=True) for rank in (0, 1)]
    assert sorted(two[0] + two[1]) == sorted(drawn), "for any number of processes"


@pytest.mark.parametrize("other", [{"shuffle": False}, {"repeats": 2}])
def test_balanced_sampling_has_an_order_of_its_own(other: dict[str, Any]) -> None:
    data = Data(balanced_sampling=True, shuffle=other.get("shuffle", True), batch_size=2)
    with pytest.raises(ValueError, match="balanced_sampling has an order of its own"):
        EpochSampler(28, data, other.get("repeats", 0), world=World(), seed=0, source=PICTURES)


def test_every_picture_is_in_one_fold_and_classes_are_spread_evenly() -> None:
    folds = [fold_part(LABELS, 4, number, seed=3) for number in (1, 2, 3, 4)]
    assert sorted(i for fold in folds for i in fold) == list(range(28)) and {len(f) for f in folds} == {7}
    for label, least in ((0, 5), (1, 1), (2, 0)):
        found = [sum(LABELS[i] == label for i in fold) for fold in folds]
        assert max(found) - min(found) <= 1 and min(found) == least
    assert fold_part(LABELS, 4, 1, seed=3) == folds[0] != fold_part(LABELS, 4, 1, seed=4)
    assert 28 not in fold_part([*LABELS, 3], 2, 1, 0) | fold_part([*LABELS, 3], 2, 2, 0), (
        "a class's only picture trains"
    )


def test_folds_of_a_folder_leave_val_aside_and_weights_remember_them(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"ape": 6, "bear": 4})
    class_folders(tmp_path / "val", {"ape": 1, "bear": 1})
    parts = []
    for fold in (1, 2):
        data = Data(data_dir=str(tmp_path), folds=2, fold=fold)
        train, val = (open_source(data, split, world=World(), seed=0) for split in ("train", "val"))
        names = [{source.name(i) for i in range(len(source))} for source in (train, val)]
        assert not names[0] & names[1] and len(names[0] | names[1]) == 10 and len(val) == 5
        assert f"fold {fold} of 2: 5 of the training pictures are for validation" in train.remarks
        parts.append(names[1])
        info = WeightsInfo(2, extra={KEY: record(data, 0)})
        again, seed = validation_data(Data(data_dir=str(tmp_path)), None, source="x", info=info)
        assert (again.folds, again.fold, seed) == (2, fold, 0)
    assert not parts[0] & parts[1] and not any("/val/" in name for name in parts[0] | parts[1])


def test_folds_that_are_not_there_are_refused() -> None:
    for given, message in (({"folds": 3, "fold": 4}, "fold 4: folds is 3"), ({"fold": 2}, "fold 2: give folds too")):
        with pytest.raises(ConfigError, match=message):
            build_config(given)


def test_many_classes_are_told_by_their_extremes() -> None:
    assert counts_line([20, 5, 3], NAMES) == "pictures per class: ape 20, bear 5, cat 3"
    line = counts_line(list(range(30, 0, -1)), [f"c{i}" for i in range(30)])
    assert line == "pictures per class: c29 1, c28 2, c27 3, ..., c2 28, c1 29, c0 30"
