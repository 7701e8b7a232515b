"""The `convert` subcommand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.options import CONTEXT
from inception_v4.settings.addresses import is_address


@click.command("convert", context_settings=CONTEXT)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=click.Path(dir_okay=False))
@click.option("--to", "layout", help="Layout to write: torch, cadene, mindcv or modelzoo; default: by suffix.")
@click.option("--classes", default="auto", show_default=True, type=click.Choice(["auto", "drop-background", "keep"]),
              help="TensorFlow's class 0 of 1001.")  # fmt: skip
@click.option("--ema/--no-ema", default=None,
              help="Take the moving average of the weights; default: only a TensorFlow checkpoint's.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help="Default: as they are.")
@click.option("--with-optimizer", is_flag=True, help="Carry Momentum's or RMSProp's state to MindSpore.")
@click.option("--verify", is_flag=True, help="Compare the outputs of both networks on random pictures and PICTURE...")
@click.argument("pictures", nargs=-1, metavar="[PICTURE...]")
def command(source: str, destination: str, pictures: Sequence[str], **options: Any) -> int:
    """Carry weights from any layout to any other; what is written is read back and compared.

    \b
      inception-v4 convert inception_v4-db9c45b3.ckpt weights.safetensors
      inception-v4 convert runs/photos/best.safetensors for_mindcv.ckpt --to mindcv --verify
      inception-v4 convert timm/inception_v4.tf_in1k weights.ckpt --to modelzoo
    """
    prepare_environment("cpu")
    verify = (list(pictures) or True) if options.pop("verify") or pictures else False
    from inception_v4.storage.outgoing import outgoing
    from inception_v4.weights.convert import convert_weights

    with outgoing(destination) as file:
        report = convert_weights(source, file.path, to=options.pop("layout"), verify=verify, **options)
        for line in report.lines():
            click.echo(file.told(line))
        if not report.passed and is_address(destination):
            for written in file.path.parent.iterdir():
                written.unlink()  # it stays where it was made, and goes nowhere else
    return 0 if report.passed else 1
