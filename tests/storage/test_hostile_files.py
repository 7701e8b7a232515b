"""Files that are broken, foreign or made to do harm: one line, bounded work, and nothing of the user's is touched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inception_v4.data.pictures import Decoding, read_picture
from inception_v4.preprocessing import MAX_PIXELS
from inception_v4.settings.recipes import ConfigError, load_config
from inception_v4.training.checkpoint import list_checkpoints, save_checkpoint
from inception_v4.training.runlog import METRICS, RunLog, read_records
from inception_v4.weights import WeightsError, read_weights

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
"""Thirty lines that stand for more than 1e30 values."""


@pytest.mark.parametrize(
    "text, message",
    [
        (BOMB + "mean: *a29\n", r"stands for 2.*e\+30 values by its aliases"),
        ("mean: &a [*a]\n", "an alias stands for what it is part of"),
        ("mean: &a {b: {c: *a}}\n", "an alias stands for what it is part of"),
        ("mean: " + "[" * 20_000 + "\n", "nested too deeply"),
        ("mean: " + "{a: " * 3_000 + "\n", "nested too deeply|not valid YAML"),
        ("seed: " + "9" * 5_000 + "\n", "not valid YAML: Exceeds the limit"),
        ("recipe: 2001-99-99\n", "not valid YAML"),
        ("recipe: !!python/object/apply:os.system [id]\n", "not valid YAML: could not determine a constructor"),
        ("# " + "x" * (1 << 20), r"has \d+ bytes, and a file of settings at most"),
        ("? [a, b]\n: 1\n", "unknown setting|not valid YAML"),
    ],
)
def test_recipes_made_to_do_harm(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / "recipe.yaml")
    assert len(str(caught.value)) < 1000


def test_a_recipe_with_honest_aliases_is_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mean: &m [0.5, 0.5, 0.5]\nstd: *m\n")
    assert load_config(tmp_path / "recipe.yaml")[0].augmentation.std == (0.5, 0.5, 0.5)


def test_foreign_things_among_the_checkpoints(tmp_path: Path) -> None:
    for name in ("step-00000009.pt", "step-00000001.pt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("precious")
    (tmp_path / "step-\u0663.pt").write_text("another alphabet's 3")
    (tmp_path / "step-00000007.pt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("mine")
    for step in (2, 3, 4):
        save_checkpoint(tmp_path, step, {"step": step}, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004.pt"]
    assert len(list(tmp_path.rglob("mine"))) == 2 and (tmp_path / "notes.txt").exists()


def test_foreign_lines_among_the_records(tmp_path: Path) -> None:
    good = {"kind": "train", "step": 1, "epoch": 0, "loss": 1.0, "lr": 0.1}
    lines = [b"3", b"[]", b'{"a": 1}', b'{"kind": "train", "step": "x"}', b"\xff\xfe", b"[" * 100_000, b'{"kind": "tr']
    (tmp_path / METRICS).write_bytes(b"\n".join([*lines, json.dumps(good).encode(), *lines]))
    assert read_records(tmp_path / METRICS) == [good]
    log = RunLog(tmp_path, total_steps=9, tensorboard=False, resumed_at=1)
    log.train(good | {"step": 2})
    log.close()
    assert [record["step"] for record in read_records(tmp_path / METRICS)] == [1, 2]


def test_a_description_nested_without_end(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors", {"inception_v4": "[" * 100_000})
    with pytest.raises(WeightsError, match="is not JSON"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_an_animated_picture_is_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    picture = read_picture(str(tmp_path / f"x.{suffix}"), Decoding(True, MAX_PIXELS))
    assert picture.shape == (3, 30, 40) and np.allclose(picture[:, 15, 20], (255, 0, 0), atol=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_as_thin_as_can_be(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    Image.new("RGB", size, "white").save(tmp_path / f"x.{suffix}")
    assert read_picture(str(tmp_path / f"x.{suffix}"), Decoding(True, MAX_PIXELS)).shape == (3, size[1], size[0])
