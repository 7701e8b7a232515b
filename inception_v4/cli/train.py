"""The `train` subcommand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.options import CONTEXT, announce, config_option, dry_run_option
from inception_v4.cli.settings import SettingsCommand, given_settings, resolve, settings
from inception_v4.pages.extras import optional
from inception_v4.settings.addresses import is_address
from inception_v4.settings.dialects import translate
from inception_v4.settings.recipes import to_yaml


@click.command("train", cls=SettingsCommand, context_settings=CONTEXT)
@config_option
@dry_run_option
@click.option("--lr-find", is_flag=True, help="Try rising learning rates for some steps, plot them and propose one.")
@click.option("--find-batch-size", "find_batch", is_flag=True, help="Try larger and larger batches, print "
              "what they take and propose one.")  # fmt: skip
@settings()
def command(config_file: str | None, dry_run: bool, lr_find: bool, find_batch: bool, **options: Any) -> None:
    """Train or fine-tune.

    Without a recipe and data: the `quickstart` on drawn pictures. With --data-dir and no recipe: settings chosen for
    the data and the device, said with their reasons; flags win over them. Shipped recipes: quickstart, finetune,
    cifar10_finetune, imagenet_rmsprop, imagenet_momentum_mindcv, imagenet_modern. Add --smoke to try any of them in a
    minute.

    \b
      inception-v4 train --data-dir photos/ --pretrained --epochs 10
      inception-v4 train -c cifar10_finetune --data-dir data/ --dataset-download
      torchrun --nproc-per-node 8 -m inception_v4 train -c imagenet_rmsprop --data-dir /imagenet

    A stopped run (exit code 75 after SIGTERM or Ctrl-C) goes on with --resume auto --output-dir ITS_FOLDER.
    """
    given = translate(given_settings(options))[0] if config_file is None else {}
    own_data = bool(given.get("data_dir")) or given.get("dataset") not in (None, "shapes")
    config = resolve(config_file or ("finetune" if own_data else "quickstart"), options)
    chosen_for_data = own_data and not config.run.smoke
    if dry_run:
        if chosen_for_data:
            announce(["a run chooses its size, batch, schedule and the like for the data and the device, and says so"])
        click.echo(to_yaml(config), nl=False)
        return
    prepare_environment(config.run.device)
    from inception_v4.training.batch_size import find_batch_size
    from inception_v4.training.range_test import find_rate
    from inception_v4.training.suit import suit_data
    from inception_v4.training.train import train

    if chosen_for_data:
        config, reasons = suit_data(config, given)
        announce(reasons)
    if config.run.report:
        optional("jinja2", "report")  # what is missing is said before the hours of a run, not after them
    if find_batch:
        find_batch_size(config)
        return
    if lr_find:
        find_rate(config)
        return
    summary = train(config)
    if config.run.report and os.environ.get("RANK", "0") == "0":
        from inception_v4.pages.report import write_report
        from inception_v4.storage.outgoing import send_files

        folder, address = Path(summary["output_dir"]), config.run.upload_to or config.run.output_dir
        page, charts = write_report([folder], device=config.run.device)
        if is_address(address):
            send_files(str(address), folder, [*charts, page])
        announce([f"report {page}"])
