"""A run, in the order in which things happen. The only file that sees a whole `Config`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from inception_v4.accelerator import Accelerator, select
from inception_v4.accelerator.precision import AMP_WORDS, Precision, choose_amp
from inception_v4.console import say
from inception_v4.data.class_weights import counts_line
from inception_v4.data.loader import TrainLoader
from inception_v4.data.mixing import MixAndErase
from inception_v4.data.normalise import Normalise
from inception_v4.data.sizes import ImageSizes
from inception_v4.data.sources import Source, open_source
from inception_v4.distributed import World, session
from inception_v4.inference.data_record import KEY, record
from inception_v4.settings.schema import Config
from inception_v4.storage.lock import FolderLock
from inception_v4.training.features import CachedFeatures, NoFeatures, check_cacheable
from inception_v4.training.folder import earlier_state, run_folder
from inception_v4.training.freezing import freeze_layers
from inception_v4.training.job import Job, require_steps, restore
from inception_v4.training.label_kind import with_monitor
from inception_v4.training.loop import Loop, NoProfiler
from inception_v4.training.optim import average_of, build_optimizer
from inception_v4.training.parts import (
    build_validator,
    callable_form,
    check_batches,
    head_size,
    place,
    start_network,
    vendor_optimizer,
    weights_of_classes,
)
from inception_v4.training.provenance import describe_start, record_start
from inception_v4.training.room import require_room_for_run
from inception_v4.training.runlog import RunLog, require_tracker, trackers_for
from inception_v4.training.schedule import Course, LearningRate
from inception_v4.training.step import Learner, make_criterion, split_criterion
from inception_v4.training.stopping import EarlyEnd
from inception_v4.training.swa import weight_mean
from inception_v4.training.teacher import open_teacher
from inception_v4.training.watchdog import watching
from inception_v4.weights import WeightsInfo

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
"""SIGUSR1 is what SLURM's --signal and other batch systems are told to send before the time is up; Windows has none."""


def train(config: Config) -> dict[str, Any]:
    """Run a recipe; returns the summary that is also in the run directory.

    Raises:
        Interrupted: a signal came and the state was saved.
        DivergedError, ValueError, OSError: with one line that says what to do.
    """
    accelerator = select(config.run.device)
    accelerator.activate(deterministic=config.training.deterministic, tf32=config.training.tf32)
    limit = config.run.hang_timeout
    # The process group's own limit is the longer one: its error does not say who is missing.
    with (
        session(accelerator, timeout=1.5 * limit + 30) as world,
        watching(world, limit) as watchdog,
        FolderLock(say) as lock,
    ):
        # Settings chosen by free memory may differ between processes, which must take the same steps.
        loop = prepare(world.share(config), accelerator, world, lock)
        loop.watchdog = watchdog
        with loop.folder.mirrored(patience=60 * config.run.upload_wait):
            try:
                with _catch_signals(loop.stopping), _profiler(loop, accelerator) as loop.profiler:
                    loop.run_epochs()
                return loop.finish(config.run.recipe)
            finally:
                watchdog.stop()  # uploads may take longer than steps do, and no other process is waited for
                loop.log.close()
                # After an error too: what was begun is finished, and what went wrong with it is not lost.
                loop.folder.writer.finish()


def prepare(config: Config, accelerator: Accelerator, world: World, lock: FolderLock) -> Loop:
    """Every part of a run, and its directory and log.

    Args:
        lock: makes the main process the only writer of the run directory; the caller lets go of it.
    """
    loop, config, lines = assemble(config, accelerator, world, lock)
    _begin(loop, config, lines)
    return loop


Assembled = tuple[Loop, Config, list[str]]
"""A run, its settings with all choices made, and what there is to say about it, in lines for people."""


