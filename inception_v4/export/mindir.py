"""MindIR and AIR files, made by MindSpore in an interpreter of its own: its numpy is not PyTorch's.

The weights go there as a checkpoint in MindCV's layout, into MindCV's network, which is the same function.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inception_v4.weights import Weights
from inception_v4.weights.writing import write_weights

INTERPRETER = "INCEPTION_V4_MINDSPORE_PYTHON"
"""Environment variable: the Python that has MindSpore; default: this one."""

FILE_SUFFIXES = {"MINDIR": ".mindir", "AIR": ".air"}
_WORKER = Path(__file__).with_name("mindir_worker.py")


class MindSporeError(RuntimeError):
    """MindSpore is missing, or failed; one line with the remedy."""


def check_installed() -> None:
    """Raises MindSporeError unless the interpreter can import MindSpore and MindCV."""
    python = _interpreter()
    try:
        done = subprocess.run(
            [python, "-c", "import mindspore, mindcv"], capture_output=True, text=True, env=_environment()
        )  # fmt: skip
    except OSError as error:
        raise MindSporeError(f"{INTERPRETER}={python} cannot be run ({error.strerror}): name a Python") from error
    if done.returncode:
        raise MindSporeError(
            f"{python} has no MindSpore with MindCV ({_last_line(done.stderr)}); run `python3 -m venv ms && ms/bin/pip "
            f"install mindspore mindcv 'numpy<2'` and `export {INTERPRETER}=$PWD/ms/bin/python`, then export again"
        )


def write_mindir(weights: Weights, path: Path, *, file_format: str, image_size: int, batch_size: int | None) -> None:
    """Export `weights` to `path`.

    Args:
        path: ends in the suffix of the format.
        file_format: MINDIR or AIR; AIR needs an Ascend device.
        image_size: side of the input [N, C, S, S], float32, normalised.
        batch_size: N; None for any (AIR: 1).
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        checkpoint = Path(folder) / "weights.ckpt"
        write_weights(weights, checkpoint, layout="mindcv", dtype="fp32")
        _run({
            "task": "export", "checkpoint": str(checkpoint), "output": str(path), "file_format": file_format,
            "num_classes": weights.info.num_classes, "in_channels": weights.info.in_channels,
            "image_size": image_size, "batch_size": batch_size,
            "device_target": "Ascend" if file_format == "AIR" else "CPU",
        })  # fmt: skip
    if not path.is_file():
        raise MindSporeError(f"MindSpore ended without writing {path.name}: run again with --debug")
    path.chmod(0o666 & ~_umask())  # MindSpore leaves it to its owner, for reading only


def run_mindir(path: Path, images: Tensor) -> Tensor:
    """The outputs of a MindIR file in MindSpore on the CPU, float32."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "images.npy", Path(folder) / "outputs.npy"
        np.save(inputs, images.contiguous().numpy())
        _run({"task": "run", "model": str(path), "images": str(inputs), "outputs": str(outputs)})
        return torch.from_numpy(np.load(outputs))


def _run(job: dict[str, Any]) -> None:
    # As text: a script's own folder would come first on its path, and this one has modules called `data` and `model`.
    command = [_interpreter(), "-c", _WORKER.read_text(encoding="utf-8"), json.dumps(job)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), cwd=folder)
    if done.returncode:
        what = f"{job['file_format']} export" if job["task"] == "export" else "run"
        hint = "; AIR can be made on an Ascend device only: elsewhere use mindir, or om" if "AIR" in what else ""
        raise MindSporeError(f"MindSpore's {what} failed ({_last_line(done.stderr or done.stdout)}){hint}")


def _interpreter() -> str:
    return os.environ.get(INTERPRETER) or sys.executable


def _environment() -> dict[str, str]:
    # With AVX-512 oneDNN inside MindSpore 2.10 falls back to code that is a hundred times slower.
    return {"ONEDNN_MAX_CPU_ISA": "AVX2", "GLOG_v": "3"} | dict(os.environ)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip(" -\t")]
    return lines[-1][:300] if lines else "it said nothing"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
