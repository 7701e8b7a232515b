"""Run by an interpreter that has MindSpore and MindCV, and need not have anything of this project: `mindir` starts it.

python mindir_worker.py '{"task": "export", ...}'
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def count_cached_memory() -> None:
    """Let MindSpore's `load_checkpoint` count the memory that the page cache gives back.

    MindSpore 2.10 refuses a file larger than the memory that nothing uses at all (`SC_AVPHYS_PAGES`): next to none on a
    machine that has just read or written many files, however much it can free. Linux says what it can free.
    """
    from mindspore.train import serialization

    if hasattr(serialization, "_get_available_memory"):
        serialization._get_available_memory = available_memory


def available_memory() -> int | None:
    """Bytes that a program can still get without swapping; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in file}
    except OSError:
        return None
    return kibibytes["MemAvailable"] * 1024 if "MemAvailable" in kibibytes else None


def _export(job: dict[str, Any]) -> None:
    """A checkpoint in MindCV's layout to a MindIR or AIR file."""
    import mindspore as ms
    from mindcv.models import create_model

    count_cached_memory()
    ms.set_context(mode=ms.GRAPH_MODE, device_target=job["device_target"])
    network = create_model("inception_v4", num_classes=job["num_classes"], in_channels=job["in_channels"])
    unused = ms.load_param_into_net(network, ms.load_checkpoint(job["checkpoint"]), strict_load=True)
    if any(unused):
        raise ValueError(f"the checkpoint does not fit MindCV's inception_v4: {unused}")
    network.set_train(False)
    size = job["image_size"]
    images = ms.Tensor(shape=[job["batch_size"], job["in_channels"], size, size], dtype=ms.float32)
    if job["file_format"] == "AIR":
        images = ms.ops.zeros((job["batch_size"] or 1, job["in_channels"], size, size), ms.float32)
    ms.export(network, images, file_name=job["output"], file_format=job["file_format"])


def _run(job: dict[str, Any]) -> None:
    """The outputs of a MindIR file for an array of images."""
    import mindspore as ms
    import numpy as np

    network = ms.nn.GraphCell(ms.load(job["model"]))
    np.save(job["outputs"], network(ms.Tensor(np.load(job["images"]))).asnumpy())


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    {"export": _export, "run": _run}[task["task"]](task)
    sys.stdout.flush()
    os._exit(0)  # MindSpore's threads may hang or crash at exit
