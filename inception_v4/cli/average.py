"""The `average` subcommand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.options import CONTEXT, config_option
from inception_v4.cli.settings import SettingsCommand, resolve, settings

# `output` and `ema` are flags of other meanings elsewhere.
_OWN = ("output", "layout", "dtype", "ema", "greedy", "update_bn")


@click.command("average", cls=SettingsCommand, context_settings=CONTEXT)
@click.argument("weights", nargs=-1, required=True, metavar="WEIGHTS...")
@click.option("-o", "--output", required=True, metavar="FILE", type=click.Path(dir_okay=False), help="File to write.")
@click.option("--to", "layout", help="Layout to write: torch, cadene, mindcv or modelzoo; default: by suffix.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help="Default: fp32.")
@click.option(
    "--ema/--no-ema", "use_ema", default=None, help="Take the moving averages that training checkpoints hold."
)
@click.option("--greedy", is_flag=True, help="A greedy soup: only weights that do not lower top-1 (mAP, where "
              "pictures have several classes) of the validation pictures, the best first.")  # fmt: skip
@click.option("--update-bn", is_flag=True, help="Take BatchNorm statistics anew from the training pictures, as SWA "
              "does.")  # fmt: skip
@config_option
@settings("data", "augmentation", "run", own=_OWN)
def command(weights: Sequence[str], config_file: str | None, **options: Any) -> None:
    """Average the weights of several files, checkpoints or run directories into one file.

    For fine-tuned runs that started from the same weights, and for checkpoints of one run. Pictures are needed for
    --greedy and --update-bn only: those that the first weights record, or those of --data-dir.

    \b
      inception-v4 average runs/a runs/b runs/c --output mean.safetensors
      inception-v4 average runs/a runs/b runs/c --output soup.safetensors --greedy --data-dir photos/
      inception-v4 average runs/a/checkpoints/step-*.pt --output swa.safetensors --update-bn -c runs/a/config.yaml
    """
    chosen = {name: options.pop(name) for name in _OWN if name != "ema"} | {"ema": options.pop("use_ema")}
    config = resolve(config_file, options)
    prepare_environment(config.run.device)
    from inception_v4.training.averaging import Averaging, average

    average(weights, config, Averaging(chosen.pop("output"), **chosen))
