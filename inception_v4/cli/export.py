"""The `export` subcommand."""

from __future__ import annotations

from typing import Any

import click

from inception_v4.accelerator import prepare_environment, select
from inception_v4.cli.options import CONTEXT, image_size_option
from inception_v4.export.om import PRECISION_MODES, OmTarget
from inception_v4.export.target import FORMAT_NAMES, Target
from inception_v4.settings.dialects import MODELZOO
from inception_v4.settings.dialects.exporting import translate_export
from inception_v4.settings.recipes import read_recipe

SAME_AS_OURS = ("num_classes", "batch_size")
"""Options that the ModelZoo has too, with the same meaning."""


def modelzoo_options(function: Any) -> Any:
    """Every setting of the ModelZoo as a hidden option, so that its lines can be typed."""
    for name in MODELZOO.rules:
        if name not in SAME_AS_OURS:
            function = click.option(f"--{name.replace('_', '-')}", name, hidden=True)(function)
    return function


@click.command("export", context_settings=CONTEXT)
@click.argument("source", metavar="WEIGHTS", required=False)
@click.option("--format", "form", type=click.Choice(FORMAT_NAMES), help="Default: by the suffix of FILE.")
@click.option("-o", "--output", metavar="FILE", help="File to write, whole or not at all: a path, or an "
              "address (s3://...).")  # fmt: skip
@image_size_option
@click.option("--num-classes", type=click.IntRange(1), metavar="N", help="Must be the weights'; 1000 of 1001 drops "
              "the background.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="The only batch size; default: any "
              "(om, air: 1).")  # fmt: skip
@click.option("--with-preprocess", is_flag=True, help="Take uint8 [N, S, S, 3] and normalise inside.")
@click.option("--with-softmax", is_flag=True, help="Give probabilities.")
@click.option("--int8", "calibrate", metavar="FOLDER", help="onnx, openvino: 8-bit convolutions, ranges from 256 "
              "pictures of FOLDER.")  # fmt: skip
@click.option("--opset", type=int, default=13, show_default=True, help="Of ONNX, 13 to 23.")
@click.option("--device", default="cpu", show_default=True, help="aoti: the device to compile for.")
@click.option("--soc-version", metavar="CHIP", help="om: the chip, such as Ascend310P3.")
@click.option("--aipp", is_flag=True, help="om: take uint8 RGB pictures and normalise them on the chip.")
@click.option("--precision-mode", type=click.Choice(PRECISION_MODES), help="om: default force_fp16 on Ascend310*, "
              "else must_keep_origin_dtype.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what would be done (om: the command line of ATC) and stop.")
@click.option("--no-check", is_flag=True, help="Do not compare the file with the network in PyTorch.")
@click.option("-c", "--config", "--config-path", "config_file", hidden=True)
@modelzoo_options
def command(source: str | None, output: str | None, dry_run: bool, **options: Any) -> int:
    """Write the network for another runtime, and compare it there with PyTorch.

    onnx (ONNX Runtime and most others), openvino (.xml), pt2 (torch.export), aoti (compiled for this machine's
    processor), mindir (MindSpore), om (Ascend chips, through ATC), air (MindSpore on Ascend). The file carries its
    class names and preprocessing; `validate` and `predict` take it as --ckpt-path.

    \b
      inception-v4 export runs/photos/best.safetensors -o photos.onnx
      inception-v4 export pretrained -o inception_v4.onnx --with-preprocess --with-softmax
      inception-v4 export runs/photos/best.safetensors -o photos_int8.xml --int8 photos/
      inception-v4 export pretrained -o inception_v4.om --soc-version Ascend310P3 --batch-size 4 --aipp
    """
    prepare_environment(options["device"])
    foreign = {name: options.pop(name) for name in list(options) if name in MODELZOO.rules and name not in SAME_AS_OURS}
    source, output, notices = _modelzoo(source, output, options, foreign)
    for notice in notices:
        click.echo(notice, err=True)
    if source is None or output is None:
        raise click.UsageError("give the WEIGHTS and --output FILE")
    from inception_v4.export import exporting as module

    target = _target(options)
    if dry_run:
        click.echo(module.intention(source, output, target))
        return 0
    if target.format == "aoti":
        click.echo(select(target.device).compile_notice("aoti"), err=True)
    from inception_v4.storage.outgoing import outgoing

    with outgoing(output) as file:
        report = module.export_model(source, file.path, target)
        for line in report.lines():
            click.echo(file.told(line))
    return 0 if report.passed else 1


def _modelzoo(
    source: str | None, output: str | None, options: dict[str, Any], foreign: dict[str, Any]
) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Source, output and notices, with the ModelZoo's spelling of options filled into `options`."""
    recipe = read_recipe(options["config_file"]) if options["config_file"] else {}
    given = {name: value for name, value in foreign.items() if value is not None}
    found, notices = translate_export({**recipe, **given})
    if output is not None and "file_format" not in given:
        found = {name: value for name, value in found.items() if name != "format"}  # the suffix says it
    for ours, name in (("form", "format"), ("image_size", "image_size"), ("num_classes", "num_classes")):
        if options[ours] is None:
            options[ours] = found.get(name)
    return source or found.get("source"), output or found.get("output"), tuple(notices)


def _target(options: dict[str, Any]) -> Target:
    om = None
    if not options["soc_version"] and (options["aipp"] or options["precision_mode"]):
        raise click.UsageError("--aipp and --precision-mode are for --format om: give --soc-version CHIP")
    if options["soc_version"]:
        om = OmTarget(
            options["soc_version"], options["batch_size"] or 1, options["aipp"], options["precision_mode"]
        )  # fmt: skip
    return Target(
        options["form"], options["image_size"], options["num_classes"], options["batch_size"],
        options["with_preprocess"], options["with_softmax"], options["opset"], options["device"], om,
        not options["no_check"], options["calibrate"],
    )  # fmt: skip
