"""The `benchmark` subcommand."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.options import CONTEXT
from inception_v4.console import print_table

PEERS = ("timm", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")


class Part(NamedTuple):
    """A task of a suite: each batch size is a group of contestants."""

    task: str
    batch_sizes: tuple[int, ...]
    forms: tuple[str, ...]
    precisions: tuple[str, ...]


_TIMM = ("timm", "timm channels_last", "timm compiled")
_OURS = ("plain", "fused", "fused compiled")

SUITES: dict[str, tuple[Part, ...]] = {
    "quick": (Part("infer", (1, 8), ("timm", "timm channels_last", "plain", "fused"), ("fp32", "bf16")),),
    "cpu": (
        Part(
            "infer", (1, 8),
            (*_TIMM, "onnxruntime", "openvino", *_OURS, "fused in onnxruntime", "fused in openvino"),
            ("fp32", "bf16", "int8"),
        ),
        Part("train", (4,), ("timm", "timm channels_last", "plain"), ("fp32", "bf16")),
    ),
    "gpu": (
        Part(
            "infer", (32, 128, 512), (*_TIMM, "timm graphs", *_OURS, "fused graphs"), ("fp32", "tf32", "bf16", "fp16")
        ),
        Part("train", (32, 128, 256), (*_TIMM, "plain", "plain compiled"), ("tf32", "bf16", "fp16")),
    ),
    "memory": (Part("train", (32,), ("plain", "plain checkpointing"), ("bf16",)),),
}  # fmt: skip
"""What is measured by default, by the name of the suite."""


@click.command("benchmark", context_settings=CONTEXT)
@click.option("--suite", default="quick", show_default=True, type=click.Choice(list(SUITES)), help="What to measure.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, npu, mps or xpu.")
@click.option("--task", type=click.Choice(["infer", "train"]), help="Only this part of the suite.")
@click.option("--batch-size", multiple=True, type=click.IntRange(1), metavar="N", help="Instead of the suite's; may "
              "be repeated.")  # fmt: skip
@click.option("--image-size", default=299, show_default=True, type=click.IntRange(75), metavar="PX",
              help="Side of the input.")  # fmt: skip
@click.option("--precision", multiple=True, type=click.Choice(PRECISIONS), help="Only these; may be repeated.")
@click.option("--form", multiple=True, metavar="NAME", help="Only these contestants, as tables name them (and the "
              "first of the suite); may be repeated.")  # fmt: skip
@click.option("--peer", multiple=True, type=click.Choice([*PEERS, "none"]), help="Only these other programs; default: "
              "those of the suite.")  # fmt: skip
@click.option("--repeats", default=7, show_default=True, type=click.IntRange(1), help="Rounds, interleaved.")
@click.option("--memory", is_flag=True, help="Peak memory too; on the CPU in a process for each contestant.")
@click.option("--data", metavar="DIR", help="Measure the loader on a folder of pictures, and nothing else.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0), help="--data: loader processes.")
@click.option("--json", "json_file", metavar="FILE", help="Write the figures as JSON; `-` is stdout.")
@click.option("--markdown", metavar="FILE", help="Write the tables as Markdown.")
def command(suite: str, device: str, data: str | None, **options: Any) -> int:
    """Time the network in its forms beside other programs', all in one interleaved run.

    Every contestant has the same weights and pictures; the column `difference` compares its output with the first
    one's. Medians over the rounds, the middle half of them as spread. Nothing else should run on the machine.

    \b
      inception-v4 benchmark                                       a minute or two: timm and this network
      inception-v4 benchmark --suite cpu --markdown cpu.md         with ONNX Runtime and OpenVINO, float to int8
      inception-v4 benchmark --suite gpu --json gpu.json           inference and training on an accelerator
      inception-v4 benchmark --suite memory                        activation checkpointing
      inception-v4 benchmark --data /imagenet/train                can the loader feed the device?
    """
    prepare_environment(device)
    from inception_v4.benchmark import measure as module

    if data is not None:
        return _measure_data(data, device, options)
    groups = _groups(suite, options)
    timing = module.Options(repeats=options["repeats"], memory=options["memory"] or suite == "memory")
    result = module.run_groups(groups, device, timing, _say)
    _deliver(result, options)
    failed = [row for row in result["rows"] if row["error"] and row["form"].split()[0] not in PEERS]
    return 1 if failed else 0


def _say(line: str) -> None:
    click.echo(line, err=True)


def _groups(suite: str, options: dict[str, Any]) -> list[Any]:
    """The groups of a suite, narrowed by the options."""
    from inception_v4.benchmark.contestants import FORMS
    from inception_v4.benchmark.measure import Group, chosen

    for name in options["form"]:
        if name not in FORMS:
            near = difflib.get_close_matches(name, FORMS, 1)
            raise click.UsageError(f"--form {name!r} is none of {', '.join(FORMS)}" + (f": {near[0]!r}?" * bool(near)))
    peers = [name for name in options["peer"] if name != "none"] if options["peer"] else None
    groups = []
    for part in SUITES[suite]:
        if options["task"] not in (None, part.task):
            continue
        forms = list(options["form"]) or part.forms
        precisions = options["precision"] or part.precisions
        entries = chosen(forms, precisions, task=part.task, peers=peers)
        groups += [
            Group(part.task, size, options["image_size"], entries)
            for size in options["batch_size"] or part.batch_sizes
            if entries
        ]
    if not groups:
        raise click.UsageError("nothing is left to measure: no contestant exists for these options together")
    return groups


def _deliver(result: dict[str, Any], options: dict[str, Any]) -> None:
    if not _wrote_json_on_stdout(result, options["json_file"]):
        for name, value in result["environment"].items():
            _say(f"{name}: {value}")
        for header, rows in tables(result["rows"]):
            print_table(header, rows)
    if options["markdown"]:
        Path(options["markdown"]).write_text(to_markdown(result), encoding="utf-8")


def _wrote_json_on_stdout(result: dict[str, Any], file: str | None) -> bool:
    """Writes the figures to `file`, where one is given; True leaves stdout to them alone."""
    text = json.dumps(result, indent=2)
    if file == "-":
        click.echo(text)
    elif file:
        Path(file).write_text(text + "\n", encoding="utf-8")
    return file == "-"


HEADER = ("contestant", "precision", "ms", "spread %", "images/s", "x first", "first result s", "TFLOP/s",
          "memory MB", "of it tensors", "difference")  # fmt: skip


def tables(rows: Sequence[dict[str, Any]]) -> list[tuple[Sequence[str], list[Sequence[str]]]]:
    """A table for each group: header and cells."""
    groups: dict[tuple[Any, ...], list[Sequence[str]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["batch_size"], row["image_size"]), []).append(_cells(row))
    return [
        _without_empty_columns((f"{task}, batch {size}, {side} px", *HEADER[1:]), cells)
        for (task, size, side), cells in groups.items()
    ]


def _without_empty_columns(
    header: Sequence[str], rows: list[Sequence[str]]
) -> tuple[Sequence[str], list[Sequence[str]]]:
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return [header[column] for column in kept], [[row[column] for column in kept] for row in rows]


def _cells(row: dict[str, Any]) -> Sequence[str]:
    if row["error"]:
        return (row["form"], row["precision"], row["error"], *[""] * (len(HEADER) - 3))
    spread = 100 * (row["high"] - row["low"]) / row["ms"]
    return (
        row["form"], row["precision"], f"{row['ms']:.1f}", f"{spread:.1f}", f"{row['images_per_second']:.2f}",
        _or_blank(row["ratio"], "{:.2f}"), f"{row['first_seconds']:.1f}", f"{row['tflops']:.2f}",
        _or_blank(row["memory"] and row["memory"] / 1e6, "{:.0f}"),
        _or_blank(row["tensors"] and row["tensors"] / 1e6, "{:.0f}"), _or_blank(row["difference"], "{:.0e}"),
    )  # fmt: skip


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def to_markdown(result: dict[str, Any]) -> str:
    """The environment and the tables, for a document."""
    known = {name: value for name, value in result["environment"].items() if value is not None}
    text = "; ".join(f"{name}: {value}" for name, value in known.items()) + "\n"
    for header, rows in tables(result["rows"]):
        lines = [header, ["---"] * 2 + ["--:"] * (len(header) - 2), *rows]
        text += "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text


LOADER_HEADER = ("loader", "images/s", "least", "most", "x timm")


def _measure_data(folder: str, device: str, options: dict[str, Any]) -> int:
    """The loader on a folder of pictures, and whether it keeps up with training on the device."""
    from inception_v4.accelerator import select
    from inception_v4.benchmark import measure as module
    from inception_v4.benchmark.loaders import measure_loaders
    from inception_v4.settings.schema import Augmentation, Data

    accelerator = select(device)
    accelerator.activate()
    batch_size = options["batch_size"][0] if options["batch_size"] else 32
    peers = ["timm"] if "timm" in (options["peer"] or PEERS) else []
    rows = measure_loaders(
        Data(data_dir=folder, batch_size=batch_size, workers=options["workers"]),
        Augmentation(image_size=options["image_size"]),
        accelerator=accelerator, peers=peers, repeats=options["repeats"],
    )  # fmt: skip
    native = accelerator.amp_support("bf16") == "native"
    precision = options["precision"][0] if options["precision"] else "bf16" if native else "fp32"
    entry = module.Entry("plain", precision)
    group = module.Group("train", min(batch_size, 4) if accelerator.type == "cpu" else batch_size,
                         options["image_size"], (entry,))  # fmt: skip
    needed = module.measure(group, accelerator, module.Options(repeats=3))[0].images_per_second
    result = {"environment": module.environment(accelerator), "loaders": rows, "training_images_per_second": needed}
    if _wrote_json_on_stdout(result, options["json_file"]):
        return 0
    print_table(LOADER_HEADER, [_loader_cells(row) for row in rows])
    if needed:
        click.echo(_verdict(rows[0]["images_per_second"], needed, precision, options["workers"]))
    return 0


def _loader_cells(row: dict[str, Any]) -> Sequence[str]:
    figures = (row["images_per_second"], row["least"], row["most"])
    return (row["loader"], *(f"{value:.0f}" for value in figures), _or_blank(row.get("ratio"), "{:.2f}"))


def _verdict(given: float, needed: float, precision: str, workers: int) -> str:
    text = f"one device trains {needed:.0f} images/s in {precision}, and {workers} workers load {given:.0f} images/s: "
    if given >= needed:
        return text + "the loader keeps up"
    return text + f"the device waits; --workers {-int(-workers * needed // given)} on as many CPUs would keep up"
