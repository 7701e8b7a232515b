"""The `validate` subcommand."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.ensemble import FLAG, one_flag_each, views_options
from inception_v4.cli.options import (
    CONTEXT,
    announce,
    cache_option,
    config_option,
    dry_run_option,
    eight_bit_source,
    int8_options,
    json_option,
    runtime_option,
)
from inception_v4.cli.settings import SettingsCommand, given_settings, resolve, settings, with_dashes
from inception_v4.console import print_table
from inception_v4.settings.dialects import NO_EFFECT
from inception_v4.settings.recipes import to_yaml
from inception_v4.settings.schema import Config

_ASKED = (
    "runtime", "int8", "calibration", "cache", "others", "crops", "flip", "confusion", "save_predictions",
    "real_labels", "data_classes_only",
)  # fmt: skip
"""Flags that are no settings."""

VALIDATION_SECTIONS = ("data", "augmentation", "network", "training", "run")


_MORE = "--and-ckpt-path"


class ValidateCommand(SettingsCommand):
    """A command that takes settings, and several weights files after one flag: all words up to the next flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {option for parameter in self.params for option in parameter.opts}
        words = one_flag_each(
            [with_dashes(word, known) for word in args], lambda word: with_dashes(word, known) == word
        )
        first = next((place for place, word in enumerate(words) if word.startswith(f"{FLAG}=")), len(words))
        later = [
            word.replace(f"{FLAG}=", f"{_MORE}=", 1) if word.startswith(FLAG) else word for word in words[first + 1 :]
        ]
        return super().parse_args(ctx, words[: first + 1] + later)


others_option = click.option(_MORE, "others", multiple=True, hidden=True, metavar="FILE")
"""Where `ValidateCommand` puts the files after the first."""


@click.command("validate", cls=ValidateCommand, context_settings=CONTEXT)
@config_option
@dry_run_option
@json_option
@click.option("--per-class", is_flag=True, help="Also a table of the classes: recall, precision, F1; worst first.")
@click.option("--confusion", metavar="FILE", help="Write the confusion matrix: .csv or .png.")
@click.option("--save-predictions", metavar="FILE", help="Write a row for each picture (path, label, top-5, "
              "probabilities): .jsonl, .csv or .parquet.")  # fmt: skip
@click.option("--real-labels", metavar="FILE", help="ImageNet: count by the reassessed labels of this real.json too.")
@click.option("--data-classes-only", is_flag=True, help="The network may answer with the data's classes alone, as "
              "ImageNet-A and -R are scored.")  # fmt: skip
@runtime_option
@int8_options
@views_options
@others_option
@cache_option
@click.option("--from-outputs", metavar="FOLDER", help="Score outputs that another machine computed: one .bin, .npy or "
              ".txt file for each picture.")  # fmt: skip
@click.option("--labels", metavar="FILE", help="With --from-outputs: lines `picture label`, or JSON.")
@settings(*VALIDATION_SECTIONS)
def command(config_file: str | None, dry_run: bool, as_json: bool, per_class: bool, **options: Any) -> None:
    """Validate weights or an exported file on labelled pictures: a folder per class, CIFAR, ImageNet.

    The file says how its pictures are resized, cropped and normalised, and which they were in its run; flags win. Of
    several files the mean of the probabilities is validated, and so it is over --crops and --flip.

    \b
      inception-v4 validate --ckpt-path runs/photos/best.safetensors
      inception-v4 validate --ckpt-path photos.onnx --data-dir photos/
      inception-v4 validate --pretrained --dataset imagenet --data-dir /imagenet
      inception-v4 validate --ckpt-path A.safetensors B.safetensors --crops 12 --data-dir photos/
      inception-v4 validate --pretrained --data-dir imagenet-a/ --val-split . --data-classes-only
      inception-v4 validate --from-outputs result_Files/ --labels labels.txt
    """
    asked = {name: options.pop(name) for name in _ASKED}
    outputs, labels = _outputs(options)
    if outputs and dry_run:
        click.echo(f"from_outputs: {outputs}\nlabels: {labels}")
        return
    if outputs:
        result = _scored(outputs, labels, asked, given_settings(options))
        _print_validation(result, as_json=as_json, per_class=per_class)
        return
    config = resolve(config_file, options)
    if dry_run:
        click.echo(to_yaml(config), nl=False)
        return
    if config.training.compile:
        notice = f"compile{NO_EFFECT}only training compiles; `export --format aoti` makes a compiled file to validate"
        announce([notice])
    prepare_environment(config.run.device)
    from inception_v4.data.views import Views
    from inception_v4.inference.validate import validate as run

    views = Views(int(asked["crops"]), asked["flip"])
    config, others = _in_8_bits(config, asked)
    result = run(
        config, runtime=asked["runtime"], cache=asked["cache"], views=views, others=others,
        options=_result_options(asked),
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        _print_validation(result, as_json=as_json, per_class=per_class)


def _in_8_bits(config: Config, asked: dict[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """Settings and further files with the 8-bit forms of the weights, where --int8 asks for them."""
    how = asked | {"image_size": config.augmentation.given_preprocessing().get("image_size")}
    others = tuple(eight_bit_source(other, how) for other in asked["others"])
    source = "pretrained" if config.network.pretrained else config.network.ckpt_path
    if source is None or (form := eight_bit_source(source, how)) == source:
        return config, others
    network = {"ckpt_path": form, "pretrained": False}
    return config.model_copy(update={"network": config.network.model_copy(update=network)}), others


def _result_options(asked: dict[str, Any]) -> Any:
    from inception_v4.inference.results import ResultOptions

    files = (asked["confusion"], asked["save_predictions"], asked["real_labels"])
    return ResultOptions(*files, asked["data_classes_only"])


def _scored(outputs: str, labels: str, asked: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The result of `--from-outputs`; what was asked for and plays no part there is said."""
    from inception_v4.inference.outputs import score_outputs

    usual = {"crops": "1", "runtime": "auto"}
    names = ("runtime", "int8", "others", "crops", "flip", "real_labels", "data_classes_only")
    idle = [*(name for name in names if asked[name] and asked[name] != usual.get(name)), *given]
    options = _result_options(asked | {"real_labels": None, "data_classes_only": False})
    result, remarks = score_outputs(outputs, labels, options)
    announce([*([f"{', '.join(idle)}{NO_EFFECT}the outputs are scored as they are"] if idle else []), *remarks])
    return result


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
    several = f"mAP {result['map']:.2f} %  micro F1 {result['micro_f1']:.2f} %  " if "map" in result else ""
    click.echo(f"{several}macro F1 {result['macro_f1']:.2f} %  calibration error {result['ece']:.2f} %")
    if "real_top1" in result:
        click.echo(
            f"reassessed labels: top-1 {result['real_top1']:.2f} %  top-5 {result['real_top5']:.2f} %  "
            f"({result['real_samples']} pictures)"
        )
    if per_class:
        recall, last = ("recall", "ap") if several else ("top1", "top5")
        print_table(
            ("class", "pictures", "recall %", "precision %", "F1 %", "AP %" if several else "top-5 %"),
            [_class_row(row, recall, last) for row in sorted(result["per_class"], key=lambda row: row[recall])],
        )


def _class_row(row: dict[str, Any], recall: str, last: str) -> tuple[str, ...]:
    precision = "-" if row["precision"] is None else f"{row['precision']:.1f}"
    return row["class"], str(row["samples"]), f"{row[recall]:.1f}", precision, f"{row['f1']:.1f}", f"{row[last]:.1f}"
