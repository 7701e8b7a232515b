"""Options that several subcommands share, and lines for the person at the console. Imports click alone."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

CONTEXT = {
    "token_normalize_func": lambda name: name.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}

config_option = click.option(
    "-c", "--config", "--config-path", "config_file", metavar="FILE", help="YAML recipe: a path or a shipped name."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the resolved settings and stop.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
runtime_option = click.option(
    "--runtime",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "torch", "openvino", "onnx", "pt2"]),
    help="What runs the file; auto: an exported one by its suffix, weights in the fastest that is installed.",
)
cache_option = click.option(
    "--cache/--no-cache", default=True, help="Keep what weights were exported to for another runtime, and use it."
)


def announce(lines: Sequence[str]) -> None:
    """Lines for the person at the console, from one process only."""
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            click.echo(line, err=True)
