"""Weights to files for other runtimes, each compared with the network in PyTorch before it takes its name."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from inception_v4.console import progress
from inception_v4.data.normalise import Normalise
from inception_v4.export.formats import FORMATS, Format, atc_for, companions
from inception_v4.export.plan import Plan, calibration_pictures
from inception_v4.export.target import OPSETS, ExportError, Target
from inception_v4.files import publish, staged
from inception_v4.inference.agreement import check_pictures
from inception_v4.inference.factory import open_model
from inception_v4.inference.network import Signature, in_batches
from inception_v4.settings.addresses import is_address
from inception_v4.weights import read_weights
from inception_v4.weights.class_names import class_names_of
from inception_v4.weights.record import probabilities_of
from inception_v4.weights.source import Located, locate

__all__ = ["ExportError", "ExportReport", "Target", "export_model"]

TOLERANCE = 1e-4
"""Largest difference of an output, as a share of the largest output."""

AGREEMENT = 0.9
"""Least share of pictures that an 8-bit file has to call as the network does."""

_SLOW = ("aoti", "mindir", "air")
"""Formats that take minutes to write; the others take less than one. No exporter says how far it is."""

_WEAK = 1e-3
"""Below this share of the largest output, the pictures' own differences are too small to compare networks by."""


@dataclass
class ExportReport:
    """What an export did.

    Attributes:
        summary: line for people: what the file takes and gives.
        files: what was written, the exported file first; empty when the comparison failed.
        messages: lines for people: what was adapted on the way in.
        checks: lines of the comparison.
        passed: False when the file does not compute what the network computes.
    """

    summary: str
    files: list[Path] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    passed: bool = True

    def lines(self) -> list[str]:
        """The report for people."""
        written = [f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)" for path in self.files]
        nothing = [] if self.passed else ["failed: the exported file computes something else, so it was not kept"]
        return [*self.messages, self.summary, *(f"check: {line}" for line in self.checks), *written, *nothing]


def export_model(source: str | Path | Located, output: str | Path, target: Target | None = None) -> ExportReport:
    """Write the network of a weights file for another runtime.

    Args:
        source: a weights file, a run directory, a hub name, or `pretrained`; or what `locate` has found of it.
        output: the file to write, whole or not at all.
        target: format and options; default: the format that the suffix stands for.

    Raises:
        ExportError: options that contradict each other or the weights, or a file that comes with the output and would
            replace another one.
        RuntimeUnavailable, MindSporeError, AtcError: what the format needs is not installed, or failed.
    """
    output, target = Path(output), target or Target()
    row = _row(target, output)
    row.needs(target)
    located = source if isinstance(source, Located) else locate(source)
    _keep_others(row, output, target, located.path)
    with progress(f"reading {located.origin}"):
        plan = _plan(located, row, target)
    report = ExportReport(_summary(plan, output), messages=plan.messages)
    with staged(output.absolute()) as folder:
        path = folder / output.name
        usual = "minutes" if row in [FORMATS[name] for name in _SLOW] else "up to a minute"
        with progress(f"writing {output.name} ({usual})"):
            row.write(plan, path)
        if target.check:
            with progress("comparing it with PyTorch (some seconds)"):
                _check(plan, row, path, report)
        if report.passed:
            try:
                row.finish(plan, path)
            finally:
                report.files = publish(folder, output)
    return report


def intention(source: str, output: str | Path, target: Target) -> str:
    """What an export would do, for people: the command line of ATC for `om`, else a line of what was asked for.

    Raises:
        ExportError: as `export_model`, for what the options alone show.
    """
    row = _row(target, output)
    if not is_address(str(output)):
        _keep_others(row, Path(output), target, Path(source))
    if row is FORMATS["om"]:
        row.needs(target)
        assert target.om is not None
        size = target.image_size or read_weights(source).info.preprocessing.image_size
        file = Path(output).name if is_address(str(output)) else output  # it is made here, and goes there
        return shlex.join(atc_for(Path(file), target.om, size))
    name = next(name for name, known in FORMATS.items() if known is row)
    asked = {
        "image_size": target.image_size, "num_classes": target.num_classes, "batch_size": target.batch_size,
        "preprocess": target.preprocess or None, "softmax": target.softmax or None,
    }  # fmt: skip
    said = ", ".join(f"{setting} {value}" for setting, value in asked.items() if value is not None)
    return f"{source} -> {output}: format {name}, {said or 'everything else as the weights have it'}"


