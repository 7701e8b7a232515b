"""The top of a run's report as a picture, as the README shows it; needs Chromium and the extra `report`.

inception-v4 train --output-dir quickstart
python tools/report_picture.py quickstart docs/report.png
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import click
from PIL import Image

from inception_v4.cli.options import CONTEXT
from inception_v4.files import atomic_write
from inception_v4.pages.report import write_report

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_BAR = 200
"""Rows more than wanted: a browser without a window keeps room for its bars, and leaves it empty."""
_COLOURS = 256
"""Of the palette; k-means keeps those of thin lines in it."""


@click.command(context_settings=CONTEXT)
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="RUN_DIR")
@click.argument("picture", type=click.Path(dir_okay=False, path_type=Path), metavar="PICTURE.png")
@click.option("--width", default=1280, show_default=True, type=click.IntRange(320), help="Of the window, in pixels.")
@click.option("--height", default=1445, show_default=True, type=click.IntRange(100), help="Of the picture, in pixels.")
@click.option("--dark", is_flag=True, help="For readers who prefer dark pages.")
def main(run: Path, picture: Path, width: int, height: int, dark: bool) -> None:
    """Write the report of a run and take a picture of its top."""
    chromium = next(filter(None, map(shutil.which, _NAMES)), None)
    if chromium is None:
        raise click.ClickException("no Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name:
        page, _ = write_report([run], Path(name) / "report.html")
        shot = Path(name) / "shot.png"
        words = [
            chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--hide-scrollbars", f"--user-data-dir={name}/profile", f"--window-size={width},{height + _BAR}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--screenshot={shot}", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        if not shot.is_file():
            raise click.ClickException(f"Chromium took no picture: {done.stderr.strip()[-300:]}")
        with Image.open(shot) as image, atomic_write(picture) as temporary:
            top = image.convert("RGB").crop((0, 0, width, height))
            top.quantize(_COLOURS, kmeans=1, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)
    click.echo(f"{picture}: {width} x {height} px, {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
