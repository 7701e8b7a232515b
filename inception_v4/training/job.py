"""The parts of a run, built from its configuration; captured into and restored from a checkpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inception_v4.accelerator import Accelerator, DeviceError
from inception_v4.accelerator.precision import Precision
from inception_v4.console import say
from inception_v4.data.loader import EvalLoader, TrainLoader
from inception_v4.data.mixing import MixAndErase
from inception_v4.data.normalise import Normalise
from inception_v4.data.sources import Source, open_source
from inception_v4.distributed import World, average_buffers, share_gradients, synchronise_batch_norm
from inception_v4.files import atomic_write
from inception_v4.inference.data_record import KEY, record
from inception_v4.inference.evaluate import Evaluation
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.recipes import to_yaml
from inception_v4.settings.schema import Config
from inception_v4.training.checkpoint import CheckpointError, find_resume
from inception_v4.training.optim import Ema, NoEma, build_optimizer, canonical_name
from inception_v4.training.runlog import RunLog, SilentLog
from inception_v4.training.schedule import LearningRate
from inception_v4.training.step import Learner, make_criterion
from inception_v4.training.throughput import Throughput
from inception_v4.weights import Weights, WeightsInfo, load_weights, read_weights
from inception_v4.weights.source import PRETRAINED


@dataclass
class Job:
    """The parts of a run."""

    config: Config
    folder: Path
    world: World
    accelerator: Accelerator
    learner: Learner
    train_loader: TrainLoader
    val_loader: EvalLoader
    info: WeightsInfo
    steps_per_epoch: int
    log: RunLog | SilentLog = field(default_factory=SilentLog)
    best: dict[str, Any] = field(default_factory=dict)
    speed: Throughput = field(default_factory=Throughput)
    stopping: list[int] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    profiler: Any = None
    pending_loss: Tensor | None = None  # sum over the steps since the last log line, on the device
    pending_steps: int = 0

    @property
    def total_steps(self) -> int:
        planned = self.config.schedule.epochs * self.steps_per_epoch
        return min(planned, self.config.schedule.max_steps or planned)


def prepare(config: Config, accelerator: Accelerator, world: World) -> Job:
    """Data, network, optimizer and run directory; the state of an earlier run when resuming."""
    source = open_source(config.data, "train", world=world, seed=config.run.seed)
    held_out = open_source(config.data, "val", world=world, seed=config.run.seed)
    classes = _head_size(config, source)
    folder = _unused_folder(config, world)
    state = _earlier_state(config, folder, world)
    model, info, messages = _network(config, source, classes, state)
    config = config.model_copy(update={"augmentation": config.augmentation.prepared_like(info.preprocessing)})
    info = info.replace(preprocessing=config.augmentation.preprocessing())
    loader = TrainLoader(
        source, config.data, config.augmentation, world=world, seed=config.run.seed, pin_memory=accelerator.pin_memory
    )
    steps = -(-loader.steps_per_epoch // config.optimizer.accum_steps)
    learner = _learner(config, model, accelerator, world, steps)
    learner.step = config.schedule.start_epoch * steps
    val_loader = EvalLoader(
        held_out,
        config.augmentation.preprocessing(),
        batch_size=config.data.val_batch_size or config.data.batch_size,
        workers=config.data.workers,
        world=world,
        on_corrupt=config.data.on_corrupt,
        pin_memory=accelerator.pin_memory,
    )
    job = Job(config, folder, world, accelerator, learner, loader, val_loader, info, steps)
    if state is not None:
        restore(job, state)
    _require_steps(job)
    # Only now: a run that is refused (by its device, say) leaves no folder in the way of the next attempt.
    _start_folder(config, folder, world)
    if world.is_main:
        job.log = _open_log(job)
    _introduce(job, source, held_out, messages, resumed=state is not None)
    return job


def share_statistics(job: Job) -> None:
    """BatchNorm statistics of the network and of its average become one set for all processes."""
    for network in job.learner.networks.values():
        average_buffers(network, job.world)


def _require_steps(job: Job) -> None:
    """A run that was finished may be started again; one that would end without any result may not."""
    if job.learner.step >= job.total_steps and not job.best:
        raise ValueError(
            f"nothing to train: the run starts at step {job.learner.step} (start_epoch, or the checkpoint) and ends "
            f"at step {job.total_steps} (epochs, max_steps): raise epochs or max_steps"
        )


def capture(job: Job) -> dict[str, Any]:
    """The whole training state as tensors and plain values."""
    learner = job.learner
    average = learner.ema.module
    return {
        "step": learner.step,
        "steps_per_epoch": job.steps_per_epoch,
        "model": learner.model.state_dict(),
        "ema": average.state_dict() if average is not None else None,
        "ema_updates": learner.ema.updates,
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "best": job.best,
        "info": weights_info(job, None).to_dict(),
        "config": to_yaml(job.config),
    }


def restore(job: Job, state: dict[str, Any]) -> None:
    """Continue from `capture`'s state. Random numbers need none: they are functions of seed and step."""
    learner = job.learner
    if state["steps_per_epoch"] != job.steps_per_epoch:
        raise CheckpointError(
            f"the checkpoint has {state['steps_per_epoch']} steps per epoch, this run {job.steps_per_epoch}: resume "
            "with the same data, batch_size x processes, accum_steps and num_samples"
        )
    names = [g.get("param_names") for g in learner.optimizer.param_groups]
    if names != [g.get("param_names") for g in state["optimizer"]["param_groups"]]:
        raise CheckpointError(
            "the checkpoint's optimizer has other parameter groups: resume with the same opt settings"
        )
    learner.model.load_state_dict(state["model"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scaler.load_state_dict(state["scaler"])
    if learner.ema.module is not None:
        if state["ema"] is None:
            raise CheckpointError("the checkpoint has no averaged weights: resume without --ema")
        learner.ema.module.load_state_dict(state["ema"])
        learner.ema.updates = state["ema_updates"]
    learner.step, job.best = state["step"], state["best"]


def _head_size(config: Config, source: Source) -> int:
    found, asked = len(source.class_names), config.data.num_classes
    if asked is not None and asked < found:
        raise ValueError(f"num_classes {asked} is below the {found} classes of the data: leave it out or raise it")
    return asked or found


def _unused_folder(config: Config, world: World) -> Path:
    name = config.run.output_dir or f"runs/{config.run.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(world.share(name))
    if world.is_main and config.run.resume is None and (folder / "checkpoints").exists():
        raise ValueError(f"{folder} holds a run already: go on with --resume auto, or give another --output-dir")
    return folder


def _start_folder(config: Config, folder: Path, world: World) -> None:
    if world.is_main:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        if config.data.data_dir:
            # `validate` of these weights finds the data from anywhere.
            place = str(Path(config.data.data_dir).expanduser().absolute())
            config = config.model_copy(update={"data": config.data.model_copy(update={"data_dir": place})})
        with atomic_write(folder / "config.yaml") as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")
    world.barrier()


def _earlier_state(config: Config, folder: Path, world: World) -> dict[str, Any] | None:
    if config.run.resume is None:
        return None
    log = say if world.is_main else SilentLog().say
    return find_resume(config.run.resume, folder / "checkpoints", world=world, warn=log)


def _network(
    config: Config, source: Source, classes: int, state: dict[str, Any] | None
) -> tuple[InceptionV4, WeightsInfo, list[str]]:
    """The network, with the weights that a run without an earlier `state` starts from, and how they are used."""
    net, given = config.network, config.augmentation.given_preprocessing()
    torch.manual_seed(config.run.seed)
    model = InceptionV4(
        classes, net.in_channels, net.drop_rate, init=net.init, bn_eps=net.bn_eps, bn_momentum=net.bn_momentum
    )
    origin = PRETRAINED if net.pretrained else net.ckpt_path
    how, messages = config.augmentation.preprocessing(), []
    if state is not None:
        how = WeightsInfo.from_dict(state["info"]).preprocessing
    elif origin:
        weights = read_weights(origin)
        report = load_weights(model, weights)
        how = report.info.preprocessing
        messages = [f"start from {origin}", *report.messages, _preprocessing_line(weights, how, given)]
    model.set_grad_checkpointing(net.grad_checkpointing)
    names = tuple(source.class_names)
    info = WeightsInfo(
        num_classes=classes,
        class_names=names if len(names) == classes else None,
        preprocessing=how,
        in_channels=net.in_channels,
        bn_eps=net.bn_eps,
        source=f"inception-v4 {config.run.recipe}",
    )
    return model, info, messages


def _preprocessing_line(weights: Weights, how: Preprocessing, given: dict[str, Any]) -> str:
    """What pictures go through because of the weights, and what was given and differs."""
    usual = "" if weights.described else f", usual for {weights.layout} weights"
    differing = [
        f"{name} {value}" for name, value in given.items() if name != "image_size" and value != getattr(how, name)
    ]
    said = f"; as you said: {', '.join(differing)}" if differing else ""
    return f"pictures are prepared as for the weights ({how}{usual}), at the run's image_size{said}"


def _learner(
    config: Config, model: InceptionV4, accelerator: Accelerator, world: World, steps_per_epoch: int
) -> Learner:
    training, opt, plan = config.training, config.optimizer, config.schedule
    precision = Precision(accelerator, accelerator.amp_dtype(training.amp))
    layout = accelerator.memory_format(training.channels_last)
    model.to(accelerator.device).to(memory_format=layout)
    classes = model.num_classes
    network: nn.Module = model
    if training.sync_bn and world.size > 1:
        network = synchronise_batch_norm(model, accelerator)
    per_step = config.data.batch_size * world.size * opt.accum_steps
    scale = per_step / opt.lr_base_batch if opt.lr_base_batch else 1.0
    lr = opt.lr * scale
    return Learner(
        model=network,
        compute=_callable_form(config, network, accelerator, world),
        optimizer=build_optimizer(network, opt, lr, fused=_fused(config, accelerator)),
        scaler=accelerator.grad_scaler(
            precision.amp_dtype, training.loss_scale, fused_optimizer=training.fused_optimizer
        ),
        rate=LearningRate(
            plan.scheduler, lr, steps_per_epoch, plan.epochs, plan.warmup_epochs, plan.warmup_lr * scale,
            plan.min_lr * scale, plan.decay_epochs, plan.decay_rate, plan.milestones, plan.lr_epoch_stair,
            plan.num_cycles, plan.cycle_decay,
        ),
        criterion=make_criterion(training.loss, training.label_smoothing),
        normalise=Normalise(config.augmentation, layout),
        mix=MixAndErase(config.augmentation, num_classes=classes),
        precision=precision,
        ema=Ema(network, decay=opt.ema_decay, warmup=opt.ema_warmup) if opt.ema else NoEma(),
        accum_steps=opt.accum_steps,
        clip_grad=opt.clip_grad,
        seed=config.run.seed,
        rank=world.rank,
    )  # fmt: skip


def _fused(config: Config, accelerator: Accelerator) -> Any | None:
    """The vendor's optimizer class when it is asked for; asked for and absent is an error."""
    if not config.training.fused_optimizer:
        return None
    fused = accelerator.fused_optimizer(canonical_name(config.optimizer.opt))
    if fused is None:
        raise DeviceError(
            f"fused_optimizer: {accelerator.type} has none for opt {config.optimizer.opt}: leave --fused-optimizer out"
        )
    return fused


def _callable_form(config: Config, network: nn.Module, accelerator: Accelerator, world: World) -> nn.Module:
    """What a step calls: `network`, compiled if asked, and wrapped where several processes share gradients."""
    compute: nn.Module = accelerator.compile(network) if config.training.compile else network
    if world.size == 1:
        return compute
    return share_gradients(
        compute, accelerator, **accelerator.ddp_options(fused_optimizer=config.training.fused_optimizer)
    )


def _open_log(job: Job) -> RunLog:
    tensorboard = job.config.run.tensorboard
    return RunLog(job.folder, total_steps=job.total_steps, tensorboard=tensorboard, resumed_at=job.learner.step)


def _introduce(job: Job, source: Source, held_out: Source, messages: list[str], *, resumed: bool) -> None:
    config, world = job.config, job.world
    per_step = config.data.batch_size * world.size * config.optimizer.accum_steps
    job.log.say(
        f"{config.run.recipe}: {len(source)} training and {len(held_out)} validation pictures, "
        f"{len(source.class_names)} classes, {config.augmentation.image_size} px"
    )
    amp = config.training.amp
    job.log.say(
        f"{job.accelerator.describe()} x {world.size}, {'float32' if amp == 'off' else amp}, "
        f"{per_step} images per step, {job.steps_per_epoch} steps per epoch, {config.optimizer.opt} "
        f"lr {job.learner.rate.lr:g}, {config.schedule.epochs} epochs -> {job.folder}"
    )
    for message in messages:
        job.log.say(message)
    if config.training.compile:
        job.log.say(job.accelerator.compile_notice("compile: the first step"))
    if resumed:
        job.log.say(f"resumed at step {job.learner.step} of {job.total_steps}")
    momentum = config.network.bn_momentum
    if (
        momentum < 0.01
        and job.total_steps * momentum < 3
        and not (config.network.pretrained or config.network.ckpt_path)
    ):
        job.log.say(
            f"bn_momentum {momentum:g} over {job.total_steps} steps leaves BatchNorm's statistics near their start: "
            "validation will look random; use --bn-momentum 0.1 for a short run"
        )


def weights_info(job: Job, result: Evaluation | None) -> WeightsInfo:
    run = job.config.run
    extra: dict[str, Any] = {"recipe": run.recipe, "step": job.learner.step, KEY: record(job.config.data, run.seed)}
    if result is not None:
        extra |= {"top1": result.top1, "top5": result.top5}
    return job.info.replace(extra=extra)
