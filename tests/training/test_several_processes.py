"""Training by two processes: what they write is what they measured, and they go on from one step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from running import TINY, as_flags, differing, final_state, run_script
from temporary import NewFolder

from inception_v4.accelerator import select
from inception_v4.accelerator.precision import Precision
from inception_v4.data.loader import EvalLoader
from inception_v4.data.normalise import Normalise
from inception_v4.data.shapes import KINDS, draw_shape
from inception_v4.data.sources import open_source
from inception_v4.distributed import World
from inception_v4.inference.evaluate import evaluate
from inception_v4.network.model import InceptionV4
from inception_v4.settings.recipes import load_config
from inception_v4.training.checkpoint import save_checkpoint
from inception_v4.weights import load_weights

SETTINGS: dict[str, Any] = TINY | {
    "dataset": "folder", "on_corrupt": "skip", "epochs": 1, "warmup_epochs": 0, "lr": 0.001, "bn_momentum": 0.9,
    "drop_rate": 0.3, "ema": True, "ema_warmup": 3, "ckpt_steps": 1, "keep_checkpoint_max": 9,
}  # fmt: skip
"""Two steps by two processes, with a checkpoint after each; statistics close to those of a batch keep losses finite."""


@pytest.fixture(scope="module")
def pictures(module_folder: NewFolder) -> Path:
    """16 training and 8 validation pictures of two kinds, of which 4 and 1 cannot be read."""
    folder = module_folder("pictures")
    for split, count, damaged in (("train", 16, (0, 1, 6, 11)), ("val", 8, (5,))):
        for number in range(count):
            kind = KINDS[number % 2]
            file = folder / split / kind / f"{number:02d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            draw_shape(kind, number, 80).save(file)
            if number in damaged:
                file.write_bytes(file.read_bytes()[:100])
    return folder


def train_in_two(pictures: Path, machines: Path) -> str:
    """Train to the end, each process with a disk of its own; returns what was said."""
    words = ("train", *as_flags(SETTINGS), f"--data-dir={pictures}", "--output-dir=run", "--resume=auto")
    return run_script("node_local.py", *words, cwd=machines).stderr


@pytest.fixture(scope="module")
def run_of_two(pictures: Path, module_folder: NewFolder) -> Path:
    """The main process's directory of a finished run."""
    machines = module_folder("machines")
    said = train_in_two(pictures, machines)
    assert "5 unreadable pictures were skipped" in said, "those of the other process too"
    assert list((machines / "node1").iterdir()) == [], "one process writes"
    return machines / "node0" / "run"


@pytest.mark.parametrize("name", ["best", "last"])
def test_what_is_written_has_the_logged_figures(run_of_two: Path, name: str) -> None:
    """BatchNorm statistics differ from process to process until they are averaged, and so do those of the average."""
    torch.set_num_threads(1)  # as each of the two had
    *_, record = (json.loads(line) for line in (run_of_two / "metrics.jsonl").read_text().splitlines())
    logged, prefix = record, "ema_"  # last.safetensors holds the averaged weights
    if name == "best":
        logged, prefix = final_state(run_of_two)["best"], ""
    found = figures_of(run_of_two / f"{name}.safetensors")
    assert found == {key: logged[key if key == "samples" else prefix + key] for key in found}
    assert name == "best" or found["loss"] != record["loss"], "the average is another network"


def figures_of(weights: Path) -> dict[str, Any]:
    """Exact figures of weights over the run's validation pictures, by this process alone."""
    config, _ = load_config(weights.parent / "config.yaml")
    world, accelerator = World(), select("cpu")
    pictures = open_source(config.data, "val", world=world, seed=config.run.seed)
    model = InceptionV4(2).to(memory_format=accelerator.memory_format())
    load_weights(model, str(weights))
    result = evaluate(
        model.eval(),
        EvalLoader(
            pictures, config.augmentation.preprocessing(), batch_size=4, workers=0, world=world, on_corrupt="skip"
        ),
        prepare=Normalise(config.augmentation, accelerator.memory_format()),
        precision=Precision(accelerator),
        world=world,
        batch_size=4,
    )
    return result.record()


