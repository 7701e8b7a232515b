"""The `serve` subcommand."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.listening import listen, serve_until_stopped
from inception_v4.cli.options import CONTEXT, cache_option, is_loopback, runtime_option
from inception_v4.console import say
from inception_v4.pages.extras import optional

_CONNECTIONS = 64
"""At least so many may be open at once, idle ones included."""
TOKEN = "INCEPTION_V4_TOKEN"
"""The environment's variable. A flag would be seen by everybody in the list of processes."""


@click.command("serve", context_settings=CONTEXT)
@click.argument("weights", default="pretrained", metavar="[WEIGHTS]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is everybody's.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Most computed together.")
@click.option("--wait-ms", default=5.0, show_default=True, type=click.FloatRange(0), help="How long a picture waits "
              "for others, to be computed together.")  # fmt: skip
@click.option("--queue", default=256, show_default=True, type=click.IntRange(1), help="Pictures under way at once; "
              "more get status 429.")  # fmt: skip
@click.option("--max-bytes", default=32 << 20, show_default=True, type=click.IntRange(1), help="Of a request's body.")
@click.option("--max-pixels", default=50_000_000, show_default=True, type=click.IntRange(1), help="Of a picture: "
              "larger JPEG are decoded smaller, others are refused.")  # fmt: skip
@click.option("--token-file", type=click.Path(dir_okay=False), metavar="FILE", help=f"Bearer token that requests must "
              f"have; or the variable {TOKEN}. Default: none.")  # fmt: skip
@runtime_option
@cache_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, npu, mps or xpu.")
@click.option("--amp", default="off", show_default=True, type=click.Choice(["off", "bf16", "fp16"]), help="Precision.")
def command(weights: str, **options: Any) -> None:
    """Serve the network over HTTP, for programs: POST /predict, GET /healthz, GET /metrics.

    WEIGHTS is a weights file, a run directory, a hub name or an exported file; default: the published ones. It listens
    on this machine alone unless told otherwise. SIGTERM answers what has been asked and ends.

    \b
      inception-v4 serve runs/photos
      curl --data-binary @photo.jpg localhost:8000/predict
      curl -F a=@one.jpg -F b=@two.jpg 'localhost:8000/predict?top_k=1'
    """
    prepare_environment(options["device"])
    for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        optional(package, "serve")
    token = _token(options["token_file"])
    bound, address = listen(options["host"], options["port"])
    from inception_v4.inference.engines import WORTH_EXPORTING
    from inception_v4.inference.predict import Predictor
    from inception_v4.pages.service import Limits, create_service

    given = {name: options[name] for name in ("runtime", "device", "amp", "batch_size", "cache")}
    predictor = Predictor(weights, **given)
    predictor.expect(WORTH_EXPORTING)  # of a service's pictures nobody knows the number: they are many
    limits = Limits(
        body=options["max_bytes"], pixels=options["max_pixels"], queue=options["queue"],
        wait=options["wait_ms"] / 1000, batch=options["batch_size"],
    )  # fmt: skip
    for message in predictor.messages:
        say(message)
    if not token and not is_loopback(options["host"]):
        say(f"{options['host']} can be reached by others and no token is asked for: give --token-file")
    say(f"{weights} on {predictor.engine}: POST {address}/predict")
    # What is wrong with a request is said to who sent it; a line for each would let anybody fill a log.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    serve_until_stopped(
        create_service(predictor, limits, token), bound, log_level="error", timeout_graceful_shutdown=30,
        limit_concurrency=max(_CONNECTIONS, 4 * limits.queue), timeout_keep_alive=15,
    )  # fmt: skip


def _token(file: str | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN) or None
    token = Path(file).read_text(encoding="utf-8").strip()
    if not token:
        raise ValueError(f"{file} is empty: write the token into it")
    return token
