"""How each format is written: one row of `FORMATS` per format."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inception_v4.accelerator import select
from inception_v4.console import track
from inception_v4.export import mindir
from inception_v4.export.om import AtcError, OmTarget, aipp_config, atc_command, run_atc
from inception_v4.export.plan import Plan
from inception_v4.export.quantization import quantize
from inception_v4.export.target import ExportError, Target
from inception_v4.inference.agreement import check_pictures
from inception_v4.inference.network import Signature, export_description
from inception_v4.inference.sessions import METADATA_KEY, RUNTIMES, require
from inception_v4.weights import Weights

_AT_A_TIME = 16
_AIPP = ".aipp.cfg"

INPUT, OUTPUT = "image", "logits"
"""Names in the exported graph."""


def _program(plan: Plan, device: torch.device | None = None) -> torch.export.ExportedProgram:
    batch = plan.signature.batch_size
    example = plan.inputs(check_pictures(plan.info)[: batch or 2])
    if batch and batch > len(example):
        example = example[:1].expand(batch, *example.shape[1:]).contiguous()
    shapes = None if batch else {"image": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        return torch.export.export(plan.module().to(device), (example.to(device),), dynamic_shapes=shapes)


def _write_pt2(plan: Plan, path: Path) -> None:
    torch.export.save(_program(plan), str(path), extra_files={f"{METADATA_KEY}.json": plan.describe()})


def _write_aoti(plan: Plan, path: Path) -> None:
    settings = {"aot_inductor.metadata": {METADATA_KEY: plan.describe()}}
    program = _program(plan, select(plan.target.device).device)
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def _write_onnx(plan: Plan, path: Path) -> None:
    onnx = require("onnx", "onnxscript")
    exported = torch.onnx.export(
        _program(plan), input_names=[INPUT], output_names=[OUTPUT], opset_version=max(18, plan.target.opset),
        dynamo=True, verbose=False,
    )  # fmt: skip
    assert exported is not None  # With `dynamo` there is always a program.
    model = exported.model_proto
    _tidy(model, plan.target.opset)
    model.metadata_props.add(key=METADATA_KEY, value=plan.describe())
    # Every operator is checked against its definition in the version that the file names.
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    if plan.calibration is not None:
        _quantise(plan, path, plan.calibration)


def _quantise(plan: Plan, path: Path, pictures: Tensor) -> None:
    """The file's convolutions in 8 bits, in place."""
    onnx = require("onnx")
    exact = path.with_name(f".exact.{path.name}")
    path.rename(exact)
    parts = _calibration_batches(pictures, plan.signature.batch_size)
    quantize(exact, path, (plan.inputs(part) for part in track(parts, "taking ranges from pictures, batches")))
    exact.unlink()
    model = onnx.load(str(path))
    model.ClearField("metadata_props")
    model.metadata_props.add(key=METADATA_KEY, value=plan.describe())
    onnx.save(model, str(path))


def _calibration_batches(pictures: Tensor, size: int | None) -> Sequence[Tensor]:
    """Batches as the file takes them; the last one is filled up with pictures that have had their turn."""
    if size is not None and (short := -len(pictures) % size):
        pictures = torch.cat([pictures, pictures[torch.arange(short) % len(pictures)]])
    return pictures.split(size or _AT_A_TIME)


def _tidy(model: Any, opset: int) -> None:
    """Name the version of the operators, and drop the exporter's notes, which name files of this machine."""
    from onnx.helper import find_min_ir_version_for

    model.opset_import[0].version = opset
    model.ir_version = find_min_ir_version_for(list(model.opset_import))
    graph = model.graph
    graph.name = "inception_v4"
    graph.ClearField("value_info")
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for port in (*graph.input, *graph.output):
        batch = port.type.tensor_type.shape.dim[0]
        if batch.dim_param:
            batch.dim_param = "batch"


def _write_openvino(plan: Plan, path: Path) -> None:
    ov = require("openvino")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        _write_onnx(plan, Path(folder) / "model.onnx")
        graph = ov.Core().read_model(str(Path(folder) / "model.onnx"))
        graph.set_rt_info(plan.describe(), [METADATA_KEY])
        ov.save_model(graph, str(path), compress_to_fp16=False)


def _write_mindspore(plan: Plan, path: Path, *, file_format: str) -> None:
    mindir.write_mindir(
        Weights(plan.network.state_dict(), plan.info), path, file_format=file_format, image_size=plan.size,
        batch_size=plan.signature.batch_size,
    )  # fmt: skip
    _describe_beside(plan, path)


def _describe_beside(plan: Plan, path: Path, signature: Signature | None = None) -> None:
    """For formats without room for a description."""
    text = export_description(plan.info, signature or plan.signature)
    path.with_name(path.name + ".json").write_text(text + "\n", encoding="utf-8")


