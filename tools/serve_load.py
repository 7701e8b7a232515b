"""How much `inception-v4 serve` answers, and how fast: services with and without batching under load, in turns.

    python tools/serve_load.py                      weights made here, 299 px, two services started here
    python tools/serve_load.py runs/photos --device cuda --service 1:0 --service 64:5
    python tools/serve_load.py --url http://127.0.0.1:8000    one that runs already

Each client sends a picture, waits for its answer and sends the next one; all of them live in this process, the services
in others. A round measures every service with every number of clients; the order of the services changes each round.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import click

from inception_v4.cli.options import CONTEXT
from inception_v4.console import print_table, say

_WARM_UP = 0.5
"""Of the time that is measured, before it."""


@dataclass
class Service:
    """One that is asked.

    Attributes:
        seconds: of every answered request, by the number of clients; `spent`: of all rounds.
        pictures, batches: that it computed.
    """

    name: str
    url: str
    seconds: dict[int, list[float]] = field(default_factory=dict)
    spent: dict[int, float] = field(default_factory=dict)
    pictures: dict[int, float] = field(default_factory=dict)
    batches: dict[int, float] = field(default_factory=dict)


@click.command(context_settings=CONTEXT)
@click.argument("weights", required=False)
@click.option("--url", multiple=True, help="Of a service that runs already, instead of those started here.")
@click.option("--clients", default="1,8,32", show_default=True, help="Clients at the same time.")
@click.option("--seconds", default=6.0, show_default=True, help="Of one measurement.")
@click.option("--rounds", default=2, show_default=True, help="Of all measurements.")
@click.option("--service", multiple=True, default=["1:0", "16:5"], show_default=True, metavar="BATCH:MS", help="Those "
              "that are started: --batch-size and --wait-ms.")  # fmt: skip
@click.option("--device", default="auto", show_default=True)
@click.option("--runtime", default="auto", show_default=True)
def main(
    weights: str | None,
    url: Sequence[str],
    clients: str,
    seconds: float,
    rounds: int,
    service: Sequence[str],
    **options: object,
) -> None:
    """Requests per second, and how long they take, of `inception-v4 serve` with and without batching."""
    counts = [int(word) for word in clients.split(",")]
    pictures = [_picture(seed) for seed in range(8)]
    with ExitStack() as running:
        services = [Service(address, address) for address in url]
        if not services:
            folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
            source = weights or str(_make_weights(folder / "made.safetensors"))
            common = [source, f"--device={options['device']}", f"--runtime={options['runtime']}"]
            for name in service:
                batch, _, wait = name.partition(":")
                words = [*common, f"--batch-size={batch}", f"--wait-ms={wait or 0}"]
                services.append(Service(name, running.enter_context(_started(words))))
        for number in range(rounds):
            for count in counts:
                for each in services if number % 2 == 0 else reversed(services):
                    _measure(each, count, pictures, seconds)
    print_table(
        ["batch:ms", "clients", "requests/s", "p50 ms", "p99 ms", "pictures per batch", "answers"],
        [_row(each, count) for count in counts for each in services],
    )


def _make_weights(path: Path) -> Path:
    """Of the whole network with 1000 classes, at random: what they answer means nothing, and takes as long."""
    from inception_v4 import create_model
    from inception_v4.weights import WeightsInfo, save_weights

    say("making weights")
    return save_weights(create_model(num_classes=1000), path, WeightsInfo(1000))


def _picture(seed: int) -> bytes:
    """A JPEG file as cameras' thumbnails are, 500 x 500."""
    from inception_v4.data.shapes import KINDS, draw_shape

    out = io.BytesIO()
    draw_shape(KINDS[seed % len(KINDS)], seed, 500).save(out, "JPEG", quality=90)
    return out.getvalue()


@contextmanager
def _started(words: list[str]) -> Iterator[str]:
    """The address of a service that runs during the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-m", "inception_v4", "serve", *words, f"--port={port}"], env=environment
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while not _is_ready(address):
            if process.poll() is not None:
                raise click.ClickException("the service has ended: see above")
            time.sleep(0.2)
        yield address
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()


def _is_ready(address: str) -> bool:
    try:
        with _direct.open(f"{address}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _counted(service: Service) -> tuple[float, float]:
    """Pictures and batches so far."""
    with _direct.open(f"{service.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = dict(re.findall(r"^inception_v4_batch_pictures_(sum|count) (\S+)$", text, re.M))
    return float(found["sum"]), float(found["count"])


def _measure(service: Service, count: int, pictures: list[bytes], seconds: float) -> None:
    before = _counted(service)
    taken = asyncio.run(_load(service.url, count, pictures, seconds))
    after = _counted(service)
    service.seconds.setdefault(count, []).extend(taken)
    service.spent[count] = service.spent.get(count, 0.0) + seconds
    service.pictures[count] = service.pictures.get(count, 0.0) + after[0] - before[0]
    service.batches[count] = service.batches.get(count, 0.0) + after[1] - before[1]
    say(f"{service.name}, {count} clients: {len(taken) / seconds:.1f} requests/s")


async def _load(url: str, count: int, pictures: list[bytes], seconds: float) -> list[float]:
    """Seconds of each request that was answered within `seconds`, which begin when all clients are under way."""
    taken: list[float] = []
    begin = time.perf_counter() + _WARM_UP * seconds
    end = begin + seconds
    place = urlsplit(url)

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port or 80)
        try:
            while (start := time.perf_counter()) < end:
                await _request(reader, writer, place.netloc, pictures[number % len(pictures)])
                if begin <= time.perf_counter() <= end:
                    taken.append(time.perf_counter() - start)
                number += 1
        finally:
            writer.close()

    await asyncio.gather(*(client(number) for number in range(count)))
    return taken


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, picture: bytes) -> None:
    """One picture over a connection that stays; raises where it was not named."""
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
    )
    writer.write(head.encode() + picture)
    await writer.drain()
    answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = re.search(r"content-length: (\d+)", answer, re.I)
    body = await reader.readexactly(int(length[1]) if length else 0)
    if not answer.startswith("HTTP/1.1 200"):
        raise click.ClickException(f"the service answered {answer.splitlines()[0]} {body[:200]!r}")


def _row(service: Service, count: int) -> list[str]:
    taken = service.seconds[count]
    if len(taken) < 2:
        raise click.ClickException(f"{len(taken)} answers of {service.name} within the time: give more --seconds")
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return [
        service.name, str(count), f"{len(taken) / service.spent[count]:.2f}", f"{1e3 * cuts[49]:.0f}",
        f"{1e3 * cuts[98]:.0f}", f"{service.pictures[count] / max(1.0, service.batches[count]):.1f}",
        str(len(taken)),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
