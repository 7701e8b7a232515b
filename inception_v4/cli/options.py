"""Options that several subcommands share, and lines for the person at the console. Imports click and plain data."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from typing import Any

import click

from inception_v4.preprocessing import SMALLEST

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
_RUNTIME: dict[str, Any] = {
    "default": "auto", "show_default": True, "type": click.Choice(["auto", "torch", "openvino", "onnx", "pt2"])
}  # fmt: skip
runtime_option = click.option(
    "--runtime",
    **_RUNTIME,
    help="What runs the file; auto: an exported one by its suffix, weights in the fastest that is installed.",
)
map_runtime_option = click.option(
    "--runtime",
    **_RUNTIME,
    help="What runs an exported file; auto: by its suffix. Weights run in PyTorch, which has the feature maps.",
)
image_size_option = click.option(
    "--image-size", type=click.IntRange(SMALLEST), metavar="PX", help="Side of the input; default: the weights'."
)
cache_option = click.option(
    "--cache/--no-cache", default=True, help="Keep what weights were exported to for another runtime, and use it."
)


def int8_options(function: Any) -> Any:
    """--int8 and what it may take ranges from."""
    made = "made once with ranges from the run's training pictures and kept beside the weights"
    calibration = click.option("--calibration", metavar="FOLDER", help="--int8: take the ranges from these pictures.")
    return click.option("--int8", is_flag=True, help=f"8-bit convolutions in OpenVINO or ONNX Runtime, {made}.")(
        calibration(function)
    )


def eight_bit_source(source: str, options: dict[str, Any]) -> str:
    """What to open in place of `source`: its 8-bit file where --int8 asks for it."""
    if not options["int8"]:
        if options["calibration"]:
            raise click.UsageError("--calibration is for --int8")
        return source
    from inception_v4.export.eight_bit import eight_bit_file

    path, lines = eight_bit_file(
        source, runtime=options["runtime"], pictures=options["calibration"], image_size=options.get("image_size")
    )
    announce(lines)
    return path


def announce(lines: Sequence[str]) -> None:
    """Lines for the person at the console, from one process only."""
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            click.echo(line, err=True)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
