"""Stores that speak S3's and Google's protocols, on loopback, with what users have in their environment."""

from __future__ import annotations

import itertools
import logging
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


@pytest.fixture(scope="session")
def google() -> Iterator[str]:
    """The address of a server that speaks Google's protocol; it knows no condition for writing."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    started = emulator.create_server("127.0.0.1", 0, in_memory=True)
    started._api.daemon = True
    started.start()
    host, port = started._api._httpd.server_address[:2]
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
        # Which kind of bucket it is would be asked of another service, in need of credentials; read at the import.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setenv("NO_GCE_CHECK", "true")
        pytest.importorskip("gcsfs")
        yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def google_store(google: str) -> Callable[[str], str]:
    """Gives addresses in a new bucket."""
    name = f"bucket-{next(_names)}"
    fsspec.filesystem("gs").mkdir(name)
    return lambda path: f"gs://{name}/{path}"
