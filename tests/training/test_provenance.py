"""What a run directory says of its making, and that a deterministic run can be repeated to the last bit."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from running import ROOT, tiny

import inception_v4
from inception_v4.accelerator import package_commit
from inception_v4.training.provenance import record_start, record_weights
from inception_v4.training.train import train


def made(folder: Path, **changes: Any) -> dict[str, Any]:
    """The record of a run of two steps with everything random switched on."""
    settings = {"shapes_train": 8, "shapes_val": 4, "epochs": 1, "drop_rate": 0.3, "mixup": 0.2, "re_prob": 0.5}
    try:
        train(tiny(folder, **settings, deterministic=True, **changes))
    finally:
        torch.use_deterministic_algorithms(False)
    found: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
    return found


@pytest.mark.slow
def test_two_deterministic_runs_are_the_same_bits_and_say_what_made_them(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    assert first["sha256"] == second["sha256"] and set(first["sha256"]) == {"best.safetensors", "last.safetensors"}
    for name, digest in first["sha256"].items():
        assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == digest
    assert made(tmp_path / "c", seed=43)["sha256"] != first["sha256"], "a control"
    (start,) = first["starts"]
    assert start["seed"] == 42 and start["deterministic"] and start["step"] == 0 and len(start["devices"]) == 1
    assert start["versions"]["torch"] == torch.__version__
    assert start["versions"]["inception-v4"] == inception_v4.__version__
    assert start["commit"] == package_commit()


def test_a_run_that_goes_on_adds_its_start(tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").write_bytes(b"weights")
    for step in (0, 5):
        record_start(tmp_path, {"step": step})
    record_weights(tmp_path)
    record_start(tmp_path, {"step": 9})
    record = json.loads((tmp_path / "provenance.json").read_text())
    assert [start["step"] for start in record["starts"]] == [0, 5, 9]
    assert record["sha256"] == {"last.safetensors": hashlib.sha256(b"weights").hexdigest()}


def test_the_commit_is_the_checkouts() -> None:
    """None where the package is installed, and not run from a checkout."""
    place = Path(inception_v4.__file__).parents[1]
    found = subprocess.run(["git", "-C", str(place), "rev-parse", "HEAD"], capture_output=True, text=True)
    commit = package_commit()
    if found.returncode or place.resolve() != ROOT.resolve():
        assert commit is None
    else:
        assert commit is not None and commit.startswith(found.stdout.strip())
