"""The `predict` subcommand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.options import CONTEXT, json_option, runtime_option
from inception_v4.console import print_table


@click.command("predict", context_settings=CONTEXT)
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE_OR_FOLDER...")
@click.option("--ckpt-path", metavar="FILE", help="Weights file, run directory or exported file.")
@click.option("--pretrained", is_flag=True, help="The published ImageNet weights.")
@runtime_option
@click.option("--top-k", default=5, show_default=True, type=click.IntRange(1), help="Classes shown per picture.")
@click.option("--image-size", type=click.IntRange(75), metavar="PX", help="Side of the input; default: the weights'.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Pictures at a time.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, npu, mps or xpu.")
@click.option("--amp", default="off", show_default=True, type=click.Choice(["off", "bf16", "fp16"]), help="Precision.")
@click.option("--on-corrupt", default="error", show_default=True, type=click.Choice(["error", "skip"]),
              help="An unreadable picture.")  # fmt: skip
@click.option("--exif-rotation/--no-exif-rotation", default=None, help="Turn pictures as their EXIF says; default: the "
              "weights'.")  # fmt: skip
@click.option("--max-pixels", type=click.IntRange(1), help="Most pixels of a picture: larger JPEG are decoded smaller, "
              "others are an error; default 300 million.")  # fmt: skip
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV on stdout.")
def command(pictures: Sequence[str], as_json: bool, as_csv: bool, **options: Any) -> None:
    """Name what is on pictures (files, or folders searched through).

    \b
      inception-v4 predict photo.jpg --pretrained
      inception-v4 predict photos/ --ckpt-path runs/photos/best.safetensors --csv > names.csv
    """
    prepare_environment(options["device"])
    from inception_v4.inference import predict as module

    source = module.PRETRAINED if options["pretrained"] else options["ckpt_path"]
    if source is None or (options["pretrained"] and options["ckpt_path"]):
        raise click.UsageError(f"give --ckpt-path FILE or --pretrained, one of them{_newest_run()}")
    from inception_v4.inference.network import accelerator_for, runtime_for

    accelerator_for(runtime_for(source, options["runtime"]), options["device"]).activate()
    predictor = module.Predictor(
        source, runtime=options["runtime"], device=options["device"], amp=options["amp"],
        batch_size=options["batch_size"], image_size=options["image_size"],
    )  # fmt: skip
    given = {name: options[name] for name in ("exif_rotation", "max_pixels") if options[name] is not None}
    predictor.decoding = replace(predictor.decoding, **given)
    for message in predictor.messages:
        click.echo(message, err=True)
    found = module.pictures_in(pictures)
    predictions = module.predict_files(predictor, found, top_k=options["top_k"], on_corrupt=options["on_corrupt"])
    if as_json:
        click.echo(json.dumps([p.to_dict() for p in predictions]))
    elif as_csv:
        click.echo(module.to_csv(predictions), nl=False)
    else:
        print_table(("picture", "class", "%"), [row for p in predictions for row in module.table_rows(p)])


def _newest_run() -> str:
    found = sorted(Path("runs").glob("*/best.safetensors"), key=lambda path: path.stat().st_mtime)
    return f" (your newest: --ckpt-path {found[-1]})" if found else ""
