"""The subcommands: flags in, a call into the package, results out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.benchmark import benchmark as benchmark
from inception_v4.cli.export import export as export
from inception_v4.cli.main import CONTEXT
from inception_v4.console import print_table
from inception_v4.settings.dialects import FLAGS, NO_EFFECT, SWITCHES, translate
from inception_v4.settings.recipes import leaf_fields, load_config, to_yaml
from inception_v4.settings.schema import Config

VALIDATION_SECTIONS = ("data", "augmentation", "network", "training", "run")


class SettingsCommand(click.Command):
    """A command whose flags are the settings of a run, shown by section; `name=value` needs no dashes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {option for parameter in self.params for option in parameter.opts}
        return super().parse_args(ctx, [_with_dashes(word, known) for word in args])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        leaves = leaf_fields()
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            section = leaves[parameter.name][0] if parameter.name in leaves else None
            if row:
                holder = Config.model_fields[section].annotation if section else None
                title = (holder.__doc__ or "").rstrip(".") if holder else "Options"
                sections.setdefault(title, []).append(row)
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _with_dashes(word: str, known: set[str]) -> str:
    name, equals, _ = word.partition("=")
    return f"--{word}" if equals and f"--{name.replace('_', '-')}" in known else word


def settings(*sections: str) -> Callable[[Any], Any]:
    """A flag for every setting of the sections (default: all), and hidden ones in other projects' spelling."""

    def decorate(function: Any) -> Any:
        ours = leaf_fields()
        for name in sorted(FLAGS, reverse=True):
            if name not in ours:
                function = _option(name, FLAGS[name], hidden=True)(function)
        for name, (section, field) in reversed(ours.items()):
            visible = not sections or section in sections
            if field.annotation is bool or field.annotation == (bool | None):
                function = _negative(name)(function)
            function = _option(name, _help(field), hidden=not visible, is_bool=_is_bool(field))(function)
        return function

    return decorate


def _is_bool(field: Any) -> bool:
    return field.annotation is bool or field.annotation == (bool | None)


def _help(field: Any) -> str:
    default = field.default
    if default is None or default is False or default == ():
        return str(field.description)
    shown = ",".join(f"{v:.4g}" for v in default) if isinstance(default, tuple) else default
    return f"{field.description} [{shown}]"


def _option(name: str, text: str, *, hidden: bool = False, is_bool: bool = False) -> Callable[[Any], Any]:
    flag = name.replace("_", "-")
    # Bare `--pretrained` is true, and so is `--pretrained True`; other projects' flags may stand alone too.
    alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if is_bool or hidden or name in SWITCHES else {}
    metavar = "" if is_bool else "VALUE"
    return click.option(f"--{flag}", name, type=str, default=None, help=text, hidden=hidden, metavar=metavar, **alone)


def _negative(name: str) -> Callable[[Any], Any]:
    return click.option(f"--no-{name.replace('_', '-')}", f"no_{name}", is_flag=True, default=False, hidden=True)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that were on the command line; `--no-x` is x = false."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    negated = [name for name in given if name.startswith("no_") and name not in FLAGS]
    return {name: v for name, v in given.items() if name not in negated} | {name[3:]: "false" for name in negated}


def _resolve(recipe: str | None, options: dict[str, Any]) -> Config:
    config, notices = load_config(recipe, _given(options))
    _say(notices)
    return config


def _say(lines: Sequence[str]) -> None:
    """Lines for the person at the console, from one process only."""
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            click.echo(line, err=True)