def _row(target: Target, output: str | Path) -> Format:
    """The row for a target; refuses a suffix that the format's programs would not read, and options it cannot have."""
    by_suffix = {row.suffix: name for name, row in reversed(FORMATS.items())}
    suffix = Path(output).suffix
    name = target.format or by_suffix.get(suffix)
    if name not in FORMATS:
        raise ExportError(f"{output}: {name or suffix!r} is no format: give --format {'|'.join(FORMATS)}")
    row = FORMATS[name]
    if suffix != row.suffix:
        raise ExportError(f"{output}: files of the format {name} end in {row.suffix}")
    if (target.preprocess or target.softmax) and not row.takes_pictures:
        raise ExportError(
            f"{name} takes normalised images and gives logits: leave out --with-preprocess and --with-softmax"
            + (" (--aipp normalises)" if name == "om" else "")
        )
    if target.om and name != "om":
        raise ExportError(f"a chip ({target.om.soc_version}) is for the format om, not {name}: leave it out")
    if target.calibrate and name not in ("onnx", "openvino"):
        raise ExportError(f"--int8 is for the formats onnx and openvino, not {name}: leave it out")
    if target.opset not in OPSETS:
        raise ExportError(f"opset {target.opset} is not supported: give {OPSETS[0]} to {OPSETS[-1]}")
    return row


def _keep_others(row: Format, output: Path, target: Target, source: Path) -> None:
    """What comes with the output replaces what came with an earlier one, and nothing else."""
    for path in filter(Path.exists, companions(row, output, target)):
        is_source = source.exists() and path.samefile(source)
        if is_source or not output.exists():
            what = "the weights" if is_source else "a file of something else"
            raise ExportError(
                f"{output} comes with {path.name}, which would replace {what}: give another output name, or move that "
                "file away"
            )


def _plan(source: Located, row: Format, target: Target) -> Plan:
    opened = open_model(source, num_classes=target.num_classes)
    how = opened.info.preprocessing.replace(image_size=target.image_size)
    origin = Path(opened.info.source)
    info = opened.info.replace(
        class_names=class_names_of(opened.info), preprocessing=how,
        source=origin.name if origin.exists() else opened.info.source,  # the folders are nobody's business
    )  # fmt: skip
    if target.om and info.in_channels != 3:
        raise ExportError(f"om is for pictures with 3 channels, these weights have {info.in_channels}: export onnx")
    batch = target.om.batch_size if target.om else target.batch_size or row.usual_batch
    device = target.device.partition(":")[0] if target.format == "aoti" else None
    signature = Signature(target.preprocess, target.softmax, batch, device)
    pictures = calibration_pictures(target.calibrate, info) if target.calibrate else ()
    return Plan(opened.model, info, signature, target, opened.messages, *pictures)


def _summary(plan: Plan, output: Path) -> str:
    batch, channels, size = plan.signature.batch_size or "N", plan.info.in_channels, plan.size
    takes = f"normalised float32 [{batch}, {channels}, {size}, {size}]"
    if plan.signature.preprocess or (plan.target.om and plan.target.om.aipp):
        takes = f"uint8 [{batch}, {size}, {size}, {channels}]"
    gives = "probabilities" if plan.signature.softmax else "logits"
    return f"{output.name}: {takes} -> {gives} [{batch}, {plan.info.num_classes}]"


@torch.inference_mode()
def _check(plan: Plan, row: Format, path: Path, report: ExportReport) -> None:
    """Compare the outputs for some pictures, all at once and the first one alone."""
    if row.open is None:
        report.checks.append(f"none: {path.suffix} files run on their own device only")
        return
    pictures = check_pictures(plan.info) if plan.compared is None else plan.compared
    normalise = Normalise(plan.info.preprocessing)
    expected = plan.network(normalise(pictures))
    if plan.signature.softmax:
        expected = probabilities_of(expected, multi_label=plan.info.multi_label)
    run, engine = row.open(path.with_suffix(row.compared or path.suffix), plan.target.device)
    inputs = plan.inputs(pictures)
    outputs = [in_batches(run, part, plan.signature.batch_size) for part in (inputs, inputs[:1])]
    verdict = compare if plan.compared is None else compare_rounded
    line, report.passed = verdict(torch.cat([expected, expected[:1]]), torch.cat(outputs))
    report.checks.append(f"{engine}: {line}")


def compare_rounded(expected: Tensor, actual: Tensor) -> tuple[str, bool]:
    """As `compare`, for 8-bit files, whose outputs are near and not equal."""
    difference = float((expected - actual).norm() / expected.norm())
    agree = int((expected.argmax(1) == actual.argmax(1)).sum())
    line = f"8-bit outputs differ by {100 * difference:.1f} %, same first class on {agree} of {len(expected)}"
    return line, agree >= AGREEMENT * len(expected)


def compare(expected: Tensor, actual: Tensor) -> tuple[str, bool]:
    """A line for people and the verdict on outputs [N, K] that should be the same."""
    difference, top = float((expected - actual).abs().max()), float(expected.abs().max())
    first = actual.argmax(1, keepdim=True)
    # Two classes within the tolerance of each other are a tie, not a disagreement.
    agree = expected.amax(1) - expected.gather(1, first).squeeze(1) <= TOLERANCE * top
    passed = difference <= TOLERANCE * top and bool(agree.all())
    line = (
        f"outputs up to {top:.3g} differ by at most {difference:.1e}, "
        f"same first class on {int(agree.sum())} of {len(agree)}"
    )
    spread = float((expected - expected[:1]).abs().max())
    if spread < _WEAK * top:
        line += f"; the pictures' own outputs differ by only {spread:.1e}, so this shows little"
    return line, passed