def assemble(config: Config, accelerator: Accelerator, world: World, lock: FolderLock) -> Assembled:
    """Every part of a run, from its own section of the settings; the state of an earlier run when resuming.

    Nothing is written.
    """
    config, remarks = with_precision(config, accelerator)
    check_cacheable(config)
    run, opt, training = config.run, config.optimizer, config.training
    world.on_main(lambda: require_tracker(run.logger))
    opened = partial(open_source, config.data, world=world, seed=run.seed, several=training.several)
    source, held_out = opened("train"), opened("val")
    config, lines = with_monitor(config, source)
    classes = head_size(config.data, source)
    folder = run_folder(run, world, lock)
    state = earlier_state(folder, world)
    usual, given = config.augmentation.preprocessing(), config.augmentation.given_preprocessing()
    start = start_network(config.network, classes, seed=run.seed, state=state, usual=usual, given=given)
    augmentation = config.augmentation.prepared_like(start.preprocessing)
    network_settings = config.network.model_copy(update={"stem": start.model.stem})
    config = config.model_copy(update={"augmentation": augmentation, "network": network_settings})
    loader = _loader(config, source, accelerator, world)
    normalise = Normalise(augmentation, accelerator.memory_format(training.channels_last))
    course = _course(config, loader)
    network = place(start.model, training, accelerator, world)
    callable_of = partial(callable_form, training=training, accelerator=accelerator, world=world)
    layers = freeze_layers(network, opt, callable_of)
    lr, amp_dtype = opt.peak_lr(loader.global_batch), accelerator.amp_dtype(training.amp)
    precision, info = Precision(accelerator, amp_dtype), _info(config, source, classes)
    learner = Learner(
        model=network,
        compute=callable_of(network),
        optimizer=build_optimizer(network, opt, lr, fused=vendor_optimizer(opt, training, accelerator)),
        scaler=accelerator.grad_scaler(amp_dtype, training.loss_scale, fused_optimizer=training.fused_optimizer),
        rate=LearningRate.from_settings(config.schedule, lr, course.per_epoch, base=opt.lr),
        criterion=_criterion(config, source, classes=classes, device=accelerator.device),
        normalise=normalise,
        mix=MixAndErase(augmentation, num_classes=classes),
        precision=precision,
        course=course,
        ema=average_of(network, opt),
        teacher=open_teacher(training, info, precision, world=world, layout=normalise.memory_format),
        clip_grad=opt.clip_grad,
        seed=run.seed, rank=world.rank, processes=world.size,
    )  # fmt: skip
    job = Job(learner, info, swa=weight_mean(opt.swa_epochs, config.schedule))
    if state is not None:
        remarks += restore(job, state, opt=opt.opt, best_kept=world.share(folder.best.exists()))
    require_steps(job)
    check_batches(
        course.tails(), config.data, image_size=loader.sizes(course.epoch), stem=start.model.stem, training=training,
        world=world,
    )  # fmt: skip
    of_validation = Precision(accelerator, accelerator.amp_dtype(training.val_amp or training.amp))
    validator = build_validator(
        held_out, config.data, augmentation=augmentation, normalise=normalise, world=world, precision=of_validation
    )
    features = CachedFeatures(config, source, world, callable_of) if training.cache_features else NoFeatures()
    loop = Loop(job, run, world, loader, validator, folder, layers, features, end=EarlyEnd.of(config.schedule))
    said = [*_introduction(loop, config, source, held_out), *lines, *remarks, *start.messages, *_remarks(loop, config)]
    return loop, config, said


def _loader(config: Config, source: Source, accelerator: Accelerator, world: World) -> TrainLoader:
    augmentation = config.augmentation
    return TrainLoader(
        source, config.data, augmentation, world=world, seed=config.run.seed, pin_memory=accelerator.pin_memory,
        sizes=ImageSizes.of(augmentation, config.schedule.epochs),
    )  # fmt: skip


def with_precision(config: Config, accelerator: Accelerator) -> tuple[Config, list[str]]:
    """`config` with the device's choice in place of "auto", and a line with the reason.

    The choice is a part of the run: one that goes on elsewhere keeps it.
    """
    training = config.training
    amp, reason = choose_amp(accelerator, training.amp)
    val_amp = training.val_amp and choose_amp(accelerator, training.val_amp)[0]
    chosen = training.model_copy(update={"amp": amp, "val_amp": val_amp})
    line = f"amp auto: {AMP_WORDS[amp]} ({reason}); --amp says another"
    return config.model_copy(update={"training": chosen}), [line] if reason else []


def _criterion(config: Config, source: Source, *, classes: int, device: Any) -> Callable[[Any, Any], Any]:
    """The loss of a batch, whole or in parts."""
    training, splits = config.training, config.augmentation.aug_splits
    weights = weights_of_classes(training.class_weights, source, classes, device)
    criterion = make_criterion(training.loss, training.label_smoothing, weights)
    return split_criterion(criterion, splits) if splits else criterion


def _course(config: Config, loader: TrainLoader) -> Course:
    plan = config.schedule
    return Course(
        loader.samples, loader.global_batch, config.optimizer.accum_steps, config.data.drop_last,
        epochs=plan.epochs, max_steps=plan.max_steps, epoch=plan.start_epoch,
    )  # fmt: skip


def _info(config: Config, source: Source, classes: int) -> WeightsInfo:
    """How the run's weights are used, and where they come from."""
    names, run = tuple(source.class_names), config.run
    return WeightsInfo(
        num_classes=classes,
        class_names=names if len(names) == classes else None,
        preprocessing=config.augmentation.preprocessing(),
        in_channels=config.network.in_channels,
        bn_eps=config.network.bn_eps,
        stem=config.network.stem,
        class_order=config.data.class_order,
        multi_label=source.label_sets is not None,
        source=f"inception-v4 {run.recipe}",
        extra={"recipe": run.recipe, KEY: record(config.data, run.seed)},
    )