config_option = click.option(
    "-c", "--config", "--config-path", "config_file", metavar="FILE", help="YAML recipe: a path or a shipped name."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the resolved settings and stop.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
runtime_option = click.option(
    "--runtime",
    type=click.Choice(["torch", "onnx", "openvino", "pt2"]),
    help="What runs the file; default: its suffix.",
)


@click.command(cls=SettingsCommand, context_settings=CONTEXT)
@config_option
@dry_run_option
@settings()
def train(config_file: str | None, dry_run: bool, **options: Any) -> None:
    """Train or fine-tune.

    Without a recipe and data: the `quickstart` on drawn pictures. With --data-dir and no recipe: settings chosen for
    the data and the device, said with their reasons; flags win over them. Shipped recipes: quickstart, finetune,
    cifar10_finetune, imagenet_rmsprop, imagenet_momentum_mindcv. Add --smoke to try any of them in a minute.

    \b
      inception-v4 train --data-dir photos/ --pretrained --epochs 10
      inception-v4 train -c cifar10_finetune --data-dir data/ --dataset-download
      torchrun --nproc-per-node 8 -m inception_v4 train -c imagenet_rmsprop --data-dir /imagenet

    A stopped run (exit code 75 after SIGTERM or Ctrl-C) goes on with --resume auto --output-dir ITS_FOLDER.
    """
    given = translate(_given(options))[0] if config_file is None else {}
    own_data = bool(given.get("data_dir")) or given.get("dataset") not in (None, "shapes")
    config = _resolve(config_file or ("finetune" if own_data else "quickstart"), options)
    chosen_for_data = own_data and not config.run.smoke
    if dry_run:
        if chosen_for_data:
            _say(["a run chooses its size, batch, schedule and the like for the data and the device, and says so"])
        click.echo(to_yaml(config), nl=False)
        return
    prepare_environment(config.run.device)
    from inception_v4.training.train import suit_data
    from inception_v4.training.train import train as run

    if chosen_for_data:
        config, reasons = suit_data(config, given)
        _say(reasons)
    run(config)


@click.command(cls=SettingsCommand, context_settings=CONTEXT)
@config_option
@dry_run_option
@json_option
@click.option("--per-class", is_flag=True, help="Also a table of the classes, worst first.")
@runtime_option
@click.option("--from-outputs", metavar="FOLDER", help="Score outputs that another machine computed: one .bin, .npy or "
              ".txt file for each picture.")  # fmt: skip
@click.option("--labels", metavar="FILE", help="With --from-outputs: lines `picture label`, or JSON.")
@settings(*VALIDATION_SECTIONS)
def validate(config_file: str | None, dry_run: bool, as_json: bool, per_class: bool, **options: Any) -> None:
    """Validate weights or an exported file on labelled pictures: a folder per class, CIFAR, ImageNet.

    The file says how its pictures are resized, cropped and normalised, and which they were in its run; flags win.

    \b
      inception-v4 validate --ckpt-path runs/photos/best.safetensors
      inception-v4 validate --ckpt-path photos.onnx --data-dir photos/
      inception-v4 validate --pretrained --dataset imagenet --data-dir /imagenet
      inception-v4 validate --from-outputs result_Files/ --labels labels.txt
    """
    runtime = options.pop("runtime")
    outputs, labels = _outputs(options)
    if outputs and dry_run:
        click.echo(f"from_outputs: {outputs}\nlabels: {labels}")
        return
    if outputs:
        from inception_v4.inference.outputs import score_outputs

        idle = [*(["runtime"] if runtime else []), *_given(options)]
        result, remarks = score_outputs(outputs, labels)
        _say([*([f"{', '.join(idle)}{NO_EFFECT}the outputs are scored as they are"] if idle else []), *remarks])
        _print_validation(result, as_json=as_json, per_class=per_class)
        return
    config = _resolve(config_file, options)
    if dry_run:
        click.echo(to_yaml(config), nl=False)
        return
    if config.training.compile:
        _say([f"compile{NO_EFFECT}only training compiles; `export --format aoti` makes a compiled file to validate"])
    prepare_environment(config.run.device)
    from inception_v4.inference.validate import validate as run

    result = run(config, runtime=runtime)
    if os.environ.get("RANK", "0") == "0":
        _print_validation(result, as_json=as_json, per_class=per_class)


def _outputs(options: dict[str, Any]) -> tuple[str | None, str]:
    """The folder and the labels of `--from-outputs`, taken out of `options`; the ModelZoo's words mean the same."""
    foreign = {name: options.pop(name, None) for name in ("result_path", "label_file")}
    outputs = options.pop("from_outputs") or foreign["result_path"]
    labels = options.pop("labels") or foreign["label_file"]
    if bool(outputs) != bool(labels):
        raise click.UsageError("--from-outputs FOLDER and --labels FILE go together: give both")
    return outputs, labels


def _print_validation(result: dict[str, Any], *, as_json: bool, per_class: bool) -> None:
    if as_json:
        shown = {k: v for k, v in result.items() if per_class or k != "per_class"}
        # JSON has no NaN: a loss that is not a number is null.
        shown |= {k: None for k, v in shown.items() if isinstance(v, float) and not math.isfinite(v)}
        click.echo(json.dumps(shown))
        return
    speed = f", {result['images_per_second']:.1f} images/s" if "images_per_second" in result else ""
    click.echo(
        f"loss {result['loss']:.4f}  top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %  "
        f"({result['samples']} pictures{speed})"
    )
    if per_class:
        print_table(
            ("class", "pictures", "top-1 %", "top-5 %"),
            [
                (row["class"], str(row["samples"]), f"{row['top1']:.1f}", f"{row['top5']:.1f}")
                for row in sorted(result["per_class"], key=lambda row: row["top1"])
            ],
        )


@click.command(context_settings=CONTEXT)
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
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV on stdout.")
def predict(pictures: Sequence[str], as_json: bool, as_csv: bool, **options: Any) -> None:
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
    from inception_v4.inference.network import accelerator_for, recognise

    accelerator_for(recognise(source, options["runtime"]), options["device"]).activate()
    predictor = module.Predictor(
        source, runtime=options["runtime"], device=options["device"], amp=options["amp"],
        batch_size=options["batch_size"], image_size=options["image_size"],
    )  # fmt: skip
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


@click.command(context_settings=CONTEXT)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=click.Path(dir_okay=False))
@click.option("--to", "layout", help="Layout to write: torch, cadene, mindcv or modelzoo; default: by suffix.")
@click.option("--classes", default="auto", show_default=True, type=click.Choice(["auto", "drop-background", "keep"]),
              help="TensorFlow's class 0 of 1001.")  # fmt: skip
