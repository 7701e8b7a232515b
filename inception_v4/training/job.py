"""What changes together in a run, and its way into a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml
from torch import nn

from inception_v4.distributed import World, average_buffers
from inception_v4.inference.evaluate import Evaluation
from inception_v4.training.checkpoint import CheckpointError
from inception_v4.training.optim import restore_optimizer, state_kind
from inception_v4.training.schedule import Course
from inception_v4.training.step import Learner
from inception_v4.training.swa import NoWeightMean, WeightMean
from inception_v4.weights import WeightsInfo


@dataclass
class Job:
    """A run under way.

    Attributes:
        learner: what an optimizer step reads or changes.
        info: how the weights are used, and where they come from.
        best: figures of the best validation so far; empty before the first.
        unvalidated: an epoch whose validation was left for later, because the run was asked to stop.
        waited: validations in a row since then.
        skipped: messages about unreadable pictures that this process met.
        swa: the mean of the last epochs' weights.
    """

    learner: Learner
    info: WeightsInfo
    best: dict[str, Any] = field(default_factory=dict)
    unvalidated: int | None = None
    waited: int = 0
    skipped: set[str] = field(default_factory=set)
    swa: WeightMean | NoWeightMean = field(default_factory=NoWeightMean)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network and its averages that can be validated, by the prefix of their figures in a record."""
        return self.learner.networks | self.swa.networks


def capture(job: Job, settings: str) -> dict[str, Any]:
    """The whole training state as tensors and plain values, with the run's `settings` as YAML."""
    learner = job.learner
    course = learner.course
    average = learner.ema.module
    return {
        "step": learner.step,
        "position": {"epoch": course.epoch, "done": course.done, "samples": course.samples},
        "model": learner.model.state_dict(),
        "ema": average.state_dict() if average is not None else None,
        "ema_updates": learner.ema.updates,
        "swa": job.swa.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "best": job.best,
        "unvalidated": job.unvalidated,
        "waited": job.waited,
        "info": weights_info(job).to_dict(),
        "config": settings,
    }


def restore(job: Job, state: dict[str, Any], *, opt: str, best_kept: bool) -> list[str]:
    """Continue from `capture`'s state. Random numbers need none: they are functions of seed and step.

    Args:
        opt: the name of the run's optimizer.
        best_kept: whether the best weights so far are in the run's directory.
    Returns:
        What there is to say about it, in lines for people.
    Raises:
        CheckpointError: the state is of a run with another optimizer, other data, parameter groups or averages.
    """
    learner = job.learner
    _require_same_optimizer(state, opt)
    epoch, done = position_of(state, learner.course)
    names = [g.get("param_names") for g in learner.optimizer.param_groups]
    if names != [g.get("param_names") for g in state["optimizer"]["param_groups"]]:
        raise CheckpointError(
            "the checkpoint's optimizer has other parameter groups: resume with the same opt settings"
        )
    learner.model.load_state_dict(state["model"])
    restore_optimizer(learner.optimizer, state["optimizer"])
    learner.scaler.load_state_dict(state["scaler"])
    if learner.ema.module is not None:
        if state["ema"] is None:
            raise CheckpointError("the checkpoint has no averaged weights: resume without --ema")
        learner.ema.module.load_state_dict(state["ema"])
        learner.ema.updates = state["ema_updates"]
    job.swa.load_state_dict(state.get("swa"), learner.model, epoch=epoch)
    learner.course.epoch, learner.course.done, learner.course.step = epoch, done, state["step"]
    job.best, job.unvalidated, job.waited = state["best"], state.get("unvalidated"), state.get("waited", 0)
    return [] if best_kept or not job.best else _forget_best(job)


def _require_same_optimizer(state: dict[str, Any], opt: str) -> None:
    """A state of another kind would lack what a step needs, or be taken for something else."""
    before = ((yaml.safe_load(state.get("config", "")) or {}).get("optimizer") or {}).get("opt", opt)
    if state_kind(before) != state_kind(opt):
        raise CheckpointError(
            f"the checkpoint's optimizer is {before}, this run's {opt}: resume with --opt {before}, or start a new run "
            "from its weights (--ckpt-path RUN/last.safetensors)"
        )


def _forget_best(job: Job) -> list[str]:
    """The next validation counts as the first one, which is said; a run that is over validates its end again."""
    best, course = job.best, job.learner.course
    job.best, job.waited = {}, 0
    if course.finished and job.unvalidated is None:
        job.unvalidated = course.epoch - (course.done == 0)
    return [
        f"the best weights so far (top-1 {best['top1']:.2f} %, epoch {best['epoch'] + 1}) are not in this run's "
        "directory: the next validation writes best.safetensors anew"
    ]


def position_of(state: dict[str, Any], course: Course) -> tuple[int, int]:
    """Epochs done and samples of the next one, of a checkpoint's `state`, for a run whose epochs are `course`'s.

    Formats 1 and 2 counted steps, not samples: the end of an epoch is the same for all batches, and within one the
    steps have to be as long as they were.

    Raises:
        CheckpointError: there is no such position in this run's epochs.
    """
    if "position" in state:
        position = state["position"]
        if position["samples"] != course.samples:
            raise CheckpointError(
                f"the checkpoint's epochs have {position['samples']} samples, this run's {course.samples}: resume with "
                "the same data, val_fraction and num_samples"
            )
        return position["epoch"], position["done"]
    epoch, steps = divmod(state["step"], state["steps_per_epoch"])
    if steps and state["steps_per_epoch"] != course.per_epoch:
        raise CheckpointError(
            f"the checkpoint, of format {state['version']}, is {steps} of {state['steps_per_epoch']} steps into an "
            f"epoch, which has {course.per_epoch} here: resume with the same data, batch_size x processes and "
            "accum_steps, or from the end of an epoch"
        )
    return epoch, steps * course.batch * course.accum_steps


def require_steps(job: Job) -> None:
    """A run that was finished may be started again; one that would end without any result may not."""
    course = job.learner.course
    if course.finished and not job.best and job.unvalidated is None:
        raise ValueError(
            f"nothing to train: the run starts at step {course.step} (start_epoch, or the checkpoint) and ends "
            f"at step {course.total} (epochs, max_steps): raise epochs or max_steps"
        )


def share_statistics(job: Job, world: World) -> None:
    """BatchNorm statistics of the network and of its average become one set for all processes."""
    for network in job.learner.networks.values():
        average_buffers(network, world)


def weights_info(job: Job, result: Evaluation | None = None) -> WeightsInfo:
    """What is written beside the weights as they are now, with the figures of their validation."""
    extra: dict[str, Any] = {"step": job.learner.step}
    if result is not None:
        extra |= {"top1": result.top1, "top5": result.top5, **(result.several.figures if result.several else {})}
    return job.info.replace(extra=job.info.extra | extra)
