"""The parts of a run, each built from its own section of the settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inception_v4.accelerator import Accelerator, DeviceError
from inception_v4.accelerator.precision import Precision
from inception_v4.data.class_weights import class_weights
from inception_v4.data.labelled import Source
from inception_v4.data.loader import Batch, EvalLoader
from inception_v4.data.normalise import Normalise
from inception_v4.distributed import World, share_gradients, synchronise_batch_norm
from inception_v4.inference.evaluate import Evaluation, evaluate
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.schema import Augmentation, Data, Network, Optimizer, Training
from inception_v4.training.optim import canonical_name
from inception_v4.training.smallest import check_smallest
from inception_v4.weights import Weights, WeightsInfo, load_weights, read_weights
from inception_v4.weights.layouts.epsilon import moved, shift_epsilon
from inception_v4.weights.source import PRETRAINED


@dataclass
class Start:
    """A network on the host, how its weights want pictures prepared, and lines for people."""

    model: InceptionV4
    preprocessing: Preprocessing
    messages: list[str] = field(default_factory=list)


def head_size(data: Data, source: Source) -> int:
    """Classes of the network: those of the data, or more where more were asked for."""
    found, asked = len(source.class_names), data.num_classes
    if asked is not None and asked < found:
        raise ValueError(f"num_classes {asked} is below the {found} classes of the data: leave it out or raise it")
    return asked or found


def check_batches(
    parts: Iterable[int], data: Data, *, image_size: int, stem: str, training: Training, world: World
) -> None:
    """Raises ValueError where the pictures of an epoch, or of its rest, make a batch too small for BatchNorm."""
    if training.sync_bn and world.size > 1:  # statistics are over the pictures of all processes
        return
    for pictures in parts:
        check_smallest(
            pictures, data.batch_size, world.size, drop_last=data.drop_last, image_size=image_size, stem=stem
        )


def start_network(
    network: Network,
    classes: int,
    *,
    seed: int,
    state: dict[str, Any] | None,
    usual: Preprocessing,
    given: dict[str, Any],
) -> Start:
    """The network, with the weights that a run without an earlier `state` starts from.

    Args:
        state: of an earlier run.
        usual: how pictures are prepared where neither `state` nor weights say it.
        given: the part of it that was asked for.
    """
    if state is not None:
        info = WeightsInfo.from_dict(state["info"])
        model = _network(network, classes, seed, _stem(network, info, of_run=True))
        return Start(model, info.preprocessing, turned_otherwise(info.preprocessing, given))
    origin = PRETRAINED if network.pretrained else network.ckpt_path
    if not origin:
        return Start(_network(network, classes, seed, network.stem), usual)
    weights = _with_epsilon(read_weights(origin), network.bn_eps)
    stem = _stem(network, weights.info)
    model = _network(network, classes, seed, stem)
    report = load_weights(model, weights.with_stem(stem))
    how = report.info.preprocessing
    learnt = weights.info.stem
    said = [f"stem {stem}, as you said: these weights were trained with {learnt}"] if stem != learnt else []
    line = _preprocessing_line(weights, how, given)
    return Start(model, how, [f"start from {origin}", *report.messages, *said, line])


def _network(network: Network, classes: int, seed: int, stem: str) -> InceptionV4:
    torch.manual_seed(seed)
    model = InceptionV4(
        classes,
        network.in_channels,
        network.drop_rate,
        init=network.init,
        bn_eps=network.bn_eps,
        bn_momentum=network.bn_momentum,
        stem=stem,
    )
    model.set_grad_checkpointing(network.grad_checkpointing)
    return model


def _stem(network: Network, info: WeightsInfo, *, of_run: bool = False) -> str:
    """That of the weights unless another was given, which a run that goes on cannot have."""
    if "stem" not in network.model_fields_set:
        return info.stem
    if of_run and network.stem != info.stem:
        raise ValueError(f"stem {network.stem}: the run that goes on has {info.stem}: leave it out")
    return network.stem


def _with_epsilon(weights: Weights, wanted: float) -> Weights:
    """Weights of the same function for a network with that epsilon in BatchNorm: the ModelZoo's recipes have one."""
    held = weights.info.bn_eps
    if math.isclose(held, wanted, rel_tol=1e-6):
        return weights
    return replace(
        weights, state=shift_epsilon(weights.state, held, wanted), info=weights.info.replace(bn_eps=wanted),
        notes=[*weights.notes, moved(held, wanted)],
    )  # fmt: skip


