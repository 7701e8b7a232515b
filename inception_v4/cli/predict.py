"""The `predict` subcommand."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.ensemble import PredictCommand, views_options
from inception_v4.cli.options import (
    CONTEXT,
    cache_option,
    eight_bit_source,
    image_size_option,
    int8_options,
    runtime_option,
)
from inception_v4.console import say, track
from inception_v4.inference.engine_cache import read_ahead


@click.command("predict", cls=PredictCommand, context_settings=CONTEXT)
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE_OR_FOLDER...")
@click.option("--ckpt-path", multiple=True, metavar="FILE", help="Weights file, run directory or exported file; of "
              "several files the mean of their probabilities.")  # fmt: skip
@click.option("--pretrained", is_flag=True, help="The published ImageNet weights.")
@runtime_option
@int8_options
@views_options
@cache_option
@click.option("--top-k", type=click.IntRange(1), help="Most classes shown per picture; default: 5, or all above "
              "--threshold.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(0, 1), metavar="P", help="Least probability of the classes shown; "
              "default: none, or 0.5 for weights that give several classes where --top-k is not given.")  # fmt: skip
@image_size_option
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Pictures at a time.")
@click.option("--workers", type=click.IntRange(0), help="Loader processes; default: up to 8, none for few pictures.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, npu, mps or xpu.")
@click.option("--amp", default="auto", show_default=True, type=click.Choice(["auto", "off", "bf16", "fp16"]),
              help="Precision; auto: bf16 where the device is faster with it.")  # fmt: skip
@click.option("--on-corrupt", default="report", show_default=True, type=click.Choice(["report", "skip", "error"]),
              help="Unreadable pictures: a row with the error, and exit code 1 at the end; left out; or stop at the "
              "first. The report of a single picture is an error line alone.")  # fmt: skip
@click.option("--exif-rotation/--no-exif-rotation", default=None, help="Turn pictures as their EXIF says; default: the "
              "weights'.")  # fmt: skip
@click.option("--max-pixels", type=click.IntRange(1), help="Most pixels of a picture: larger JPEG are decoded smaller, "
              "others are an error; default 300 million.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array on stdout.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="Print one JSON object a line, for each picture.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV on stdout.")
def command(pictures: Sequence[str], **options: Any) -> int:
    """Name what is on pictures: files, folders searched through, quoted patterns, or - for names on standard input.

    Results are written as they come, in the order of the pictures.

    \b
      inception-v4 predict photo.jpg --pretrained
      inception-v4 predict photos/ --ckpt-path runs/photos/best.safetensors --csv > names.csv
      inception-v4 predict photos/ --ckpt-path A.safetensors B.safetensors --crops 12
      find . -name '*.jpg' | inception-v4 predict - --pretrained --jsonl > names.jsonl
    """
    prepare_environment(options["device"])
    chosen = [form for form in ("json", "jsonl", "csv") if options[f"as_{form}"]]
    if len(chosen) > 1:
        raise click.UsageError(f"give one of --{' and --'.join(chosen)}")
    if options["cache"] and options["runtime"] != "torch":
        for source in options["ckpt_path"]:
            read_ahead(source)
    predictor = _predictor(options)
    from inception_v4.data.named_files import pictures_in

    names = pictures_in(pictures, sys.stdin.buffer)
    predictor.expect(len(names))
    mean = f", mean of {', '.join(predictor.sources)}" if len(predictor.sources) > 1 else ""
    many = "s" * (len(names) > 1)
    say(f"{len(names)} picture{many}, {predictor.preprocessing.image_size} px, {predictor.engine}{mean}")
    return _write(predictor, names, "".join(chosen), options)


def _predictor(options: dict[str, Any]) -> Any:
    from inception_v4.data.views import Views
    from inception_v4.inference import predict as module

    sources = options["ckpt_path"] or (module.PRETRAINED,)
    if options["pretrained"] == bool(options["ckpt_path"]):
        raise click.UsageError(f"give --ckpt-path FILE or --pretrained, one of them{_newest_run()}")
    from inception_v4.inference.network import accelerator_for, runtime_for

    sources = tuple(eight_bit_source(source, options) for source in sources)
    runtime = runtime_for(sources[0], options["runtime"], cache=options["cache"])
    accelerator_for(runtime, options["device"]).activate()
    predictor = module.Predictor(
        sources, runtime=options["runtime"], cache=options["cache"], device=options["device"], amp=options["amp"],
        batch_size=options["batch_size"], image_size=options["image_size"],
        views=Views(int(options["crops"]), options["flip"]),
    )  # fmt: skip
    given = {name: options[name] for name in ("exif_rotation", "max_pixels") if options[name] is not None}
    predictor.decoding = replace(predictor.decoding, **given)
    for message in predictor.messages:
        click.echo(message, err=True)
    return predictor


def _write(predictor: Any, names: list[str], form: str, options: dict[str, Any]) -> int:
    """Writes a row per picture; returns the exit code."""
    from inception_v4.inference.predict import UnreadPicture
    from inception_v4.inference.rows import ROW_FORMATS, TableRows, TextRows

    on_corrupt, unread = options["on_corrupt"], 0
    if len(names) == 1 and on_corrupt == "report":
        on_corrupt = "error"
    # A progress bar takes over `sys.stdout`: rows go to the one that was there before it.
    out, seen = sys.stdout, sys.stdout.isatty()
    top_k, threshold = predictor.usual(options["top_k"], options["threshold"])
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="surrogateescape")  # a file's name is written as it is, in whatever encoding
    results = predictor.stream(
        names, top_k, threshold=threshold, workers=options["workers"], on_corrupt=on_corrupt
    )  # fmt: skip
    with TableRows() if seen and not form else TextRows(ROW_FORMATS[form or "table"], out) as rows:
        # A bar keeps below the tables of a terminal; lines of text there would write over it.
        for result in results if seen and form else track(results, "predicting", len(names)):
            if isinstance(result, UnreadPicture):
                unread += 1
                say(f"skipped: {result.error}" if on_corrupt == "skip" else result.error)
                if on_corrupt == "skip":
                    continue
            rows.write(result)
    if not unread or on_corrupt == "skip":
        return 0
    say(f"{unread} of {len(names)} pictures could not be read")
    return 1


def _newest_run() -> str:
    found = sorted(Path("runs").glob("*/best.safetensors"), key=lambda path: path.stat().st_mtime)
    return f" (your newest: --ckpt-path {found[-1]})" if found else ""
