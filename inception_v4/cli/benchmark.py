"""The `benchmark` subcommand."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.benchmark.suites import PEERS, PRECISIONS, SUITES
from inception_v4.benchmark.tables import LOADER_HEADER, loader_cells, loader_verdict, tables, to_markdown
from inception_v4.cli.options import CONTEXT
from inception_v4.console import print_table, say
from inception_v4.files import atomic_write

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


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
@click.option("--json", "json_file", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True),
              help="Write the figures as JSON, anew after every table; `-` is stdout, at the end.")  # fmt: skip
@click.option("--markdown", metavar="FILE", type=click.Path(dir_okay=False), help="Write the tables as Markdown, "
              "in the same way.")  # fmt: skip
@click.option("--resume-from", metavar="FILE", type=click.Path(dir_okay=False), help="Take over the tables that are in "
              "a --json FILE of the same command on the same machine, and measure the others.")  # fmt: skip
def command(suite: str, device: str, data: str | None, **options: Any) -> int:
    """Time the network in its forms beside other programs', all in one interleaved run.

    Every contestant has the same weights and pictures; the column `difference` compares its output with the first
    one's. Medians over the rounds, the middle half of them as spread. Nothing else should run on the machine. Every
    table is printed and written when it is ready; what was interrupted goes on with --resume-from.

    \b
      inception-v4 benchmark                                       a minute or two: timm and this network
      inception-v4 benchmark --suite cpu --markdown cpu.md         with ONNX Runtime and OpenVINO, float to int8
      inception-v4 benchmark --suite gpu --json gpu.json           inference and training on an accelerator
      inception-v4 benchmark --suite gpu --json gpu.json --resume-from gpu.json
      inception-v4 benchmark --suite memory                        activation checkpointing
      inception-v4 benchmark --data /imagenet/train                can the loader feed the device?
    """
    if data is not None and options["resume_from"]:
        raise click.UsageError("--resume-from is for suites; --data measures one table: leave it out")
    if suite == "cpu" and device == "auto":
        device = "cpu"  # its runtimes have no other
    prepare_environment(device)
    if data is not None:
        return _measure_data(data, device, options)
    return _measure_suite(suite, device, options)


def _measure_suite(suite: str, device: str, options: dict[str, Any]) -> int:
    from inception_v4.benchmark.groups import read_earlier, run_groups
    from inception_v4.benchmark.measure import Timing

    groups = _groups(suite, options)
    earlier = read_earlier(Path(options["resume_from"])) if options["resume_from"] else None
    timing = Timing(repeats=options["repeats"], memory=options["memory"] or suite == "memory")
    result: dict[str, Any] = {}
    interrupted = False
    try:
        for group, result in run_groups(groups, device, options=timing, earlier=earlier, say=say):
            _show(group, result, options, first=group == groups[0])
    except KeyboardInterrupt:
        interrupted = True
    if result and options["json_file"] == "-":
        click.echo(json.dumps(result, indent=2))
    if interrupted:
        finished = len(tables(result["rows"])) if result else 0
        say(f"interrupted: {_what_is_left(finished, len(groups), options)}")
        return _INTERRUPTED
    failed = [row for row in result["rows"] if row["error"] and row["form"].split()[0] not in PEERS]
    return 1 if failed else 0


def _show(group: Any, result: dict[str, Any], options: dict[str, Any], *, first: bool) -> None:
    """The table of the group, and the files with all there are."""
    if options["json_file"] != "-":
        if first:
            for name, value in result["environment"].items():
                say(f"{name}: {value}")
        (table,) = tables([row for row in result["rows"] if group.holds(row)])
        print_table(*table)
        sys.stdout.flush()
    _write(options["json_file"], json.dumps(result, indent=2) + "\n")
    _write(options["markdown"], to_markdown(result["environment"], tables(result["rows"])))


def _write(file: str | None, text: str) -> None:
    """Write to a file, where there is to be one, whole or not at all; stdout is written to by others."""
    if not file or file == "-":
        return
    path = Path(file)
    if path.exists() and not path.is_file():  # a pipe or a device stays what it is
        path.write_text(text, encoding="utf-8")
        return
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def _what_is_left(done: int, total: int, options: dict[str, Any]) -> str:
    if not done:
        return "no table was finished, and nothing was written; the same command starts again"
    finished = f"{done} of {total} tables were finished"
    file = options["json_file"]
    if not file:
        return f"{finished}; with --json FILE they are kept, and --resume-from FILE goes on"
    name = "the file that this was written to" if file == "-" else file
    return f"{finished}; the same command goes on with --resume-from {name}"


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
            for size in dict.fromkeys(options["batch_size"] or part.batch_sizes)
            if entries
        ]
    if not groups:
        raise click.UsageError("nothing is left to measure: no contestant exists for these options together")
    return groups


def _measure_data(folder: str, device: str, options: dict[str, Any]) -> int:
    """The loader on a folder of pictures, and whether it keeps up with training on the device."""
    from inception_v4.accelerator import select
    from inception_v4.benchmark.conditions import environment
    from inception_v4.benchmark.loaders import measure_loaders
    from inception_v4.benchmark.measure import Entry, Group, Timing, measure
    from inception_v4.settings.schema import Augmentation, Data

    accelerator = select(device)
    accelerator.activate()
    batch_size = options["batch_size"][0] if options["batch_size"] else 32
    peers = [peer for peer in ("timm", "torchvision") if peer in (options["peer"] or (*PEERS, "torchvision"))]
    rows = measure_loaders(
        Data(data_dir=folder, batch_size=batch_size, workers=options["workers"]),
        Augmentation(image_size=options["image_size"]),
        accelerator=accelerator, peers=peers, repeats=options["repeats"],
    )  # fmt: skip
    table = (LOADER_HEADER, [loader_cells(row) for row in rows])
    state = environment(accelerator)
    result: dict[str, Any] = {"environment": state, "loaders": rows, "training_images_per_second": None}
    _write(options["json_file"], json.dumps(result, indent=2) + "\n")
    _write(options["markdown"], to_markdown(state, [table]))
    if options["json_file"] != "-":
        print_table(*table)
        sys.stdout.flush()
    native = accelerator.amp_support("bf16") == "native"
    precision = options["precision"][0] if options["precision"] else "bf16" if native else "fp32"
    group = Group("train", min(batch_size, 4) if accelerator.type == "cpu" else batch_size, options["image_size"],
                  (Entry("plain", precision),))  # fmt: skip
    (trained,) = measure(group, accelerator, Timing(repeats=3))
    needed = result["training_images_per_second"] = trained.images_per_second
    _write(options["json_file"], json.dumps(result, indent=2) + "\n")
    if options["json_file"] == "-":
        click.echo(json.dumps(result, indent=2))
    elif needed:
        click.echo(loader_verdict(rows[0]["images_per_second"], needed, precision, options["workers"]))
    else:
        say(f"training could not be measured beside it: {trained.error}")
    return 0
