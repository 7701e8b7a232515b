"""The training recipe, in the order in which it runs. The only file that sees a whole `Config`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from inception_v4.accelerator import select
from inception_v4.accelerator.precision import Precision
from inception_v4.data.sources import open_source
from inception_v4.distributed import World, session
from inception_v4.inference.evaluate import Evaluation, evaluate
from inception_v4.settings.defaults import Hardware, choose_defaults, held_out
from inception_v4.settings.recipes import build_config
from inception_v4.settings.schema import OPTIMIZER_NUMBERS, Config, Run
from inception_v4.training.checkpoint import save_checkpoint
from inception_v4.training.curves import draw_curves
from inception_v4.training.job import Job, capture, prepare, share_statistics, weights_info
from inception_v4.training.step import require_finite, train_one_epoch
from inception_v4.weights import save_weights

INTERRUPTED = 75
"""Exit code after SIGTERM or SIGINT: a checkpoint was written, `--resume auto` goes on (EX_TEMPFAIL)."""

SIGNAL_CHECK_STEPS = 10
"""Several processes agree on stopping only every so many steps: agreement costs a message."""


class Interrupted(Exception):
    """A signal asked the run to stop, and its state is saved."""

    exit_code = INTERRUPTED


def train(config: Config) -> dict[str, Any]:
    """Run a recipe; returns the summary that is also in the run directory.

    Raises:
        Interrupted: a signal came and the state was saved.
        DivergedError, ValueError, OSError: with one line that says what to do.
    """
    accelerator = select(config.run.device)
    accelerator.activate(deterministic=config.training.deterministic, tf32=config.training.tf32)
    with session(accelerator) as world:
        # Settings chosen by free memory may differ between processes, which must take the same steps.
        job = prepare(world.share(config), accelerator, world)
        try:
            with _catch_signals(job.stopping), _profiler(job) as job.profiler:
                run_epochs(job)
            return finish(job)
        finally:
            job.log.close()


def suit_data(config: Config, given: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """`config` with batch, schedule and the like chosen for its pictures and its device, and the reasons.

    What is in `given` stays as it is.
    """
    accelerator = select(config.run.device)
    source = open_source(config.data, "train", world=World(), seed=config.run.seed)
    if "val_fraction" not in given:
        # First what is held out, then the rest: the training pictures are counted as the run will have them.
        data = config.data.model_copy(update={"val_fraction": held_out(len(source))})
        config = config.model_copy(update={"data": data})
        source = open_source(data, "train", world=World(), seed=config.run.seed)
    started_from = bool(config.network.pretrained or config.network.ckpt_path)
    # There is no process group yet, but torchrun has said how many will train together.
    hardware = Hardware(accelerator.type, accelerator.memory(), World.from_environment().size)
    settings, reasons = choose_defaults(
        len(source), len(source.class_names), hardware=hardware, pretrained=started_from,
        fixed={name: value for name, value in config.flat().items() if name in given or name == "val_fraction"},
    )  # fmt: skip
    chosen = {name: value for name, value in settings.items() if name not in given}
    if "lr" in given:
        chosen["lr_base_batch"] = None
    if "opt" in given:
        # Momentum and betas were chosen for another one.
        chosen = {name: value for name, value in chosen.items() if name not in OPTIMIZER_NUMBERS}
    overruled = [name for name in settings if name in given]
    if overruled:
        reasons.append(f"as you said: {', '.join(f'{name} {given[name]}' for name in overruled)}")
    return build_config(config.given() | chosen), reasons


def run_epochs(job: Job) -> None:
    """Train, validate and save until the planned number of steps is done."""
    learner = job.learner
    accum = job.config.optimizer.accum_steps
    while learner.step < job.total_steps:
        epoch, position = divmod(learner.step, job.steps_per_epoch)
        job.speed.resume()
        batches = job.train_loader.epoch(epoch, start=position * accum)
        pictures = _note_skipped(job, batches)
        train_one_epoch(learner, pictures, epoch=epoch, after_step=partial(_after_step, job))
        _log_training(job)
        job.speed.pause()
        finished = learner.step >= job.total_steps
        if learner.step % job.steps_per_epoch == 0 or finished:
            # Statistics are averaged even where no validation follows: all processes go on from one network.
            share_statistics(job)
            if finished or is_validated(job.config.run, epoch):
                validate_epoch(job, epoch)
            saved = (epoch + 1) % job.config.run.ckpt_interval == 0 or finished
            if saved:
                save(job)
            if not finished:
                stop_if_asked(job, saved=saved)


def is_validated(run: Run, epoch: int) -> bool:
    """Whether an epoch (from 0) is one of those that val_start and val_interval choose."""
    since = epoch + 1 - (run.val_start or run.val_interval)
    return since >= 0 and since % run.val_interval == 0


def validate_epoch(job: Job, epoch: int) -> None:
    """Validate the weights and their average; keep the better as best.safetensors."""
    record: dict[str, Any] = {"epoch": epoch, "step": job.learner.step, "progress": epoch + 1}
    candidates = job.learner.networks
    results = {prefix: _evaluate(job, model) for prefix, model in candidates.items()}
    for prefix, result in results.items():
        record |= result.record(prefix)
    job.log.validation(record)
    prefix, result = max(results.items(), key=lambda item: item[1].top1)
    if result.top1 > job.best.get("top1", -1.0):
        job.best = {**result.record(), "epoch": epoch, "averaged": bool(prefix)}
        if job.world.is_main:
            save_weights(candidates[prefix], job.folder / "best.safetensors", weights_info(job, result))
    job.skipped |= set(result.skipped)


def save(job: Job) -> None:
    """Write a checkpoint of everything, and the weights as last.safetensors."""
    require_finite(0.0, job.learner.model, step=job.learner.step)
    share_statistics(job)
    if job.world.is_main:
        keep = job.config.run.keep_checkpoint_max
        save_checkpoint(job.folder / "checkpoints", job.learner.step, capture(job), keep=keep)
        model = job.learner.ema.module or job.learner.model
        save_weights(model, job.folder / "last.safetensors", weights_info(job, None))
    job.world.barrier()


def finish(job: Job) -> dict[str, Any]:
    """Curves and the closing lines."""
    # In training each process meets unreadable pictures of its own.
    skipped = sorted(set().union(*job.world.gather_objects(job.skipped)))
    summary = {
        "output_dir": str(job.folder), "steps": job.learner.step, "best": job.best,
        "images_per_second": job.speed.per_second and job.speed.per_second * job.world.size,
        "skipped_pictures": len(skipped), "weights": str(job.folder / "best.safetensors"),
    }  # fmt: skip
    if job.world.is_main:
        draw_curves(job.folder, title=f"{job.config.run.recipe}: {job.learner.step} steps")
        best = job.best
        job.log.say(
            f"best top-1 {best['top1']:.2f} %, top-5 {best['top5']:.2f} % after epoch {best['epoch'] + 1}"
            + (" (averaged weights)" if best["averaged"] else "")
        )
        if skipped:
            job.log.say(f"{len(skipped)} unreadable pictures were skipped: {', '.join(skipped[:5])}")
        job.log.say(f"weights {summary['weights']}, curves {job.folder / 'curves.png'}")
        job.log.say(f"next: inception-v4 predict PICTURE --ckpt-path {summary['weights']}")
    job.world.barrier()
    return summary


class NoProfiler:
    """The off state."""

    def step(self) -> None: ...


@contextmanager
def _profiler(job: Job) -> Iterator[Any]:
    """A recording of a few of the first steps, in the run directory, by the main process where asked for."""
    if not (job.config.run.profile and job.world.is_main):
        yield NoProfiler()
        return
    folder = job.folder / "profile"
    with job.accelerator.profiler(str(folder)) as profiler:
        yield profiler
    if any(folder.rglob("*.json*")):
        job.log.say(f"profile of the run's third to fifth step: {folder} (open its .json in ui.perfetto.dev)")
    else:
        job.log.say("no profile: it is of the third to fifth step, and the run had fewer")


def stop_if_asked(job: Job, *, saved: bool = False) -> None:
    """After a signal in any process: save, and raise `Interrupted` in all of them."""
    if job.world.any(bool(job.stopping)):
        if not saved:
            save(job)
        reason = f"signal {job.stopping[0]}" if job.stopping else "a signal to another process"
        raise Interrupted(
            f"stopped by {reason} at step {job.learner.step}: go on with --resume auto --output-dir {job.folder}"
        )


def _after_step(job: Job, loss: Tensor, images: int) -> bool:
    """Bookkeeping of one step; True stops the epoch because the run is over."""
    learner, run = job.learner, job.config.run
    job.pending_loss = loss if job.pending_loss is None else job.pending_loss + loss
    job.pending_steps += 1
    job.speed.update(images)
    job.profiler.step()
    step = learner.step
    if step % run.log_interval == 0 or step == 1:
        _log_training(job)
    if run.ckpt_steps and step % run.ckpt_steps == 0 and step % job.steps_per_epoch:
        save(job)
        job.speed.resume()
    within = step % job.steps_per_epoch != 0 and step < job.total_steps
    if within and (job.world.size == 1 or step % SIGNAL_CHECK_STEPS == 0):
        stop_if_asked(job)
    return step >= job.total_steps


def _log_training(job: Job) -> None:
    if not job.pending_steps or job.pending_loss is None:
        return
    mean = float(job.world.sum(job.pending_loss.cpu().double() / job.pending_steps)) / job.world.size
    job.pending_loss, job.pending_steps = None, 0
    step = job.learner.step
    require_finite(mean, job.learner.model, step=step)
    speed = job.speed.per_second
    job.log.train(
        {
            "epoch": (step - 1) // job.steps_per_epoch,
            "step": step,
            "progress": step / job.steps_per_epoch,
            "loss": mean,
            "lr": job.learner.rate(step - 1),
            "images_per_second": speed and speed * job.world.size,
            "skipped_steps": job.learner.scaler.skipped(),
        }
    )


def _note_skipped(job: Job, batches: Any) -> Iterator[Any]:
    for batch in batches:
        job.skipped.update(batch.skipped)
        yield batch


def _evaluate(job: Job, model: nn.Module) -> Evaluation:
    config = job.config
    precision = job.learner.precision
    amp = config.training.val_amp or config.training.amp
    precision = Precision(precision.accelerator, precision.accelerator.amp_dtype(amp))
    was_training = model.training
    model.eval()
    try:
        return evaluate(
            model,
            job.val_loader,
            prepare=job.learner.normalise,
            precision=precision,
            world=job.world,
            batch_size=config.data.val_batch_size or config.data.batch_size,
        )
    finally:
        model.train(was_training)


@contextmanager
def _catch_signals(stopping: list[int]) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a stop at the next step; a second one ends the program at once."""

    def ask(number: int, frame: Any) -> None:
        if stopping:
            os._exit(128 + number)
        stopping.append(number)

    earlier = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
