"""The largest batch that a device's memory holds, found by real steps of a run that writes nothing."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from inception_v4.accelerator import Accelerator, select
from inception_v4.accelerator.overflow import is_out_of_memory, release_memory
from inception_v4.accelerator.precision import choose_amp
from inception_v4.console import print_table, say
from inception_v4.data.loader import Batch
from inception_v4.data.sources import open_source
from inception_v4.distributed import World
from inception_v4.settings.defaults import Hardware, choose_defaults
from inception_v4.settings.schema import Config
from inception_v4.storage.lock import FolderLock
from inception_v4.training.loop import Loop
from inception_v4.training.step import optimizer_step
from inception_v4.training.train import assemble

MOST_PICTURES = 4096
MARGIN = 0.1
"""Part of the memory that stays free: allocators leave gaps, and other processes come and go."""


class Trial(NamedTuple):
    """A batch that was tried.

    Attributes:
        batch: pictures.
        fits: whether two steps were done.
        peak: most bytes in use; None where nobody counts.
        speed: pictures a second in the second step; None where it does not fit.
    """

    batch: int
    fits: bool
    peak: int | None
    speed: float | None


def find_batch_size(config: Config) -> dict[str, Any]:
    """Tries powers of two with the run's own network, precision and optimizer on pictures of noise; prints a table.

    Returns:
        The proposed `batch_size`, and the trials; on a device whose memory does not overflow a usual one, and none.
    Raises:
        ValueError: not even two pictures fit, or several processes were started.
    """
    if World.from_environment().size > 1:
        raise ValueError("find_batch_size is for one device: run it without torchrun; each process gets such batches")
    accelerator = select(config.run.device)
    if not accelerator.can_overflow:
        batch, reason = _usual(config, accelerator)
        say(
            f"find_batch_size is not needed on this {accelerator.label}: its memory is the machine's, which swaps, or "
            f"ends a program, and does not say what fits; by what is known of this network: {reason}"
        )
        return {"batch_size": batch, "trials": []}
    accelerator.activate(deterministic=config.training.deterministic, tf32=config.training.tf32)
    release_memory(accelerator)
    loop, config, _ = assemble(_alone(config), accelerator, World(), FolderLock(say))
    free, used = accelerator.memory(), accelerator.used_memory()
    capacity = None if free is None or used is None else free + used
    trials = try_batches(TrialStep(loop, config), accelerator, most=min(MOST_PICTURES, loop.loader.samples))
    _print(trials, capacity)
    batch = propose_batch(trials, capacity)
    say(f"proposed: --batch-size {batch} (powers of two were tried; {MARGIN:.0%} of the memory stays free)")
    return {"batch_size": batch, "trials": trials}


def _alone(config: Config) -> Config:
    """The run with small batches of its pictures, of which none is read, from its start and without a cache."""
    data = config.data.model_copy(update={"batch_size": 2, "drop_last": True, "workers": 0})
    run = config.run.model_copy(update={"resume": None, "output_dir": None, "upload_to": None})
    training = config.training.model_copy(update={"cache_features": False})
    return config.model_copy(update={"data": data, "run": run, "training": training})


def _usual(config: Config, accelerator: Accelerator) -> tuple[int, str]:
    """What is chosen for those who say nothing, and why."""
    source = open_source(config.data, "train", world=World(), seed=config.run.seed, several=config.training.several)
    amp = choose_amp(accelerator, "auto")[0]
    settings, reasons = choose_defaults(
        len(source), len(source.class_names), hardware=Hardware(accelerator.type, accelerator.memory(), 1, amp),
        fixed={"image_size": config.augmentation.image_size, "amp": choose_amp(accelerator, config.training.amp)[0]},
    )  # fmt: skip
    return settings["batch_size"], next(line for line in reasons if line.startswith("batch_size"))


class TrialStep:
    """An optimizer step of a run on so many pictures of noise.

    Args:
        loop: the run, of which the weights change.
        config: its settings with all choices made.
    """

    def __init__(self, loop: Loop, config: Config) -> None:
        self._learner, self._accum_steps = loop.job.learner, config.optimizer.accum_steps
        how = config.augmentation
        self._parts, self._size, self._channels = max(how.aug_splits, 1), how.image_size, len(how.mean)
        self._erase, self._several = bool(how.re_prob), loop.job.info.multi_label

    def __call__(self, batch: int) -> None:
        group = [self._noise(batch) for _ in range(self._accum_steps)]
        optimizer_step(self._learner, group, epoch=0)

    def clear(self) -> None:
        """Lets go of gradients that a step has left behind."""
        self._learner.optimizer.zero_grad()

    def _noise(self, batch: int) -> Batch:
        """As the loader gives it: uint8, the values of a pixel together."""
        rows, device = batch * self._parts, self._learner.precision.accelerator.device
        images = torch.randint(256, (rows, self._size, self._size, self._channels), dtype=torch.uint8)
        labels = torch.zeros(rows, dtype=torch.int64)
        if self._several:
            labels = torch.nn.functional.one_hot(labels, 1).to(torch.uint8)
        erase = torch.zeros((rows, 4), dtype=torch.int32) if self._erase else None
        return Batch(images.movedim(-1, -3), labels, torch.arange(rows), erase).to(device, non_blocking=False)


def try_batches(step: TrialStep, accelerator: Accelerator, *, most: int) -> list[Trial]:
    """Batches of 2, 4, 8, ... pictures up to `most`, ending with the first that does not fit."""
    trials: list[Trial] = []
    batch = 2
    while batch <= most and (not trials or trials[-1].fits):
        release_memory(accelerator)
        accelerator.reset_peak_memory()
        seconds = _seconds(step, batch, accelerator)
        trials.append(Trial(batch, seconds is not None, accelerator.peak_memory(), seconds and batch / seconds))
        batch *= 2
    step.clear()
    release_memory(accelerator)
    return trials


def _seconds(step: Callable[[int], None], batch: int, accelerator: Accelerator) -> float | None:
    """Time of a second step; None where the device has too little memory."""
    try:
        step(batch)  # kernels are chosen, and what the optimizer keeps is made
        accelerator.synchronize()
        started = time.perf_counter()
        step(batch)
        accelerator.synchronize()
        return time.perf_counter() - started
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # The frames of the step that failed hold what it had made.
        traceback.clear_frames(error.__traceback__)
        return None


def propose_batch(trials: Sequence[Trial], capacity: int | None) -> int:
    """The largest batch that leaves a margin; where nobody counts memory, the one before the largest that fits.

    Args:
        capacity: bytes that a run may fill.
    Raises:
        ValueError: none fits.
    """
    fitting = [trial for trial in trials if trial.fits]
    if not fitting:
        raise ValueError(
            "not even a batch of 2 pictures fits into the device's memory: lower --image-size, give "
            "--grad-checkpointing or --amp bf16, or free the device of other programs"
        )
    counted = [t.batch for t in fitting if capacity and t.peak is not None and t.peak <= (1 - MARGIN) * capacity]
    if counted:
        return max(counted)
    overflowed = len(fitting) < len(trials)
    return fitting[max(len(fitting) - 1 - overflowed, 0)].batch


def _print(trials: Sequence[Trial], capacity: int | None) -> None:
    rows = [
        (
            str(trial.batch),
            "does not fit" if not trial.fits else "fits",
            "-" if trial.peak is None else f"{trial.peak / 2**30:.2f}",
            "-" if trial.speed is None else f"{trial.speed:.1f}",
        )
        for trial in trials
    ]
    of = "" if capacity is None else f" of {capacity / 2**30:.1f}"
    print_table(("batch_size", "memory", f"peak GiB{of}", "images/s"), rows)
