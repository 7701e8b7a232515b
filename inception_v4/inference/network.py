"""Networks that are ready to run: weights in PyTorch, or an exported file, alone, in its runtime.

An exported file says itself how its pictures are prepared and what its classes are called (`export_description`).
Whoever validates or predicts opens either kind with `open_network` and need not know which one it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from inception_v4.accelerator import Accelerator, select
from inception_v4.accelerator.precision import Precision
from inception_v4.data.normalise import Normalise
from inception_v4.files import parse_json
from inception_v4.inference.factory import open_model
from inception_v4.inference.sessions import RUNTIMES, ExportedFileError, Session
from inception_v4.network.fusion import fuse
from inception_v4.preprocessing import Preprocessing
from inception_v4.weights import Weights, WeightsError, WeightsInfo
from inception_v4.weights.source import local_weights

TORCH, AUTO = "torch", "auto"
"""The runtime of weights files, and the choice between it and what else is installed."""

RUNS_WEIGHTS = ("openvino", "onnx")
"""The runtimes that weights are exported for where they are asked for."""

ELSEWHERE = (".om", ".air", ".mindir")
"""Suffixes of files that run on their own device only."""


@dataclass(frozen=True)
class Signature:
    """What an exported network takes and gives.

    Attributes:
        preprocess: takes uint8 [N, S, S, C] and normalises by itself; else float32 [N, C, S, S], normalised.
        softmax: gives probabilities [N, K], of several classes each one's sigmoid; else logits.
        batch_size: the only N that it takes; None for any.
        device: type of the device that it was compiled for; None for any.
    """

    preprocess: bool = False
    softmax: bool = False
    batch_size: int | None = None
    device: str | None = None


def as_pixels(images: Tensor) -> Tensor:
    """[B, C, S, S] uint8 to [B, S, S, C] uint8, for networks that normalise by themselves."""
    return images.permute(0, 2, 3, 1).contiguous()


@dataclass
class OpenNetwork:
    """A network in evaluation mode, wherever it runs.

    Attributes:
        model: a batch as `prepare` makes it to logits [B, K], or to their logarithm up to a constant per picture.
        info: how to use it.
        accelerator: where it takes batches from.
        engine: what runs it, for people.
        messages: lines for people: what was adapted or assumed.
        signature: of an exported file; None for weights.
        layout: memory format of its input.
        fixed_amp: the precision of weights that run elsewhere than in PyTorch, decided when they were opened.
    """

    model: Callable[[Tensor], Tensor]
    info: WeightsInfo
    accelerator: Accelerator
    engine: str
    messages: list[str] = field(default_factory=list)
    signature: Signature | None = None
    layout: torch.memory_format = torch.contiguous_format
    fixed_amp: str | None = None

    def prepare(self, preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
        """What happens to a batch of uint8 pictures before `model`.

        Raises:
            ExportedFileError: the file is fixed to other preprocessing than asked for.
        """
        if self.signature is not None:
            self._check_fixed(preprocessing, self.signature)
        if self.signature is not None and self.signature.preprocess:
            return as_pixels
        return Normalise(preprocessing, self.layout)

    def precision(self, amp: str) -> Precision:
        """Where and in what type `model` computes.

        Raises:
            DeviceError: the device cannot compute in it.
            ExportedFileError: the type of an exported file was decided when it was written.
        """
        if self.signature is not None and amp != "off":
            raise ExportedFileError(
                f"amp {amp}: {self.info.source} computes in the type it was exported in; use amp off"
            )
        return Precision(self.accelerator, None if self.fixed_amp else self.accelerator.amp_dtype(amp))

    def _check_fixed(self, asked: Preprocessing, signature: Signature) -> None:
        own = self.info.preprocessing
        if asked.image_size != own.image_size:
            raise ExportedFileError(
                f"{self.info.source} was exported for {own.image_size} px, not {asked.image_size}: export again with "
                f"--image-size {asked.image_size}"
            )
        if signature.preprocess and (asked.mean, asked.std) != (own.mean, own.std):
            raise ExportedFileError(f"{self.info.source} normalises by itself: leave out mean and std")


def export_description(info: WeightsInfo, signature: Signature) -> str:
    """The JSON that travels in an exported file: `WeightsInfo`, and the signature as "export"."""
    return json.dumps(info.to_dict() | {"export": asdict(signature)}, ensure_ascii=False)


def is_exported(source: str) -> bool:
    """Whether the name is that of an exported file; else it stands for weights."""
    return any(Path(source).suffix.lower() in row.suffixes for row in RUNTIMES.values())


def runtime_for(source: str, runtime: str | None = None, *, cache: bool = True) -> str:
    """The runtime for a source: the one asked for, if it reads such files, or the one of its suffix; AUTO for weights.

    Args:
        cache: whether weights may be exported into the user's cache; without they run in PyTorch.

    Raises:
        ExportedFileError: no runtime here reads it, or not the one asked for.
    """
    suffix = Path(source).suffix.lower()
    if suffix in ELSEWHERE:
        raise ExportedFileError(
            f"{source} runs on its own device only: run it there, and score the outputs with "
            "`inception-v4 validate --from-outputs FOLDER --labels FILE`"
        )
    fitting = [name for name, row in RUNTIMES.items() if suffix in row.suffixes]
    fitting = fitting or ([AUTO, TORCH, *RUNS_WEIGHTS] if cache else [TORCH])
    if runtime in (None, AUTO):
        return fitting[0]
    if runtime in fitting:
        return str(runtime)
    if runtime in RUNS_WEIGHTS and not cache:
        raise ExportedFileError(
            f"--runtime {runtime} runs weights from the cache, which is not used here: leave out --runtime, and "
            "--no-cache where it was given"
        )
    raise ExportedFileError(f"--runtime {runtime} does not read {source}: use --runtime {' or '.join(fitting)}")


def accelerator_for(runtime: str, device: str) -> Accelerator:
    """Where the batches of a runtime have to be: on the device, or on the host for runtimes that copy by themselves."""
    return select("cpu" if runtime in RUNTIMES and RUNTIMES[runtime].on_host else device)


def open_network(
    source: str | Weights,
    accelerator: Accelerator,
    *,
    runtime: str,
    device: str = "auto",
    num_classes: int | None = None,
    channels_last: bool | None = None,
) -> OpenNetwork:
    """A network from weights or from an exported file.

    Args:
        source: for PyTorch what `open_model` takes; else the name or address of a file.
        accelerator: from `accelerator_for`.
        runtime: from `runtime_for`.
        device: as `--device`, for runtimes that choose by themselves.
        num_classes: must equal the file's when given.
        channels_last: memory format in PyTorch; None is what the device likes.
    """
    if runtime in (TORCH, AUTO):
        opened = open_model(source, num_classes=num_classes)
        layout = accelerator.memory_format(channels_last)
        model = fuse(opened.model).to(accelerator.device).to(memory_format=layout)
        return OpenNetwork(model, opened.info, accelerator, accelerator.describe(), opened.messages, layout=layout)
    assert isinstance(source, str)
    path = Path(local_weights(source))
    if not path.is_file():
        raise FileNotFoundError(f"{source} does not exist: check the path")
    session = RUNTIMES[runtime].open(path, str(accelerator.device) if not RUNTIMES[runtime].on_host else device)
    info, signature, messages = _understand(session, source)
    if num_classes not in (None, info.num_classes):
        raise ExportedFileError(f"{source} has {info.num_classes} classes, not {num_classes}: leave num_classes out")
    if signature.device not in (None, accelerator.type):
        raise ExportedFileError(
            f"{source} was compiled for {signature.device}, not {accelerator.type}: use --device {signature.device}, "
            f"or export with --device {accelerator.type}"
        )
    return OpenNetwork(
        _as_model(session, signature, info.multi_label), info, accelerator, session.engine, messages, signature
    )


def _understand(session: Session, source: str) -> tuple[WeightsInfo, Signature, list[str]]:
    """What the file says about itself or, for another program's export, what its shapes tell."""
    if session.description:
        try:
            values = parse_json(session.description)
            info = WeightsInfo.from_dict(values).replace(source=source)
            return info, Signature(**values.get("export", {})), []
        except (ValueError, TypeError, AttributeError, WeightsError) as error:
            raise ExportedFileError(f"{source}: its description cannot be read ({error}): export it again") from error
    batch, channels, height, width = session.shape if len(session.shape) == 4 else [None] * 4
    if channels is None or height is None or channels not in (1, 3) or height != width or not session.classes:
        raise ExportedFileError(
            f"{source} is no export of this project, and its input {list(session.shape)} is not [N, 3, S, S] with a "
            "fixed S: export it with `inception-v4 export`"
        )
    how = WeightsInfo(preprocessing=Preprocessing(image_size=height)).with_channels(channels).preprocessing
    message = (
        f"{source} does not say how its pictures are prepared; assumed: {how.image_size} px, mean {how.mean}, std "
        f"{how.std}, crop_pct {how.crop_pct}, {how.interpolation}; such settings can be given"
    )
    info = WeightsInfo(num_classes=session.classes, preprocessing=how, in_channels=channels, source=source)
    return info, Signature(batch_size=batch), [message]


def _as_model(session: Session, signature: Signature, multi_label: bool) -> Callable[[Tensor], Tensor]:
    """Any batch to logits, whatever batch and output the file has."""

    def model(images: Tensor) -> Tensor:
        outputs = in_batches(session.run, images, signature.batch_size)
        if not signature.softmax:
            return outputs
        if multi_label:
            return outputs.logit(eps=torch.finfo(outputs.dtype).eps / 2)
        # The softmax of a logarithm of probabilities are the probabilities.
        return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()

    return model


def in_batches(run: Callable[[Tensor], Tensor], images: Tensor, size: int | None) -> Tensor:
    """`run` on batches of exactly `size` pictures, the last one filled up; None: on all of them at once."""
    if size is None:
        return run(images)
    outputs = []
    for chunk in images.split(size):
        filler = chunk.new_zeros((size - len(chunk), *chunk.shape[1:]))
        outputs.append(run(torch.cat([chunk, filler]))[: len(chunk)])
    return torch.cat(outputs)
