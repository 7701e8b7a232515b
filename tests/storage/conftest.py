"""A store that speaks S3's protocol, on loopback, with credentials in the environment as users have them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import fsspec
import pytest
from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "AKIALOOPBACKSTORE000", "AWS_SECRET_ACCESS_KEY": "loopback-secret-never-in-a-log"}
_names = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[ThreadedMotoServer]:
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield started
    started.stop()


@pytest.fixture
def bucket(server: ThreadedMotoServer) -> str:
    """The name of a new bucket."""
    name = f"bucket-{next(_names)}"
    fsspec.filesystem("s3").mkdir(name)
    return name


@pytest.fixture
def store(bucket: str) -> Callable[[str], str]:
    """Gives addresses in a new bucket."""
    return lambda name: f"s3://{bucket}/{name}"
