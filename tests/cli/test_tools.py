"""The thin scripts do what the command line does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, environment

SCRIPTS = [ROOT / "tools" / f"{name}.py" for name in ("export", "train", "validate")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_thin_and_answer(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 9
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, env=environment(), check=True
    )
    assert script.stem in done.stdout and "--debug" not in done.stderr


def test_train_script_resolves_mindcvs_spelling() -> None:
    words = ["--opt=momentum", "--lr=0.001", "dataset=cifar10", "--num_classes=10", "--dataset_download"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train.py"), *words, "--data_dir=data", "--dry-run"],
        capture_output=True, text=True, env=environment(), check=True,
    )  # fmt: skip
    assert "dataset: cifar10" in done.stdout and "lr: 0.001" in done.stdout and "num_classes: 10" in done.stdout
