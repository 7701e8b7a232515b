"""The `push` subcommand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from inception_v4.cli.options import CONTEXT
from inception_v4.console import print_table, say
from inception_v4.settings.addresses import is_address


@click.command("push", context_settings=CONTEXT)
@click.argument("run", metavar="RUN_DIR")
@click.argument("name", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Where the repository is new: for its owner alone.")
@click.option("--license", "license_name", metavar="NAME", help="Of the weights, as the hub spells it (apache-2.0).")
@click.option("--message", default="", metavar="TEXT", help="Of the commit.")
@click.option("--dry-run", is_flag=True, help="Show the files and stop.")
@click.option("-o", "--output-dir", type=click.Path(file_okay=False), metavar="FOLDER", help="With --dry-run: leave "
              "the files there.")  # fmt: skip
def command(run: str, name: str, **options: Any) -> None:
    """Push a run's best weights to the Hugging Face hub, as timm and this program load them.

    config.json, model.safetensors, and a model card with the run's own figures, classes, preprocessing, settings and
    curves. No path of this machine is in them.

    \b
      inception-v4 push runs/photos me/photos --dry-run
      inception-v4 push runs/photos me/photos --private
      inception-v4 predict photo.jpg --ckpt-path me/photos
    """
    from inception_v4.files import staged
    from inception_v4.pages.hub import HUB_NAME, push_run, write_repository
    from inception_v4.pages.run_record import read_run

    if not HUB_NAME.fullmatch(name):
        raise click.UsageError(f"{name!r} is not a name on the hub: write owner/name")
    output_dir, license_name = options["output_dir"], options["license_name"]
    if output_dir and not options["dry_run"]:
        raise click.UsageError("--output-dir goes with --dry-run")
    if is_address(output_dir):
        raise click.UsageError(f"{output_dir} is an address: give --output-dir a local folder, to look at the files")
    record = read_run(run)
    if not options["dry_run"]:
        given = {key: options[key] for key in ("private", "license_name", "message")}
        click.echo(push_run(record, name, **given))
        return
    with staged(Path(output_dir or record.folder) / "repository") as folder:
        files = write_repository(record, Path(output_dir) if output_dir else folder, name, license_name=license_name)
        print_table(("file", "bytes"), [(path.name, str(path.stat().st_size)) for path in files if path.is_file()])
        say("nothing was pushed (--dry-run)")
        click.echo((files[0].parent / "README.md").read_text(encoding="utf-8"), err=True)