def _write_for_om(plan: Plan, path: Path) -> None:
    """The ONNX file and, where asked for, the preprocessing for ATC."""
    assert plan.target.om is not None
    _write_onnx(plan, path.with_suffix(".onnx"))
    if plan.target.om.aipp:
        path.with_suffix(_AIPP).write_text(aipp_config(plan.info.preprocessing), encoding="utf-8")


def _compile_om(plan: Plan, path: Path) -> None:
    assert plan.target.om is not None
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as unfinished:
            compiled = Path(unfinished) / path.name
            run_atc(atc_for(path, plan.target.om, plan.size, output=compiled), compiled)
            compiled.rename(path)
    except AtcError as error:
        there = atc_for(Path(path.name), plan.target.om, plan.size)
        raise AtcError(f"{error}; the other files are written, so run there: {shlex.join(there)}") from error
    _describe_beside(plan, path, replace(plan.signature, preprocess=plan.target.om.aipp))


def atc_for(path: Path, om: OmTarget, size: int, *, output: Path | None = None) -> list[str]:
    """ATC's command line for the files written for `path`, which it makes unless another `output` is given."""
    aipp = path.with_suffix(_AIPP) if om.aipp else None
    return atc_command(path.with_suffix(".onnx"), output or path, om, image_size=size, aipp=aipp)


def _needs_onnx(target: Target) -> None:
    require("onnx", "onnxscript")
    if target.check:
        require("onnxruntime")


def _needs_openvino(target: Target) -> None:
    require("openvino", "onnx", "onnxscript")


def _needs_mindspore(target: Target) -> None:
    mindir.check_installed()


def _needs_chip(target: Target) -> None:
    if target.om is None:
        raise ExportError(
            "om is compiled for one chip: give --soc-version, such as Ascend310P3 (`npu-smi info` shows it)"
        )
    _needs_onnx(target)


def _needs_compiler(target: Target) -> None:
    if not select(target.device).can_compile:
        raise ExportError("aoti needs a C++ compiler: install g++, or export pt2")


def companions(row: Format, output: Path, target: Target) -> list[Path]:
    """The files that come with `output`."""
    aipp = (_AIPP,) if target.om and target.om.aipp else ()
    return [output.with_suffix(suffix) for suffix in (*row.beside, *aipp)]


def _session(runtime: str, path: Path, device: str) -> tuple[RunBatch, str]:
    place = "cpu" if RUNTIMES[runtime].on_host else device
    opened = RUNTIMES[runtime].open(path, place)
    return lambda images: opened.run(images.to(place)).cpu(), opened.engine


def _mindspore(path: Path, device: str) -> tuple[RunBatch, str]:
    return partial(mindir.run_mindir, path), "MindSpore"


RunBatch = Callable[[Tensor], Tensor]


class Format(NamedTuple):
    """A row of `FORMATS`.

    Attributes:
        suffix: of its files.
        beside: suffixes of the files that come with it, but for the preprocessing of `om`.
        needs: raises, with the remedy, where something that the format needs is missing.
        write: a plan to a file, with its companions beside it.
        open: the file and a device to what runs it, and its name for people; None where it cannot run here.
        takes_pictures: whether normalisation and softmax can be inside.
        compared: the suffix of the file that `open` takes.
        usual_batch: the batch size where none is asked for; None for any.
        finish: after the comparison.
    """

    suffix: str
    needs: Callable[[Target], None]
    write: Callable[[Plan, Path], None]
    open: Callable[[Path, str], tuple[RunBatch, str]] | None
    beside: tuple[str, ...] = ()
    takes_pictures: bool = True
    compared: str = ""
    usual_batch: int | None = None
    finish: Callable[[Plan, Path], None] = lambda plan, path: None


FORMATS = {
    "onnx": Format(".onnx", _needs_onnx, _write_onnx, partial(_session, "onnx")),
    "openvino": Format(".xml", _needs_openvino, _write_openvino, partial(_session, "openvino"), (".bin",)),
    "pt2": Format(".pt2", lambda target: None, _write_pt2, partial(_session, "pt2")),
    "aoti": Format(".pt2", _needs_compiler, _write_aoti, partial(_session, "pt2")),
    "mindir": Format(
        ".mindir", _needs_mindspore, partial(_write_mindspore, file_format="MINDIR"), _mindspore, (".mindir.json",),
        takes_pictures=False,
    ),
    "air": Format(
        ".air", _needs_mindspore, partial(_write_mindspore, file_format="AIR"), None, (".air.json",),
        takes_pictures=False, usual_batch=1,
    ),
    "om": Format(
        ".om", _needs_chip, _write_for_om, partial(_session, "onnx"), (".onnx", ".om.json"),
        takes_pictures=False, compared=".onnx", finish=_compile_om,
    ),
}  # fmt: skip
"""Every format by its name."""
