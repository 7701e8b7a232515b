"""The `env` subcommand."""

from __future__ import annotations

import json
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.options import CONTEXT, json_option


@click.command("env", context_settings=CONTEXT)
@json_option
def command(as_json: bool) -> None:
    """Versions, devices (and why others are absent), precisions that work, process-group back ends."""
    prepare_environment("auto")
    from inception_v4.accelerator import environment_report

    report = environment_report()
    click.echo(json.dumps(report, indent=2) if as_json else "\n".join(_lines(report)))


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