def turned_otherwise(before: Preprocessing, given: Mapping[str, Any]) -> list[str]:
    """A line for people where a run's pictures were not turned as those to come will be."""
    if given.get("exif_rotation", before.exif_rotation) == before.exif_rotation:
        return []
    was, now = ("on", "off") if before.exif_rotation else ("off", "on")
    return [
        f"exif_rotation is {now}, and was {was}: to go on exactly, leave it out or add "
        f"--{'' if before.exif_rotation else 'no-'}exif-rotation"
    ]


def _preprocessing_line(weights: Weights, how: Preprocessing, given: Mapping[str, Any]) -> str:
    """What pictures go through because of the weights, and what was given and differs."""
    usual = "" if weights.described else f", usual for {weights.layout} weights"
    differing = [
        f"{name} {value}" for name, value in given.items() if name != "image_size" and value != getattr(how, name)
    ]
    said = f"; as you said: {', '.join(differing)}" if differing else ""
    return f"pictures are prepared as for the weights ({how}{usual}), at the run's image_size{said}"


def weights_of_classes(choice: str | None, source: Source, classes: int, device: torch.device) -> Tensor | None:
    """Weights [K] of the classes in the loss; 1 for outputs that the data has no class for. None: all the same."""
    if choice is None:
        return None
    weights = class_weights(choice, source.counts(), source.class_names)
    return torch.tensor(weights + [1.0] * (classes - len(weights)), device=device)


def place(model: InceptionV4, training: Training, accelerator: Accelerator, world: World) -> nn.Module:
    """The network on its device, in its memory format, with the BatchNorm that was asked for."""
    model.to(accelerator.device).to(memory_format=accelerator.memory_format(training.channels_last))
    return synchronise_batch_norm(model, accelerator) if training.sync_bn and world.size > 1 else model


def callable_form(network: nn.Module, training: Training, accelerator: Accelerator, world: World) -> nn.Module:
    """What a step calls: `network`, compiled if asked, and wrapped where several processes share gradients."""
    compute: nn.Module = accelerator.compile(network) if training.compile else network
    if world.size == 1:
        return compute
    return share_gradients(compute, accelerator, **accelerator.ddp_options(fused_optimizer=training.fused_optimizer))


def vendor_optimizer(opt: Optimizer, training: Training, accelerator: Accelerator) -> Any | None:
    """The vendor's optimizer class when it is asked for; asked for and absent is an error."""
    if not training.fused_optimizer:
        return None
    fused = accelerator.fused_optimizer(canonical_name(opt.opt))
    if fused is None:
        raise DeviceError(
            f"fused_optimizer: {accelerator.type} has none for opt {opt.opt}: leave --fused-optimizer out"
        )
    return fused


class HeldOut(Protocol):
    """Batches of all pictures of `source`, from the start each time."""

    source: Source

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass
class Validator:
    """The validation of a run: the same pictures, batches and precision each time."""

    loader: HeldOut
    normalise: Normalise
    precision: Precision
    world: World
    batch_size: int

    def __call__(self, model: nn.Module, goes_on: Callable[[], bool]) -> Evaluation:
        """Figures of `model`, which comes back in the mode that it was in.

        `goes_on` is asked after every batch; this process sees no more of them once it says no.
        """
        was_training = model.training
        model.eval()
        try:
            return evaluate(
                model, self._batches(goes_on), prepare=self.normalise, precision=self.precision, world=self.world,
                batch_size=self.batch_size,
            )  # fmt: skip
        finally:
            model.train(was_training)

    def _batches(self, goes_on: Callable[[], bool]) -> Iterator[Batch]:
        for batch in self.loader:
            yield batch
            if not goes_on():
                return


def build_validator(
    source: Source, data: Data, *, augmentation: Augmentation, normalise: Normalise, precision: Precision, world: World
) -> Validator:
    """Figures on the pictures of `source`, prepared as the evaluation side of `augmentation` says."""
    batch_size = data.val_batch_size or data.batch_size
    loader = EvalLoader(
        source, augmentation.preprocessing(), batch_size=batch_size, workers=data.workers, world=world,
        on_corrupt=data.on_corrupt, pin_memory=precision.accelerator.pin_memory,
    )  # fmt: skip
    return Validator(loader, normalise, precision, world, batch_size)