@pytest.mark.slow
def test_they_go_on_from_the_newest_step_that_both_can_read(run_of_two: Path, pictures: Path, tmp_path: Path) -> None:
    """Process 1 reads the newer of two checkpoints as damaged; the end is that of a run that was never stopped."""
    for node in ("node0", "node1"):
        folder = tmp_path / node / "run" / "checkpoints"
        folder.mkdir(parents=True)
        for step in (1, 2):
            shutil.copy(run_of_two / "checkpoints" / f"step-{step:08d}.pt", folder)
    damaged = tmp_path / "node1" / "run" / "checkpoints" / "step-00000002.pt"
    with damaged.open("r+b") as file:
        file.truncate(1500)
    said = train_in_two(pictures, tmp_path)
    assert "process 1: checkpoint run/checkpoints/step-00000002.pt cannot be read" in said
    assert "resumed at step 1 of 2" in said
    whole, resumed = final_state(run_of_two), final_state(tmp_path / "node0" / "run")
    names = ("model", "ema", "optimizer", "step", "best", "ema_updates")
    assert differing({n: whole[n] for n in names}, {n: resumed[n] for n in names}) == []


def write(folder: Path, steps: dict[int, float]) -> None:
    for step, value in steps.items():
        save_checkpoint(folder, step, {"step": step, "w": torch.full((9,), value)}, keep=9)


@pytest.mark.slow
def test_processes_agree_on_a_checkpoint_or_say_what_each_found(tmp_path: Path) -> None:
    """By case: the checkpoints (step: content) of processes 0 and 1."""
    cases: dict[str, tuple[dict[int, float], dict[int, float]]] = {
        "nothing": ({}, {}),
        "older": ({2: 1.0, 4: 1.0}, {2: 1.0, 3: 1.0}),
        "apart": ({2: 1.0, 4: 1.0}, {}),
        "foreign": ({2: 1.0}, {2: 5.0}),
        "damaged": ({2: 1.0, 4: 1.0}, {2: 1.0, 4: 1.0}),
        "later": ({2: 1.0}, {2: 1.0, 6: 1.0}),
    }
    for name, nodes in cases.items():
        for rank, steps in enumerate(nodes):
            write(tmp_path / f"node{rank}" / name, steps)
    (tmp_path / "node1" / "damaged" / "step-00000004.pt").write_bytes(b"PK")
    words = [word for name in cases for word in ("auto", name)]
    chosen = [
        *("older", "unused"), *("damaged/step-00000004.pt", "unused"), *("later/step-00000002.pt", "later"),
        *("later/step-00000002.pt", "unused"),
    ]  # fmt: skip
    run_script("agreeing.py", *words, *chosen, cwd=tmp_path)
    ours, theirs = (json.loads((tmp_path / f"node{rank}" / "outcomes.json").read_text()) for rank in (0, 1))
    assert ours == theirs
    nothing, older, apart, foreign, damaged, _, named, named_damaged, behind, elsewhere = ours
    assert nothing == {"step": None, "warnings": []}
    assert older == {"step": 2, "warnings": ["going on from step 2, the newest that every process can read"]}
    assert "no checkpoint in apart" in apart["error"]
    assert "(process 0: found steps 2, 4; process 1: found none)" in apart["error"]
    assert "no checkpoint in foreign" in foreign["error"]
    assert damaged["step"] == 2 and damaged["warnings"][0].startswith("process 0: step 4, checksum ")
    assert "process 1: checkpoint damaged/step-00000004.pt cannot be read" in damaged["warnings"][0]
    assert "process 0: step 4, " in named["error"] and "process 1: step 3, " in named["error"]
    assert "process 1: checkpoint damaged/step-00000004.pt cannot be read" in named_damaged["error"]
    assert behind["error"].startswith("later holds steps 6, later than step 2 of the chosen checkpoint: ")
    assert elsewhere == {"step": 2, "warnings": []}
