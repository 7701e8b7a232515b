"""The `demo` subcommand."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from socket import socket
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.listening import listen, serve_until_stopped
from inception_v4.cli.options import CONTEXT, is_loopback, map_runtime_option
from inception_v4.console import say
from inception_v4.pages.extras import optional


@click.command("demo", context_settings=CONTEXT)
@click.argument("weights", default="pretrained", metavar="[WEIGHTS]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is everybody's.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(0, 65535))
@click.option("--examples/--no-examples", default=True, help="Show pictures to begin with: small copies of a run's own "
              "validation pictures, else drawn shapes.")  # fmt: skip
@click.option("--max-bytes", default=32 << 20, show_default=True, type=click.IntRange(1), help="Of an upload.")
@click.option("--max-pixels", default=50_000_000, show_default=True, type=click.IntRange(1), help="Of a picture: "
              "larger JPEG are decoded smaller, others are refused.")  # fmt: skip
@map_runtime_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, npu, mps or xpu.")
def command(weights: str, **options: Any) -> None:
    """Try the network in a browser: drop or photograph a picture, see its classes and where they were seen.

    WEIGHTS is a weights file, a run directory, a hub name or an exported file; default: the published ones. The page
    asks nothing from the network, listens on this machine alone unless told otherwise, and keeps what it was given for
    ten minutes at most. Ctrl-C ends it.

    \b
      inception-v4 demo runs/photos
      inception-v4 demo --host 0.0.0.0 --no-examples
    """
    prepare_environment(options["device"])
    from inception_v4.inference.predict import Predictor

    with tempfile.TemporaryDirectory(prefix="inception-v4-demo-") as name:
        folder = Path(name).resolve()
        # gradio reads these when it is imported and when a page is made.
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
        for package in ("gradio", "uvicorn"):
            optional(package, "demo")
        bound, address = listen(options["host"], options["port"])
        given = {name: options[name] for name in ("runtime", "device")}
        predictor = Predictor(weights, cache=False, **given)  # in PyTorch, which has feature maps
        for message in predictor.messages:
            say(message)
        if not is_loopback(options["host"]):
            say(f"{options['host']} can be reached by others: everybody there may use this page")
        _serve(predictor, folder, weights, options, bound, address)


def _serve(predictor: Any, folder: Path, weights: str, options: dict[str, Any], bound: socket, address: str) -> None:
    """Until a signal comes."""
    from inception_v4.pages.demo import DemoLimits, create_demo
    from inception_v4.pages.examples import write_examples

    pictures = write_examples(weights, predictor.class_names, folder) if options["examples"] else []
    app = create_demo(
        predictor, folder, title=f"Inception-v4: {Path(weights).name}", examples=pictures,
        limits=DemoLimits(options["max_bytes"], options["max_pixels"]),
    )  # fmt: skip
    say(f"{weights} on {predictor.engine}: open {address} in a browser")
    serve_until_stopped(app, bound, log_level="warning", timeout_graceful_shutdown=2, limit_concurrency=256)
