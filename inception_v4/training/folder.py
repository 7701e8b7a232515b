"""The run directory: found, begun, and what the main process writes into it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from inception_v4.console import say
from inception_v4.data.sources import Source
from inception_v4.distributed import World
from inception_v4.files import atomic_write, sha256_of
from inception_v4.inference.evaluate import Evaluation
from inception_v4.inference.predictions import PREDICTIONS, write_predictions
from inception_v4.settings.recipes import to_yaml
from inception_v4.settings.schema import Config, Run
from inception_v4.storage.lock import FolderLock
from inception_v4.training.checkpoint import find_resume, save_checkpoint
from inception_v4.training.curves import draw_curves
from inception_v4.training.job import Job, capture, weights_info
from inception_v4.training.runlog import SilentLog
from inception_v4.weights import WeightsInfo, save_weights


@dataclass
class RunFolder:
    """A run directory.

    Attributes:
        path: where it is.
        lock: makes this process its only writer.
        settings: the resolved settings as YAML, once the run has begun.
        keep: checkpoints kept.
    """

    path: Path
    keep: int
    lock: FolderLock
    settings: str = ""

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def begin(self, config: Config) -> None:
        """Make the directory, with the settings in it; raises FolderInUse where another process writes into it."""
        self.lock.acquire(self.path)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if config.data.data_dir:
            # `validate` of these weights finds the data from anywhere.
            place = str(Path(config.data.data_dir).expanduser().absolute())
            config = config.model_copy(update={"data": config.data.model_copy(update={"data_dir": place})})
        self.settings = to_yaml(config)
        with atomic_write(self.path / "config.yaml") as temporary:
            temporary.write_text(self.settings, encoding="utf-8")

    def save(self, job: Job) -> None:
        """A checkpoint of everything, and the weights as last.safetensors."""
        self.lock.require()
        save_checkpoint(self.checkpoints, job.learner.step, capture(job, self.settings), keep=self.keep)
        model = job.learner.ema.module or job.learner.model
        save_weights(model, self.path / "last.safetensors", weights_info(job))

    def save_best(self, model: nn.Module, info: WeightsInfo, result: Evaluation, source: Source) -> None:
        """Weights as best.safetensors, and what they say of each picture of `source` (`inference.predictions`)."""
        save_weights(model, self.best, info)
        write_predictions(
            self.path / PREDICTIONS, result, source.name, classes=info.class_names, weights_sha256=sha256_of(self.best)
        )

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    def draw(self, title: str) -> Path | None:
        """The curves of the run so far."""
        return draw_curves(self.path, title=title)


def unused_folder(run: Run, world: World, lock: FolderLock) -> RunFolder:
    """The directory of a run that is about to begin, not made yet; raises ValueError where another run lives in it."""
    path = Path(world.share(run.output_dir or f"runs/{run.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"))
    folder = RunFolder(path, run.keep_checkpoint_max, lock)
    if world.is_main and run.resume is None and folder.checkpoints.exists():
        raise ValueError(f"{path} holds a run already: go on with --resume auto, or give another --output-dir")
    return folder


def earlier_state(resume: str | None, folder: RunFolder, world: World) -> dict[str, Any] | None:
    """The state that the run goes on from: the same in every process; None for a new run."""
    if resume is None:
        return None
    # Before anything is read: another run's next checkpoint would be a newer one.
    world.on_main(partial(folder.lock.acquire, folder.path) if folder.path.exists() else None)
    warn = say if world.is_main else SilentLog().say
    state = find_resume(resume, folder.checkpoints, world=world, warn=warn)
    if state is not None and state["version"] < 2:
        warn("the checkpoint is an earlier version's: dropout and mixing go on with other random numbers")
    return state
