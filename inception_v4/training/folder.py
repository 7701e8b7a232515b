"""The run directory: found, begun, and what the main process writes into it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from inception_v4.console import say
from inception_v4.data.labelled import Source
from inception_v4.distributed import World
from inception_v4.files import atomic_write, cache_dir, sha256_of
from inception_v4.inference.evaluate import Evaluation
from inception_v4.inference.predictions import PREDICTIONS, write_predictions
from inception_v4.settings.addresses import is_address
from inception_v4.settings.recipes import to_yaml
from inception_v4.settings.schema import Config, Run
from inception_v4.storage.fetch import local_copy
from inception_v4.storage.lock import FolderLock
from inception_v4.storage.mirror import Mirror, NoMirror, NotUploaded, bring_back
from inception_v4.storage.remote import Place, StorageError
from inception_v4.training.background import BackgroundWriter, host_copy
from inception_v4.training.checkpoint import find_resume, list_checkpoints, save_checkpoint
from inception_v4.training.curves import draw_curves
from inception_v4.training.job import Job, capture, weights_info
from inception_v4.training.launch import Launch
from inception_v4.training.runlog import SilentLog
from inception_v4.weights import Weights, WeightsInfo, save_weights, write_weights

RUNS = Path("runs")
"""Where runs live that have no output_dir."""


@dataclass
class RunFolder:
    """A run directory.

    Attributes:
        path: where it is.
        lock: makes this process its only writer.
        address: where a copy of it goes.
        address_setting: what gives it another address, for messages.
        settings: the resolved settings as YAML, once the run has begun.
        keep: checkpoints kept.
        resume: what the run goes on from: a checkpoint, `auto` or nothing.
        launch: the one that the run belongs to.
        writer: writes its checkpoints beside the training.
    """

    path: Path
    keep: int
    lock: FolderLock
    address: str | None = None
    address_setting: str = "--output-dir"
    settings: str = ""
    resume: str | None = None
    launch: Launch = field(default_factory=Launch)
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    mirror: Mirror | NoMirror = field(default_factory=NoMirror)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def begin(self, config: Config) -> None:
        """Make the directory, with the settings in it; raises FolderInUse where another process writes into it."""
        self.claim()
        self.lock.acquire(self.path)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if config.data.data_dir and not is_address(config.data.data_dir):
            # `validate` of these weights finds the data from anywhere.
            place = str(Path(config.data.data_dir).expanduser().absolute())
            config = config.model_copy(update={"data": config.data.model_copy(update={"data_dir": place})})
        self.settings = to_yaml(config)
        with atomic_write(self.path / "config.yaml") as temporary:
            temporary.write_text(self.settings, encoding="utf-8")
        self.launch.record(self.path)
        for pattern in (".*.tmp", "checkpoints/.*.tmp", ".upload-*"):
            for abandoned in self.path.glob(pattern):
                abandoned.unlink()  # by a process that was killed while it wrote, or uploaded
        if self.address:
            self.mirror = Mirror(self.path, self.address, say, lock=self.lock.upload)
            self.mirror.follow()

    def claim(self) -> None:
        """Become the only writer of the directory, where there is one, and of its address.

        Raises:
            FolderInUse: another process writes there.
        """
        if self.path.exists():
            self.lock.acquire(self.path)
        if self.address:
            self.lock.upload.acquire(self.address, setting=self.address_setting)

    @contextmanager
    def mirrored(self, *, patience: float) -> Iterator[None]:
        """After the block, whatever its end, waits up to `patience` seconds for the copy.

        Raises:
            NotUploaded: the block ended well, and the copy is not whole.
        """
        try:
            yield
        except BaseException:
            try:
                self.mirror.close(patience=patience)
            except NotUploaded as error:
                say(str(error))
            raise
        self.mirror.close(patience=patience)

    def save(self, job: Job) -> None:
        """A checkpoint of everything, and the weights as last.safetensors: copied now, written in the background.

        Raises:
            Exception: what went wrong with the one before.
        """
        self.lock.require()
        state = host_copy(capture(job, self.settings))
        self.writer.start(partial(self._write, state, weights_info(job)))

    def _write(self, state: dict[str, Any], info: WeightsInfo) -> None:
        save_checkpoint(self.checkpoints, state["step"], state, keep=self.keep)
        write_weights(Weights(state["ema"] or state["model"], info), self.path / "last.safetensors", layout="torch")
        self.mirror.follow()

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


def run_folder(run: Run, world: World, lock: FolderLock) -> RunFolder:
    """The directory of a run that is about to begin, not made yet, or of the one that torchrun has started again.

    Raises:
        ValueError: another run lives in it.
    """
    launch = Launch.current(world)
    folder = RunFolder(Path(), run.keep_checkpoint_max, lock, resume=run.resume, launch=launch)
    folder.address = run.upload_to or (run.output_dir if is_address(run.output_dir) else None)
    folder.address_setting = "--upload-to" if run.upload_to else "--output-dir"
    if world.is_main:
        folder.path = _place(run, launch)
        if launch.began(folder.path) and list_checkpoints(folder.checkpoints):
            folder.resume = "auto"
        elif run.resume is None and not launch.began(folder.path) and _holds_a_run(folder):
            raise ValueError(
                f"{folder.path} holds a run already: go on with --resume auto, or give another --output-dir"
            )
    folder.path, folder.resume = world.share((folder.path, folder.resume))
    return folder


def _place(run: Run, launch: Launch) -> Path:
    """Where the settings say; by default where this launch has begun, or a new name."""
    if run.output_dir:
        return local_place(run.output_dir) if is_address(run.output_dir) else Path(run.output_dir).expanduser()
    return launch.find(RUNS) or RUNS / f"{run.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"


def local_place(address: str) -> Path:
    """Where the run that an address means is written first; the same place each time."""
    address = address.rstrip("/")
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    return cache_dir() / "runs" / f"{address.rpartition('/')[2]}-{digest}"


def _holds_a_run(folder: RunFolder) -> bool:
    """Here, or where its copy goes."""
    if folder.checkpoints.exists() or folder.address is None:
        return folder.checkpoints.exists()
    return any(entry.name.startswith("checkpoints/") for entry in Place(folder.address).entries())


def _bring_back(folder: RunFolder, world: World) -> None:
    """On each machine, what the copy has and the folder has not; an error of one is raised in every process."""
    failure = ""
    if folder.address is not None and world.local_rank == 0:
        try:
            bring_back(folder.address, folder.path)
        except (StorageError, OSError) as error:
            failure = str(error)
    for found in filter(None, world.gather_objects(failure)):
        raise StorageError(found)


def earlier_state(folder: RunFolder, world: World) -> dict[str, Any] | None:
    """The state that the run goes on from: the same in every process; None for a new run."""
    if folder.resume is None:
        return None
    # Before anything is read: another run's next checkpoint would be a newer one.
    world.on_main(folder.claim)
    _bring_back(folder, world)
    resume = local_copy(folder.resume)
    warn = say if world.is_main else SilentLog().say
    state = find_resume(resume, folder.checkpoints, world=world, warn=warn)
    if state is not None and state["version"] < 2:
        warn("the checkpoint is an earlier version's: dropout and mixing go on with other random numbers")
    return state