@click.option("--ema", is_flag=True, help="Take the moving average of the weights.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help="Default: as they are.")
@click.option("--with-optimizer", is_flag=True, help="Carry Momentum's or RMSProp's state to MindSpore.")
@click.option("--verify", is_flag=True, help="Compare the outputs of both networks on random pictures and PICTURE...")
@click.argument("pictures", nargs=-1, metavar="[PICTURE...]")
def convert(source: str, destination: str, pictures: Sequence[str], **options: Any) -> int:
    """Carry weights from any layout to any other; what is written is read back and compared.

    \b
      inception-v4 convert inception_v4-db9c45b3.ckpt weights.safetensors
      inception-v4 convert runs/photos/best.safetensors for_mindcv.ckpt --to mindcv --verify
      inception-v4 convert timm/inception_v4.tf_in1k weights.ckpt --to modelzoo
    """
    prepare_environment("cpu")
    from inception_v4.weights.convert import convert_weights

    verify = (list(pictures) or True) if options.pop("verify") or pictures else False
    report = convert_weights(source, destination, to=options.pop("layout"), verify=verify, **options)
    for line in report.lines():
        click.echo(line)
    return 0 if report.passed else 1


@click.command(context_settings=CONTEXT)
@json_option
def env(as_json: bool) -> None:
    """Versions, devices (and why others are absent), precisions that work, process-group back ends."""
    prepare_environment("auto")
    from inception_v4.accelerator import environment_report

    report = environment_report()
    click.echo(json.dumps(report, indent=2) if as_json else "\n".join(_lines(report)))


@click.command(context_settings=CONTEXT)
@click.argument("output", type=click.Path(dir_okay=False))
@click.option("--shape", metavar="KIND", help="Kind of shape; default: the name in OUTPUT, else circle.")
@click.option("--seed", default=0, show_default=True, help="Another number, another picture.")
@click.option("--size", default=96, show_default=True, type=click.IntRange(16), help="Side in pixels.")
def draw(output: str, shape: str | None, seed: int, size: int) -> None:
    """Draw a new picture of a shape; such pictures are never in the training set.

    \b
      inception-v4 draw star.jpg
    """
    from inception_v4.data.shapes import KINDS, draw_shape

    stem = Path(output).stem.lower()
    kind = shape or next((k for k in KINDS if k in stem), "circle")
    draw_shape(kind, seed, size).save(output)
    click.echo(f"{output}: a {kind}")


def _lines(value: Any, indent: int = 0) -> list[str]:
    """Nested mappings as indented `name: value` lines."""
    pad = "  " * indent
    lines = []
    for name, item in value.items():
        if isinstance(item, dict):
            lines += [f"{pad}{name}:", *_lines(item, indent + 1)]
        else:
            shown = ", ".join(map(str, item)) if isinstance(item, (list, tuple)) else item
            lines.append(f"{pad}{name}: {shown}")
    return lines


def _newest_run() -> str:
    found = sorted(Path("runs").glob("*/best.safetensors"), key=lambda path: path.stat().st_mtime)
    return f" (your newest: --ckpt-path {found[-1]})" if found else ""
