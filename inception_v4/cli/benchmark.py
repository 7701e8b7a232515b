"""The `benchmark` subcommand."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.benchmark.suites import PEERS, PRECISIONS, SUITES
from inception_v4.benchmark.tables import LOADER_HEADER, loader_cells, loader_verdict, tables, to_markdown
from inception_v4.cli.options import CONTEXT
from inception_v4.console import print_table


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
    timing = module.Timing(repeats=options["repeats"], memory=options["memory"] or suite == "memory")
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
    needed = module.measure(group, accelerator, module.Timing(repeats=3))[0].images_per_second
    result = {"environment": module.environment(accelerator), "loaders": rows, "training_images_per_second": needed}
    if _wrote_json_on_stdout(result, options["json_file"]):
        return 0
    print_table(LOADER_HEADER, [loader_cells(row) for row in rows])
    if needed:
        click.echo(loader_verdict(rows[0]["images_per_second"], needed, precision, options["workers"]))
    return 0
