"""A learning rate for a run, from the losses of some steps at rising rates (Smith, arXiv 1506.01186)."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from inception_v4.accelerator import select
from inception_v4.console import say
from inception_v4.data.sizes import ImageSizes
from inception_v4.distributed import session
from inception_v4.files import atomic_write
from inception_v4.settings.schema import Config
from inception_v4.storage.lock import FolderLock
from inception_v4.training.loop import Loop
from inception_v4.training.schedule import LearningRate
from inception_v4.training.step import train_one_epoch
from inception_v4.training.train import prepare

STEPS = 100
LOWEST, HIGHEST = 1e-6, 10.0
SMOOTHING = 0.9
"""Weight of what came before in the moving average of the losses."""
BLOWN_UP = 4.0
"""The test ends where the average loss is so many times the least."""
FEWEST = 20
"""Steps below which losses say nothing."""


def rising(steps: int) -> LearningRate:
    """From `LOWEST` to `HIGHEST` by one factor a step."""
    factor = (HIGHEST / LOWEST) ** (1 / max(steps - 1, 1))
    return LearningRate("exponential", LOWEST, 1, steps, decay_epochs=1.0, decay_rate=factor)


def find_rate(config: Config, steps: int = STEPS) -> dict[str, Any]:
    """A range test with a run's own network, pictures and optimizer; writes lr_find.json and lr_find.png.

    They are in a directory beside the run's own, which stays free for it. The rate is for the batches of this run, as
    `--lr` is, which switches a recipe's `lr_base_batch` off.

    Returns:
        The rates, their smoothed losses, the proposed `lr` and the directory.
    Raises:
        ValueError: the losses do not fall at any rate.
    """
    accelerator = select(config.run.device)
    accelerator.activate(deterministic=config.training.deterministic, tf32=config.training.tf32)
    config = of_first_epoch(config)
    run, ending = config.run, f"-lr-find-{time.strftime('%Y%m%d-%H%M%S')}"
    places = {
        "output_dir": (run.output_dir or f"runs/{run.recipe}").rstrip("/") + ending,
        "upload_to": run.upload_to and run.upload_to.rstrip("/") + ending,
    }
    run = run.model_copy(update={**places, "resume": None, "tensorboard": False, "logger": None})
    with session(accelerator) as world, FolderLock(say) as lock:
        loop = prepare(world.share(config.model_copy(update={"run": run})), accelerator, world, lock)
        with loop.folder.mirrored(patience=60 * run.upload_wait):
            try:
                losses = range_test(loop, steps)
                rates = [*map(rising(steps), range(len(losses)))]
                smoothed = smooth(losses)
                found = propose(rates, smoothed)
                result = {"lr": found, "rates": rates, "losses": smoothed, "output_dir": str(loop.folder.path)}
                if world.is_main:
                    _write(loop.folder.path, result)
                    loop.log.say(f"proposed: --lr {found:.2g} (curve {loop.folder.path / 'lr_find.png'})")
            finally:
                loop.log.close()
    return result


def range_test(loop: Loop, steps: int) -> list[float]:
    """The mean loss over the processes of each step, until it has blown up or the steps are over."""
    loop.begin()
    learner, losses = loop.job.learner, []
    learner.rate = rising(steps)

    def after_step(loss: Tensor, images: int) -> bool:
        losses.append(float(loop.world.sum(loss.double())) / loop.world.size)
        if len(losses) % loop.run.log_interval == 0:
            loop.log.say(f"lr {learner.rate(len(losses) - 1):.2e}  loss {losses[-1]:.4f}")
        average = smooth(losses)
        # Every process has the same losses, and ends with the others.
        blown_up = not math.isfinite(losses[-1]) or average[-1] > BLOWN_UP * min(average)
        return len(losses) >= steps or (blown_up and len(losses) > FEWEST)

    epochs = itertools.count()
    while train_one_epoch(learner, loop.loader.epoch(next(epochs)), epoch=0, after_step=after_step):
        continue
    return losses


def of_first_epoch(config: Config) -> Config:
    """`config` for steps that are all the run's first: their rates, and pictures of one size."""
    how, schedule = config.augmentation, config.schedule
    size = ImageSizes.of(how, schedule.epochs)(schedule.start_epoch)
    one_size = how.model_copy(update={"image_size": size, "first_image_size": None})
    from_start = schedule.model_copy(update={"start_epoch": 0})
    return config.model_copy(update={"augmentation": one_size, "schedule": from_start})


def smooth(losses: Sequence[float]) -> list[float]:
    """Moving average, corrected for its start; it ends before the first loss that is no finite number."""
    averages, total = [], 0.0
    for count, loss in enumerate(itertools.takewhile(math.isfinite, losses), 1):
        total = SMOOTHING * total + (1 - SMOOTHING) * loss
        averages.append(total / (1 - SMOOTHING**count))
    return averages


def propose(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the smoothed loss falls fastest per factor of the rate, before its least value."""
    least = min(range(len(losses)), key=losses.__getitem__)
    falls = [losses[i - 1] - losses[i + 1] for i in range(1, least)]
    if not falls or max(falls) <= 0:
        raise ValueError("the loss fell at no learning rate: check the pictures and their labels, or lower batch noise")
    return rates[1 + max(range(len(falls)), key=falls.__getitem__)]


def _write(folder: Path, result: dict[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with atomic_write(folder / "lr_find.json") as temporary:
        temporary.write_text(json.dumps(result), encoding="utf-8")
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    count = len(result["losses"])
    axes.plot(result["rates"][:count], result["losses"], color="tab:blue")
    axes.axvline(result["lr"], color="tab:orange", linestyle="--", label=f"proposed {result['lr']:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss (smoothed)")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(folder / "lr_find.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110)
