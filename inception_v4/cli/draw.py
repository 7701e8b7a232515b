"""The `draw` subcommand."""

from __future__ import annotations

from pathlib import Path

import click

from inception_v4.cli.options import CONTEXT


@click.command("draw", context_settings=CONTEXT)
@click.argument("output", type=click.Path(dir_okay=False))
@click.option("--shape", metavar="KIND", help="Kind of shape; default: the name in OUTPUT, else circle.")
@click.option("--seed", default=0, show_default=True, help="Another number, another picture.")
@click.option("--size", default=96, show_default=True, type=click.IntRange(16), help="Side in pixels.")
def command(output: str, shape: str | None, seed: int, size: int) -> None:
    """Draw a new picture of a shape; such pictures are never in the training set.

    \b
      inception-v4 draw star.jpg
    """
    from inception_v4.data.shapes import KINDS, draw_shape

    stem = Path(output).stem.lower()
    kind = shape or next((k for k in KINDS if k in stem), "circle")
    draw_shape(kind, seed, size).save(output)
    click.echo(f"{output}: a {kind}")
