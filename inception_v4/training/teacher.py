"""A network that has learned already and whose answers a run's network learns too: distillation.

Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network".
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inception_v4.accelerator.precision import Precision
from inception_v4.distributed import World
from inception_v4.files import sha256_of
from inception_v4.inference.factory import open_model
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.addresses import is_address
from inception_v4.settings.schema import Training
from inception_v4.weights import WeightsInfo
from inception_v4.weights.files.containers import read
from inception_v4.weights.source import PRETRAINED, WEIGHTS_SUFFIXES, locate


@dataclass
class Teacher:
    """What the answers of a network that has learned add to the loss. It is in no checkpoint.

    Attributes:
        network: in evaluation mode, without gradients, on the run's device.
        alpha: share of the teacher in the loss.
        temperature: by which both networks' logits are divided.
        scale, shift: [1, C, 1, 1], from the student's normalised input to the teacher's; None: it is the same.
        side: of its input in pixels, where it takes no other; the student's input is resized to it.
        record: what it is and the SHA-256 of its weights, for provenance.json.
    """

    network: nn.Module
    alpha: float
    temperature: float
    scale: Tensor | None = None
    shift: Tensor | None = None
    side: int | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def guide(self, loss: Tensor, logits: Tensor, inputs: Tensor, precision: Precision) -> Tensor:
        """(1 - alpha) loss + alpha T^2 KL(teacher || student), the divergence a mean over pictures.

        T^2 keeps the size of the gradients whatever the temperature. `logits` [B, K] are the student's, float32, of
        `inputs` [B, C, S, S].
        """
        answers = self.answers(inputs, precision) / self.temperature
        own = F.log_softmax(logits / self.temperature, dim=1)
        divergence = F.kl_div(own, F.log_softmax(answers, dim=1), reduction="batchmean", log_target=True)
        return (1 - self.alpha) * loss + self.alpha * self.temperature**2 * divergence

    @torch.no_grad()
    def answers(self, inputs: Tensor, precision: Precision) -> Tensor:
        """The teacher's logits [B, K], float32, for pictures that are normalised for the student."""
        if self.scale is not None and self.shift is not None:
            inputs = inputs * self.scale + self.shift
        if self.side is not None and inputs.shape[-1] != self.side:
            inputs = F.interpolate(inputs, size=(self.side, self.side), mode="bilinear", antialias=True)
        with precision.autocast():
            return self.network(inputs).float()


class NoTeacher:
    """The off state."""

    record: dict[str, Any] | None = None

    def guide(self, loss: Tensor, logits: Tensor, inputs: Tensor, precision: Precision) -> Tensor:
        return loss


def open_teacher(
    training: Training, student: WeightsInfo, precision: Precision, *, world: World, layout: torch.memory_format
) -> Teacher | NoTeacher:
    """The teacher that the settings name, for a student of which `student` is known; or the off state.

    Raises:
        ValueError, FileNotFoundError: no such network or weights, or not for the student's classes and channels.
    """
    name = training.teacher
    if name is None:
        return NoTeacher()
    with world.main_first():  # one of them downloads
        found = _own(name) if _is_own(name, training.teacher_ckpt) else _from_timm(name, training.teacher_ckpt, student)
    _check_classes(name, found.info, student)
    device = precision.accelerator.device
    network = found.network.eval().requires_grad_(False).to(device).to(memory_format=layout)
    scale, shift = between(student.preprocessing, found.info.preprocessing)
    same = torch.equal(scale, torch.ones_like(scale)) and not shift.any()
    record = {"name": name, "weights": str(found.path), "sha256": sha256_of(found.path)}
    return Teacher(
        network, training.distill_alpha, training.distill_t, side=found.side, record=record,
        **({} if same else {"scale": scale.to(device), "shift": shift.to(device)}),
    )  # fmt: skip


def between(student: Preprocessing, teacher: Preprocessing) -> tuple[Tensor, Tensor]:
    """Scale and shift [1, C, 1, 1] that make the teacher's input of pictures normalised for the student."""
    means, stds = ((torch.tensor(a), torch.tensor(b)) for a, b in
                   ((student.mean, teacher.mean), (student.std, teacher.std)))  # fmt: skip
    shape = (1, -1, 1, 1)
    return (stds[0] / stds[1]).view(shape), ((means[0] - means[1]) / stds[1]).view(shape)


@dataclass
class _Found:
    network: nn.Module
    info: WeightsInfo
    path: Path
    side: int | None = None


def _is_own(name: str, ckpt: str | None) -> bool:
    """Whether it names weights of this network, and not a network of timm's."""
    as_file = name.endswith(WEIGHTS_SUFFIXES) or Path(name).expanduser().exists() or is_address(name)
    return ckpt is None and (as_file or name == PRETRAINED)


def _own(name: str) -> _Found:
    opened = open_model(name)
    return _Found(opened.model, opened.info, locate(name).path)


def _from_timm(name: str, ckpt: str | None, student: WeightsInfo) -> _Found:
    """A network of timm's with the weights in `ckpt`, or those that timm has for it."""
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f"teacher {name!r} is neither a file or run directory nor a network of timm's: "
            f"did you mean {' or '.join(near) or 'another one (timm.list_models())'}?"
        )
    config: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if not ckpt and not (config and config.hf_hub_id):
        raise ValueError(f"teacher {name}: timm has no weights for it: give --teacher-ckpt FILE")
    path = locate(ckpt or f"hf-hub:{config.hf_hub_id}").path
    raw = read(path)
    state = raw.state or raw.ema or {}
    head = config.classifier if config and isinstance(config.classifier, str) else None
    outputs = state.get(f"{head}.weight")
    classes = student.num_classes if outputs is None else len(outputs)
    overlay = {"state_dict": state, "num_classes": classes}
    try:
        network = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, in_chans=student.in_channels
        )
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"teacher {name}: {path} has no weights of this network ({reason})") from error
    how: Any = network.pretrained_cfg
    usual = Preprocessing(mean=how["mean"], std=how["std"])
    info = WeightsInfo(preprocessing=usual).with_channels(student.in_channels).replace(num_classes=classes)
    return _Found(network, info, path, how["input_size"][-1] if how.get("fixed_input_size") else None)


def _check_classes(name: str, teacher: WeightsInfo, student: WeightsInfo) -> None:
    if teacher.multi_label or student.multi_label:
        whose = "the data's" if student.multi_label else "its own"
        raise ValueError(
            f"teacher {name}: softmax answers are compared, and {whose} pictures have several classes: leave it out"
        )
    if teacher.in_channels != student.in_channels:
        raise ValueError(
            f"teacher {name} takes {teacher.in_channels} channels and the network {student.in_channels}: give one of "
            f"as many, or --in-channels {teacher.in_channels}"
        )
    if teacher.num_classes != student.num_classes:
        raise ValueError(
            f"teacher {name} has {teacher.num_classes} classes and the data {student.num_classes}: give a teacher that "
            "was trained on these classes (a run directory, or --teacher-ckpt FILE)"
        )
    names = teacher.class_names, student.class_names
    if None not in names and names[0] != names[1]:
        k = next(k for k, (a, b) in enumerate(zip(*names, strict=True)) if a != b)  # type: ignore[arg-type]
        raise ValueError(
            f"teacher {name} has other classes than the data: number {k} is {names[0][k]!r} and {names[1][k]!r}: give "  # type: ignore[index]
            "a teacher of the same classes in the same order"
        )
