"""A run from its first step to its last: it trains, logs, validates, saves, and stops when it is asked to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inception_v4.data.loader import TrainLoader
from inception_v4.distributed import World
from inception_v4.files import DiskFull
from inception_v4.settings.schema import Run
from inception_v4.training.ending import closing_lines, last_whole
from inception_v4.training.features import CachedFeatures, FeatureLoader, NoFeatures
from inception_v4.training.folder import RunFolder
from inception_v4.training.freezing import AllLearn, Frozen
from inception_v4.training.job import Job, share_statistics, weights_info
from inception_v4.training.parts import Validator
from inception_v4.training.provenance import record_weights
from inception_v4.training.runlog import RunLog, SilentLog
from inception_v4.training.step import DivergedError, require_finite, train_one_epoch
from inception_v4.training.stopping import EarlyEnd, is_validated
from inception_v4.training.throughput import Throughput
from inception_v4.training.watchdog import NoWatchdog, Watchdog

INTERRUPTED = 75
"""Exit code after SIGTERM, SIGUSR1 or SIGINT: a checkpoint was written, `--resume auto` goes on (EX_TEMPFAIL)."""

SIGNAL_CHECK_STEPS, SIGNAL_CHECK_SECONDS = 10, 1.0
"""Several processes agree on stopping at most so many steps or seconds later: agreement costs a message."""


class Interrupted(Exception):
    """A signal asked the run to stop, and its state is saved."""

    exit_code = INTERRUPTED


class NoProfiler:
    """The off state."""

    def step(self) -> None: ...


@dataclass
class Loop:
    """The run under way (`job`), and what happens around its steps.

    Attributes:
        run: how often to log, validate and save.
        loader, validator: training batches, and figures of a network.
        layers: which of them learn.
        features: what may take the place of pictures.
        stopping: signals that asked for a stop.
        unwritten: why the last checkpoint is not there; empty where it is.
        end: what else ends the run early, and which weights are the best.
    """

    job: Job
    run: Run
    world: World
    loader: TrainLoader | FeatureLoader
    validator: Validator
    folder: RunFolder
    layers: Frozen | AllLearn = field(default_factory=AllLearn)
    features: CachedFeatures | NoFeatures = field(default_factory=NoFeatures)
    log: RunLog | SilentLog = field(default_factory=SilentLog)
    stopping: list[int] = field(default_factory=list)
    end: EarlyEnd = field(default_factory=EarlyEnd)
    profiler: Any = field(default_factory=NoProfiler)
    speed: Throughput = field(default_factory=Throughput)
    unwritten: str = ""
    watchdog: Watchdog | NoWatchdog = field(default_factory=NoWatchdog)
    _loss: Tensor | None = None  # sum over the steps since the last log line, on the device
    _steps: int = 0
    _unchecked: int = 0  # steps to the next agreement on whether to stop
    _planned: int = 0
    _checked: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """Before the first step."""
        self.loader, self.validator = self.features.begin(
            self.job.learner, self.loader, self.validator, beat=self.watchdog.beat, say=self.log.say
        )

    def run_epochs(self) -> None:
        """Train, validate and save until the planned number of steps is done."""
        learner, course = self.job.learner, self.job.learner.course
        self.end.count(self.job.waited)
        self.begin()
        if self.job.unvalidated is not None:
            self._choose_layers(self.job.unvalidated)
            self._end_epoch(self.job.unvalidated)
        while not self._over:
            epoch = course.epoch
            self._choose_layers(epoch)
            if course.done == 0 and epoch and self.loader.sizes(epoch) != self.loader.sizes(epoch - 1):
                self.log.say(f"image size {self.loader.sizes(epoch)} px from epoch {epoch + 1} on")
            if course.rest:
                self.speed.resume()
                batches = self.loader.epoch(epoch, start=course.done)
                train_one_epoch(learner, self._note_skipped(batches), epoch=epoch, after_step=self._after_step)
                self._log_training()
                self.speed.pause()
            else:
                course.end_epoch()
            if course.done == 0 or self._over:
                # Statistics are averaged even where no validation follows: all processes go on from one network.
                share_statistics(self.job, self.world)
                if course.done == 0:
                    self.job.swa.end_epoch(learner.model, epoch)
                self._end_epoch(epoch)
        if self.end.reason:
            self.log.say(f"ended early: {self.end.reason}")

    @property
    def _over(self) -> bool:
        return self.job.learner.course.finished or bool(self.end.reason)

    def _choose_layers(self, epoch: int) -> None:
        if line := self.layers.begin_epoch(self.job.learner, epoch):
            self.log.say(line)

    def _end_epoch(self, epoch: int) -> None:
        """Validate and save as the settings say; the end of a run is validated and saved whatever they say."""
        due = is_validated(self.run, epoch) or self.job.unvalidated is not None
        if not self._over:
            self.job.unvalidated = epoch if due else None
            self._stop_if_asked()
        if due or self._over:
            self._validate_or_keep(epoch)
        if self._over or (epoch + 1) % self.run.ckpt_interval == 0:
            self._save()

    def _validate_or_keep(self, epoch: int) -> None:
        """Validate; where that fails, save what was learnt, so that the next start has only this to do again."""
        job = self.job
        job.unvalidated, before = epoch, (job.best, job.waited)
        try:
            self._validate(epoch)
        except Interrupted:
            raise
        except Exception:
            job.best, job.waited = before
            self._keep()
            raise
        job.unvalidated = None

    def finish(self, title: str) -> dict[str, Any]:
        """Curves and the closing lines; the summary.

        Raises:
            DiskFull: the run is over and its last checkpoint, or its only weights, could not be written.
        """
        job, best = self.job, self.job.best
        self._settle()
        if self.unwritten or not best:
            raise DiskFull(f"the run is over, and its end was not written: {self.unwritten or self.folder.best}")
        # In training each process meets unreadable pictures of its own.
        skipped = sorted(set().union(*self.world.gather_objects(job.skipped)))
        if self.world.is_main:
            record_weights(self.folder.path)
            curves = self.folder.draw(f"{title}: {job.learner.step} steps")
            for line in closing_lines(self.folder, best, figure=self.end.figure, curves=curves, skipped=skipped):
                self.log.say(line)
        self.world.barrier()
        return {
            "output_dir": str(self.folder.path), "steps": job.learner.step, "best": best,
            "images_per_second": self._images_per_second(), "skipped_pictures": len(skipped),
            "weights": str(self.folder.best),
        }  # fmt: skip

    def _after_step(self, loss: Tensor, images: int) -> bool:
        """Bookkeeping of one step; True stops the epoch because the run is over."""
        course = self.job.learner.course
        step = course.step
        self._loss = loss if self._loss is None else self._loss + loss
        self._steps += 1
        self.speed.update(images)
        self.profiler.step()
        self.log.step(step)
        if step % self.run.log_interval == 0 or step == 1:
            self._log_training()
        if self.run.ckpt_steps and step % self.run.ckpt_steps == 0 and course.done:
            self._save()
            self.speed.resume()
        within = course.done != 0 and not course.finished
        self._unchecked -= 1
        if within and self._unchecked <= 0:
            self._stop_if_asked()
        return self._over

    def _log_training(self) -> None:
        if not self._steps or self._loss is None:
            return
        # Both in one message. A process that waits for data makes the others wait for it, which is not in their share.
        own = torch.stack([self._loss.cpu().double() / self._steps, torch.tensor(self.speed.data_wait()).double()])
        mean, data_wait = (self.world.sum(own) / self.world.size).tolist()
        self._loss, self._steps = None, 0
        learner, course = self.job.learner, self.job.learner.course
        require_finite(mean, learner.model, step=learner.step)
        self.log.train(
            {
                "epoch": course.epoch if course.done else course.epoch - 1,
                "step": learner.step,
                "progress": course.moment / course.per_epoch,
                "loss": mean,
                "lr": learner.lr,
                "images_per_second": self._images_per_second(),
                "data_wait": round(data_wait, 4),
                "skipped_steps": learner.scaler.skipped(),
            }
        )

    def _images_per_second(self) -> float | None:
        return self.speed.per_second and self.speed.per_second * self.world.size

    def _note_skipped(self, batches: Iterable[Any]) -> Iterator[Any]:
        waiting = iter(batches)
        while True:
            self.watchdog.beat(f"waiting for pictures after step {self.job.learner.step}")
            with self.speed.waiting():
                batch = next(waiting, None)
            if batch is None:
                return
            self.watchdog.beat(f"computing after step {self.job.learner.step}")
            self.job.skipped.update(batch.skipped)
            yield batch

    def _validate(self, epoch: int) -> None:
        """Validate the weights and their average; keep the better as best.safetensors.

        Raises:
            Interrupted: a signal came meanwhile; the checkpoint says that this is still to be done.
        """
        job, course = self.job, self.job.learner.course
        self.watchdog.beat(f"validating after step {job.learner.step}")
        if course.finished:
            self._finish_swa()
        results = {prefix: self.validator(network, self._goes_on) for prefix, network in job.networks.items()}
        self._stop_if_asked()
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": job.learner.step,
            "progress": course.moment / course.per_epoch,
        }
        for prefix, result in results.items():
            record |= result.record(prefix)
        self.log.validation(record)
        prefix, result = max(results.items(), key=lambda item: self.end.score(item[1].record()))
        job.waited += course.done == 0  # not where time was over within an epoch
        if not job.best or self.end.score(result.record()) > self.end.score(job.best):
            job.waited = 0
            before, job.best = job.best, {**result.record(), "epoch": epoch, "averaged": bool(prefix)}
            network, info = job.networks[prefix], weights_info(job, result)
            source = self.validator.loader.source
            if self._write(lambda: self.folder.save_best(network, info, result, source)):
                job.best = before  # of the file that is there
        self.end.count(job.waited)
        job.skipped |= set(result.skipped)

    def _finish_swa(self) -> None:
        """Statistics for the mean of the weights, from an epoch of pictures that follows the run's last one."""
        learner, swa = self.job.learner, self.job.swa
        if swa.count:
            self._save()  # a pass over the pictures takes long
        line = swa.finish(
            learner.model, self._note_skipped(self.loader.epoch(learner.course.epochs)),
            normalise=learner.normalise, precision=learner.precision, world=self.world,
        )  # fmt: skip
        if line:
            self.log.say(line)

    def _goes_on(self) -> bool:
        self.watchdog.alive()
        return not self.stopping

    def _save(self) -> None:
        """Have a checkpoint and the weights as they are now written; training goes on meanwhile."""
        self.watchdog.beat(f"writing the checkpoint of step {self.job.learner.step}")
        require_finite(0.0, self.job.learner.model, step=self.job.learner.step)
        share_statistics(self.job, self.world)
        self._settle()
        self.unwritten = self._write(lambda: self.folder.save(self.job))

    def _keep(self) -> None:
        """Save by the main process alone, after an error: the other ones may have ended."""
        if not self.world.is_main:
            return
        try:
            require_finite(0.0, self.job.learner.model, step=self.job.learner.step)
            self.folder.save(self.job)
            self.folder.writer.finish()
        except (DiskFull, DivergedError) as error:
            self.log.say(f"not saved before the validation that failed: {error}")
            return
        self.folder.mirror.follow()
        self.log.say(f"saved: --resume auto --output-dir {self.folder.path} goes on with the validation that failed")

    def _settle(self) -> None:
        """Wait until what is being written is on disk."""
        self.watchdog.beat("waiting for a checkpoint to be written")
        self.unwritten = self._write(self.folder.writer.finish) or self.unwritten

    def _write(self, work: Callable[[], Any]) -> str:
        """Have the main process write a file; what the disk said where it is left out, as on_disk_full has it."""
        try:
            self.world.on_main(work)
        except DiskFull as error:
            if self.run.on_disk_full == "stop":
                raise DiskFull(f"{error}; {last_whole(self.folder)}") from error
            self.log.say(f"not written: {error}; training goes on (on_disk_full continue), {last_whole(self.folder)}")
            return str(error)
        self.folder.mirror.follow()
        return ""

    def _stop_if_asked(self) -> None:
        """After a signal to any process: save, and raise `Interrupted` in all of them, or `DiskFull`."""
        if self._agreed_to_stop():
            self._save()
            self._settle()
            reason = f"signal {self.stopping[0]}" if self.stopping else "a signal to another process"
            stopped = f"stopped by {reason} at step {self.job.learner.step}"
            if self.unwritten:
                raise DiskFull(f"{stopped}, which is not saved: {self.unwritten}; {last_whole(self.folder)}")
            raise Interrupted(f"{stopped}: go on with --resume auto --output-dir {self.folder.path}")

    def _agreed_to_stop(self) -> bool:
        """Whether any process was asked to stop; all of them choose the step at which they ask each other again.

        Notes also where the main process's clock says that time is over.
        """
        now = time.monotonic()
        took, self._checked = now - self._checked, now
        done = max(1, self._planned - self._unchecked)
        late = self.world.is_main and self.end.out_of_time()
        asked, seconds, over = self.world.sum(torch.tensor([bool(self.stopping), took / done, late])).tolist()
        if over and not self.end.reason:
            self.end.stop_for_time(self.job.learner.step)
        each = seconds / self.world.size
        self._planned = self._unchecked = max(1, min(SIGNAL_CHECK_STEPS, int(SIGNAL_CHECK_SECONDS / max(each, 1e-9))))
        return asked > 0