def _begin(loop: Loop, config: Config, lines: list[str]) -> None:
    """The run directory and its log. Not before: a run that was refused leaves no folder in the way of the next one."""
    start = describe_start(
        loop.job.learner.precision.accelerator, loop.world, seed=config.run.seed, step=loop.job.learner.step,
        deterministic=config.training.deterministic,
    )  # fmt: skip
    if loop.job.learner.teacher.record:
        start["teacher"] = loop.job.learner.teacher.record

    def begin() -> None:
        if config.run.on_disk_full == "stop":
            require_room_for_run(loop.job, config.optimizer, config.run, loop.folder.path)
        loop.folder.begin(config)
        record_start(loop.folder.path, start)
        loop.log = RunLog(
            loop.folder.path, total_steps=loop.job.learner.course.total, tensorboard=config.run.tensorboard,
            resumed_at=loop.job.learner.step, lossy=config.run.on_disk_full == "continue",
            trackers=trackers_for(config, loop.folder.path),
        )  # fmt: skip

    loop.world.on_main(begin)
    for line in lines:
        loop.log.say(line)


def _introduction(loop: Loop, config: Config, source: Source, held_out: Source) -> list[str]:
    """What this run is, in lines for people."""
    learner, course, amp = loop.job.learner, loop.job.learner.course, config.training.amp
    return [
        f"{config.run.recipe}: {len(source)} training and {len(held_out)} validation pictures, "
        f"{len(source.class_names)} classes, {loop.loader.sizes}",
        f"{learner.precision.accelerator.describe()} x {loop.world.size}, {AMP_WORDS[amp]}, "
        f"{course.batch * course.accum_steps} images per step, {course.per_epoch} steps per epoch, "
        f"{config.optimizer.opt} lr {learner.rate.lr:g}, {config.schedule.epochs} epochs -> {loop.folder.path}",
        counts_line(source.counts(), source.class_names),
        *dict.fromkeys((*source.remarks, *held_out.remarks)),
    ]


def _remarks(loop: Loop, config: Config) -> list[str]:
    """What may surprise."""
    learner, network, training, lines = loop.job.learner, config.network, config.training, []
    steps, steps_of_epoch = learner.course.total, learner.course.per_epoch
    if taught := learner.teacher.record:
        lines.append(
            f"teacher {taught['name']} ({taught['weights']}, SHA-256 {taught['sha256'][:12]}): "
            f"{training.distill_alpha:g} of the loss, temperature {training.distill_t:g}"
        )
    if training.compile:
        what = "compile: the first step" + (" at each image size" if len(loop.loader.sizes.rungs) > 1 else "")
        lines.append(learner.precision.accelerator.compile_notice(what))
    if loop.folder.resume and learner.step:
        again = "" if config.run.resume else ": torchrun started the run again"
        lines.append(f"resumed at step {learner.step} of {steps}{again}")
    momentum = network.bn_momentum
    if momentum < 0.01 and steps * momentum < 3 and not (network.pretrained or network.ckpt_path):
        lines.append(
            f"bn_momentum {momentum:g} over {steps} steps leaves BatchNorm's statistics near their start: "
            "validation will look random; use --bn-momentum 0.1 for a short run"
        )
    if learner.rate.stair and learner.rate.warmup_steps and not learner.step and not learner.rate(steps_of_epoch - 1):
        lines.append(
            "the first epoch learns nothing: lr_epoch_stair holds the rate at which the warm-up begins, 0: give "
            "--warmup-lr, or --lr-epoch-stair false"
        )
    if frozen := getattr(learner.model, "frozen_blocks", 0):
        learning = sum(p.numel() for p in learner.model.parameters() if p.requires_grad)
        lines.append(f"the first {frozen} blocks are frozen: {learning:,} parameters learn")
    return lines


@contextmanager
def _profiler(loop: Loop, accelerator: Accelerator) -> Iterator[Any]:
    """A recording of a few of the first steps, in the run directory, by the main process where asked for."""
    if not (loop.run.profile and loop.world.is_main):
        yield NoProfiler()
        return
    folder = loop.folder.path / "profile"
    with accelerator.profiler(str(folder)) as profiler:
        yield profiler
    if any(folder.rglob("*.json*")):
        loop.log.say(f"profile of the run's third to fifth step: {folder} (open its .json in ui.perfetto.dev)")
    else:
        loop.log.say("no profile: it is of the third to fifth step, and the run had fewer")


@contextmanager
def _catch_signals(stopping: list[int]) -> Iterator[None]:
    """SIGTERM, SIGUSR1 and SIGINT ask for a stop at the next step; a second Ctrl-C ends the program at once.

    Others may come twice: SLURM signals every process of a job, and torchrun passes on what it gets.
    """

    def ask(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in stopping:
            os._exit(128 + number)
        stopping.append(number)

    earlier = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
