"""Weights from any layout to any other, and proof that they are the same network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from inception_v4.console import progress, track
from inception_v4.files import publish, staged
from inception_v4.network.model import InceptionV4
from inception_v4.weights import Weights, WeightsError, WeightsInfo, load_weights, read_weights
from inception_v4.weights.compare import identical, largest_difference
from inception_v4.weights.loading import Classes, check_fit, fit_background, not_finite
from inception_v4.weights.names import preview
from inception_v4.weights.source import sidecar
from inception_v4.weights.training import to_mindspore
from inception_v4.weights.writing import check_suffix, layout_for, storage_type, write_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

_WITH_BACKGROUND = ("cadene", "tf-slim")
"""Layouts whose usual weights have TensorFlow's background class; `auto` keeps it there."""

_RANDOM_PICTURES = 2
_AT_A_TIME = 16
_ROUNDING = {None: 1e-6, "fp32": 1e-6, "fp16": 2e-3, "bf16": 2e-2}
"""Largest difference of a kernel, relative to its largest value, that storing it in a type explains."""

_OUTPUTS = {None: 1e-4, "fp32": 1e-4, "fp16": 5e-2, "bf16": 0.5}
"""The same for logits."""

_WEAK = 1e-3
"""Below this share of the largest logit, two pictures' logits count as the same."""


class ConvertOptions(TypedDict, total=False):
    """Further choices of a conversion.

    Attributes:
        classes: of 1001-class weights, `drop-background` drops class 0, `keep` keeps it; `auto` keeps it only in the
            layouts that usually have it.
        ema: take the moving average of the weights; by default only where it is in a TensorFlow checkpoint.
        dtype: `fp32`, `fp16` or `bf16`; by default the tensors' own.
        with_optimizer: carry the state of Momentum or RMSProp to a MindSpore layout.
    """

    classes: Classes
    ema: bool | None
    dtype: str | None
    with_optimizer: bool


@dataclass
class ConversionReport:
    """What a conversion did.

    Attributes:
        source, destination: as they were called.
        layouts: of the source and of the destination.
        weights: what was read, with the classes that were written; its `notes` and `dropped` say what became of it.
        changed: lines for people: what was changed on the way out.
        tensors: how many tensors of the network the written file has.
        checks: lines of the verification.
        passed: False when a check found a difference that rounding does not explain.
    """

    source: str
    destination: Path
    layouts: tuple[str, str]
    weights: Weights
    changed: list[str] = field(default_factory=list)
    tensors: int = 0
    checks: list[str] = field(default_factory=list)
    passed: bool = True

    def lines(self) -> list[str]:
        """The report for people."""
        weights, info = self.weights, self.weights.info
        origin = "" if weights.described else f" (usual for {self.layouts[0]}: the file says nothing)"
        outcome = f"failed: {self.destination} would not hold the same network, so it was not kept"
        if self.passed:
            outcome = (
                f"wrote {self.destination}: {self.layouts[1]}, {info.num_classes} classes, {self.tensors} tensors, "
                f"{self.destination.stat().st_size / 1e6:.1f} MB"
            )
        return [
            f"read {self.source}: {self.layouts[0]}, {weights.tensors} tensors, {weights.parameters:,} parameters",
            *(f"changed: {line}" for line in [*weights.notes, *self.changed]),
            *(f"dropped: {line}" for line in weights.dropped),
            f"preprocessing: {info.preprocessing}{origin}",
            *(f"check: {line}" for line in self.checks),
            outcome,
        ]


def convert_weights(
    source: str | Path,
    destination: str | Path,
    *,
    to: str | None = None,
    verify: bool | Sequence[str | Path] = False,
    **options: Unpack[ConvertOptions],
) -> ConversionReport:
    """Read weights of any layout and write them in another; the file is read back and compared before it is kept.

    Args:
        source: what `read_weights` takes.
        destination: file to write, whole and verified or not at all; its suffix says the layout unless `to` does.
        to: a key of `LAYOUTS`.
        verify: also compare the outputs of both networks on random pictures, and on the pictures given here.
        options: see `ConvertOptions`.

    Raises:
        FileNotFoundError, WeightsError: as `read_weights`; or the layout, suffix, type or optimizer do not go together.
    """
    destination = Path(destination)
    layout, dtype = to or layout_for(destination), options.get("dtype")
    check_suffix(destination, layout)
    if destination.exists() and Path(source).exists() and destination.samefile(source):
        raise WeightsError(f"{destination} is both source and destination: name another destination")
    weights = _read(source, layout, options)
    report = ConversionReport(str(source), destination, (weights.layout, layout), weights)
    training = to_mindspore(weights, layout, report.changed) if options.get("with_optimizer") else None
    with staged(destination.absolute()) as folder:
        path = folder / destination.name
        report.changed += write_weights(weights, path, layout=layout, dtype=dtype, training=training)
        _check_tensors(report, written := _read_back(path, destination), dtype)
        if verify is not False:
            _check_outputs(report, written, [] if verify is True else verify, dtype)
        if report.passed:
            described_beside = sidecar(path).exists()
            publish(folder, destination)
            if not described_beside:
                sidecar(destination).unlink(missing_ok=True)  # it would speak about the file that was replaced
    return report


