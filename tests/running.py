"""Running the real commands: in this process, in another one, or in several under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from inception_v4.settings.recipes import build_config
from inception_v4.settings.schema import Config

ROOT = Path(__file__).parent.parent
THREADS = max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
"""Of a test: two, shared with the other processes of a parallel run."""
TINY: dict[str, Any] = {
    "recipe": "tiny", "dataset": "shapes", "shapes_train": 24, "shapes_val": 10, "shapes_classes": 2, "shapes_size": 80,
    "image_size": 75, "batch_size": 4, "val_batch_size": 4, "epochs": 2, "opt": "momentum", "lr": 0.01, "workers": 0,
    "log_interval": 1, "tensorboard": False, "device": "cpu", "ckpt_interval": 1, "init": "tf", "amp": "off",
}  # fmt: skip
"""Six steps per epoch of the whole network, as small as it goes."""

LIVELY = {
    "drop_rate": 0.3, "ema": True, "ema_warmup": 3, "mixup": 0.2, "cutmix": 1.0, "re_prob": 0.5, "color_jitter": 0.4,
    "auto_augment": "randaug-m5-n1", "ckpt_steps": 4, "keep_checkpoint_max": 9, "label_smoothing": 0.1,
}  # fmt: skip
"""Settings under which every source of randomness takes part."""


def tiny(folder: Path, **changes: Any) -> Config:
    """A checked configuration of a tiny run into `folder`; its pictures are kept beside it."""
    return build_config(TINY | {"output_dir": str(folder)} | changes)


def as_flags(settings: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def environment(threads: int = 1) -> dict[str, str]:
    settings = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", "COLUMNS": "200"}
    return os.environ | settings | {"OMP_NUM_THREADS": str(threads)}


def command(*words: str, processes: int = 1) -> list[str]:
    """The command line of `inception-v4 words`, under torchrun for several processes."""
    start = torchrun(processes) if processes > 1 else [sys.executable]
    return [*start, "-m", "inception_v4", *words]


def torchrun(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def run(
    *words: str, processes: int = 1, threads: int = 1, cwd: Path | None = None, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with so many threads in each process, and check its exit code."""
    done = subprocess.run(
        command(*words, processes=processes), capture_output=True, text=True, env=environment(threads), cwd=cwd,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def run_script(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of tests/ to its end in two processes under torchrun, and check that it succeeded."""
    script = [*torchrun(2), str(ROOT / "tests" / name), *words]
    done = subprocess.run(script, capture_output=True, text=True, env=environment(), cwd=cwd, timeout=280)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def final_state(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run directory."""
    newest = max((folder / "checkpoints").glob("step-*.pt"))
    return torch.load(newest, map_location="cpu", weights_only=True)


def differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested states are not bit for bit the same."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys"]
        return [d for key in a for d in differing(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: length"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differing(x, y, f"{path}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    return [] if a == b else [path]
