"""What a run will write, and whether its disk has room for it: foreseen before the first step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from inception_v4.files import DiskFull, free_bytes, megabytes
from inception_v4.settings.schema import Optimizer, Run
from inception_v4.training.job import Job
from inception_v4.training.optim import build_optimizer
from inception_v4.training.swa import NoWeightMean


def require_room_for_run(job: Job, opt: Optimizer, run: Run, folder: Path) -> None:
    """Raises DiskFull where what the run keeps at most at one time does not fit beside what is there already."""
    checkpoint, weights = checkpoint_bytes(job, opt), _bytes(job.learner.model)
    # A file is whole before the one that it replaces goes.
    count = min(run.keep_checkpoint_max + 1, planned_checkpoints(job, run))
    copies = 2 if count == 1 else 3
    there = sum(file.stat().st_size for file in [*folder.glob("checkpoints/step-*.pt"), *folder.glob("*.safetensors")])
    needed, free = count * checkpoint + copies * weights, free_bytes(folder) + there
    if needed > free:
        raise DiskFull(
            f"{folder}: this run needs {megabytes(needed)} ({count} checkpoint{'s' if count > 1 else ''} of "
            f"{megabytes(checkpoint)}, {copies} weights files of {megabytes(weights)}), {megabytes(free)} are free: "
            "make room, lower --keep-checkpoint-max, or give another --output-dir"
        )


def checkpoint_bytes(job: Job, opt: Optimizer) -> int:
    """Of a checkpoint: the network, its averages, and the optimizer's state as it will be after the first step."""
    learner = job.learner
    # The mean of the last epochs is not there yet.
    networks = 1 + (learner.ema.module is not None) + (not isinstance(job.swa, NoWeightMean))
    size = networks * _bytes(learner.model)
    trained = sum(p.numel() * p.element_size() for p in learner.model.parameters() if p.requires_grad)
    return size + round(trained * _state_per_weight(opt))


def planned_checkpoints(job: Job, run: Run) -> int:
    """How many checkpoints the rest of the run writes."""
    course = job.learner.course
    left = max(course.total - course.step, 1)
    epochs = -(-left // course.per_epoch)
    return -(-epochs // run.ckpt_interval) + (left // run.ckpt_steps if run.ckpt_steps else 0)


def _bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def _state_per_weight(opt: Optimizer) -> float:
    """Bytes of optimizer state for a byte of weights: found out with a small network, for whichever optimizer."""
    with torch.random.fork_rng(devices=[]):
        small = nn.Conv2d(16, 16, 3, bias=False)
    optimizer = build_optimizer(small, opt, opt.lr)
    small.weight.grad = torch.zeros_like(small.weight)
    optimizer.step()
    states = optimizer.state_dict()["state"].values()
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors) / (small.weight.numel() * small.weight.element_size())