def _read_back(path: Path, destination: Path) -> Weights:
    """The file that is about to be called `destination`; its errors say that name."""
    try:
        return read_weights(path)
    except WeightsError as error:
        raise WeightsError(str(error).replace(str(path), str(destination))) from error


def _read(source: str | Path, layout: str, options: ConvertOptions) -> Weights:
    """The weights, complete and with the classes that are to be written."""
    ema = options.get("ema")
    if ema and options.get("with_optimizer"):
        raise WeightsError(
            "the optimizer state belongs to the weights, not to their moving average: choose one of them"
        )
    weights = read_weights(source, ema=ema)
    wanted = None if layout in _WITH_BACKGROUND else 1000
    classes = options.get("classes", "auto")
    weights = fit_background(weights, classes, None if classes == "keep" else wanted)
    with torch.device("meta"):
        network = InceptionV4(weights.info.num_classes, weights.info.in_channels)
    check_fit(weights.state, network.state_dict())
    return weights


def _check_tensors(report: ConversionReport, written: Weights, dtype: str | None) -> None:
    """Compare what was meant with what the file holds: bit by bit, or by function where the layout needs it."""
    report.tensors = written.tensors
    same, total = identical(report.weights.state, written.state, storage_type(dtype))
    line = f"read back: {written.tensors} tensors, none missing, none unmatched; {same} of {total} identical"
    if same < total:
        difference = largest_difference(report.weights, written)
        line += f", with BatchNorm folded in all agree to {difference:.1e} of the largest value"
        report.passed &= difference <= _ROUNDING[dtype]
    report.checks.append(line)
    if bad := not_finite(report.weights.state):
        report.checks.append(f"NaN or infinity in {preview(bad)}: carried over as they are, but of no use")


def _check_outputs(
    report: ConversionReport, written: Weights, pictures: Sequence[str | Path], dtype: str | None
) -> None:
    """Compare the logits of both networks on random pictures and on the given ones."""
    batches = _pictures(report.weights.info, pictures)
    passes = 2 * sum(len(batch.split(_AT_A_TIME)) for batch in batches.values())
    with progress("comparing outputs", passes) as count_on:
        before, after = (_logits(weights, list(batches.values()), count_on) for weights in (report.weights, written))
    for name, expected, actual in zip(batches, before, after, strict=True):
        difference, top = float((expected - actual).abs().max()), float(expected.abs().max())
        signal = float((expected[0] - expected[-1]).abs().max())
        agree = int((expected.argmax(1) == actual.argmax(1)).sum())
        line = (
            f"{len(expected)} {name}: logits differ by at most {difference:.1e} (largest {top:.2g}), "
            f"same first class on {agree}"
        )
        if len(expected) > 1 and signal < _WEAK * top:
            line += f"; the pictures' own logits differ by only {signal:.1e}, so this shows little"
        report.checks.append(line)
        report.passed &= difference <= _OUTPUTS[dtype] * top


def _pictures(info: WeightsInfo, files: Sequence[str | Path]) -> dict[str, Tensor]:
    """Normalised batches [B, C, S, S] by name."""
    # Only here: torchvision takes longer to start than a conversion.
    from inception_v4.data.normalise import Normalise
    from inception_v4.data.pictures import Decoding, read_picture
    from inception_v4.data.views import eval_transform

    how = info.preprocessing
    if files and info.in_channels not in (1, 3):
        raise WeightsError(f"pictures have 1 or 3 channels, the network {info.in_channels}: verify without pictures")
    size = (_RANDOM_PICTURES, info.in_channels, how.image_size, how.image_size)
    batches = {"random pictures": torch.randint(256, size, generator=torch.Generator().manual_seed(0)).byte()}
    if files:
        shrink, reading = eval_transform(how), Decoding(how.exif_rotation)
        batches["given pictures"] = torch.stack(
            [shrink(read_picture(file, reading)) for file in track(files, "reading pictures")]
        )
    normalise = Normalise(how)
    return {name: normalise(batch) for name, batch in batches.items()}


def _logits(weights: Weights, batches: list[Tensor], count_on: Callable[[], None]) -> list[Tensor]:
    """[B, classes] of each batch, on the CPU in float32; calls `count_on` after every pass."""
    info = weights.info
    model = InceptionV4(info.num_classes, info.in_channels, bn_eps=info.bn_eps, stem=info.stem).eval()
    load_weights(model, weights, classes="keep", head="load", check_finite=False)

    def run(part: Tensor) -> Tensor:
        logits = model(part)
        count_on()
        return logits

    with torch.inference_mode():
        return [torch.cat([run(part) for part in batch.split(_AT_A_TIME)]) for batch in batches]
