from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from inception_v4.data.shapes import KINDS, _draw, _mask, draw_shape, generate


def _files(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*.jpg")
    }


def test_generated_files_are_the_same_every_time_and_balanced(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate(tmp_path / name, train=19, val=8, classes=8, size=40)
    first = _files(tmp_path / "a")
    assert first == _files(tmp_path / "b")
    assert len(first) == 27
    assert len(set(first.values())) == 27, "every picture is another"
    counts = [len(list((tmp_path / "a" / "train" / kind).iterdir())) for kind in KINDS[:8]]
    assert sorted(counts) == [2] * 5 + [3] * 3


def test_a_larger_set_begins_with_the_smaller_one(tmp_path: Path) -> None:
    generate(tmp_path / "small", train=8, val=4, classes=4, size=32)
    generate(tmp_path / "large", train=16, val=4, classes=4, size=32)
    assert _files(tmp_path / "small").items() <= _files(tmp_path / "large").items()


@pytest.mark.parametrize("size", [16, 75, 200])
def test_new_pictures_are_not_those_of_a_data_set(size: int) -> None:
    new = {draw_shape("ring", seed, size).tobytes() for seed in range(20)}
    generated = {_draw("ring", f"{split}/ring/{i}", size).tobytes() for split in ("train", "val") for i in range(20)}
    assert len(new) == 20 and not new & generated
    assert draw_shape("ring", 7, size).tobytes() in new, "the comparison would find a repeated picture"
    assert draw_shape("ring", 0, size).size == (size, size)


def test_kinds_are_distinct_shapes() -> None:
    assert len(KINDS) == 32 == len(set(KINDS))
    masks = [np.asarray(_mask(kind, 64, 28, (32, 32), angle=0.0), dtype=float) / 255 for kind in KINDS]
    for i, mask in enumerate(masks):
        assert 0.05 < mask.mean() < 0.7, KINDS[i]
        for j, other in enumerate(masks[:i]):
            overlap = np.minimum(mask, other).sum() / np.maximum(mask, other).sum()
            assert overlap < 0.93, (KINDS[i], KINDS[j])


def test_edges_are_smooth() -> None:
    mask = np.asarray(_mask("circle", 64, 20, (32, 32), angle=0.0))
    assert len(np.unique(mask)) > 8


def test_hue_does_not_give_the_class_away() -> None:
    """Brightness may: shapes are lighter than the ground, and a disc covers more of it than a star."""
    means = np.array([[np.asarray(draw_shape(k, s, 32)).mean((0, 1)) for s in range(24)] for k in KINDS[:8]])
    means -= means.mean(2, keepdims=True)
    between, within = means.mean(1).var(0), means.var(1).mean(0)
    assert (between < 0.15 * within).all()


def test_impossible_requests(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shapes_classes 33 must be between 2 and 32"):
        generate(tmp_path, train=100, val=100, classes=33, size=32)
    with pytest.raises(ValueError, match="shapes_val 5 is less than one picture for each of the 8"):
        generate(tmp_path, train=100, val=5, classes=8, size=32)
    with pytest.raises(ValueError, match="shape 'cube' is unknown: choose from circle"):
        draw_shape("cube", 0)
    assert not list(tmp_path.iterdir())
