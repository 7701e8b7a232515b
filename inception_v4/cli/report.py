"""The `report` subcommand."""

from __future__ import annotations

from collections.abc import Sequence

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.options import CONTEXT
from inception_v4.console import say


@click.command("report", context_settings=CONTEXT)
@click.argument("runs", nargs=-1, required=True, metavar="RUN_DIR...")
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="The page; default: report.html "
              "in the first run directory or address.")  # fmt: skip
@click.option("--inspect/--no-inspect", default=True, help="Look through the pictures: broken ones, and the same one "
              "twice.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="For the heat on thumbnails.")
def command(runs: Sequence[str], output: str | None, inspect: bool, device: str) -> None:
    """One self-contained HTML page about a run, or several compared.

    Curves, settings that differ, confusion matrix, classes, calibration, the most confident mistakes and the least
    sure right answers with Grad-CAM, what is wrong with the data, and the command that repeats the run. The charts
    also lie beside it as PNG.

    \b
      inception-v4 report runs/photos
      inception-v4 report runs/a runs/b -o compared.html
    """
    prepare_environment(device)
    from inception_v4.pages.report import write_report
    from inception_v4.storage.outgoing import outgoing

    with outgoing(output or f"{runs[0].rstrip('/')}/report.html") as file:
        page, charts = write_report(runs, file.path, device=device, look_through=inspect)
        told = file.told(str(charts[0].parent)), file.told(str(page))
    say(f"{len(charts)} charts as PNG in {told[0]}")
    click.echo(told[1])
