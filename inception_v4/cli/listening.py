"""The port that `serve` and `demo` listen on: taken first, so that a wrong one is said at once."""

from __future__ import annotations

import signal
import socket
from typing import Any


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A bound socket, and the address that a browser asks; port 0 is any that is free.

    Raises:
        OSError: this machine has no such address, or another program has the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}): give another --port (0: any that is "
            "free), or another --host"
        ) from error
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    return bound, f"http://{shown}:{bound.getsockname()[1]}"


def serve_until_stopped(app: Any, bound: socket.socket, **options: Any) -> None:
    """Serve until SIGTERM or SIGINT comes and what was asked has been answered."""
    import uvicorn

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises it again when all has ended
    config = uvicorn.Config(app, http="h11", access_log=False, server_header=False, **options)
    uvicorn.Server(config).run(sockets=[bound])
