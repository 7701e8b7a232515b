"""What single stores do otherwise: folders that are objects, Huawei's addresses, ETags that are no checksums."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import botocore.config
import fsspec
import pytest
from moto.s3.models import FakeKey

from inception_v4.storage.fetch import local_copy
from inception_v4.storage.remote import Place, RemoteFile, StorageError

OBS = "obs.cn-north-4.myhuaweicloud.com"


def _with_consoles_folders(scheme: str, folder: str) -> None:
    """A picture in a folder that a store's console has made, as it has those around it and an empty one."""
    files = fsspec.filesystem(scheme)
    for marker in ("", "cat/", "empty/", "empty/deep/"):
        files.pipe_file(f"{folder}/{marker}".removesuffix("/") + "/", b"")
    files.pipe_file(f"{folder}/cat/a.jpg", b"a picture")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_folders_that_are_objects_are_no_files(scheme: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    address = request.getfixturevalue("google_store" if scheme == "gs" else "store")("photos")
    _with_consoles_folders(scheme, address.partition("://")[2])
    assert [(entry.name, entry.size) for entry in Place(address).entries()] == [("cat/a.jpg", 9)]
    assert [entry.name for entry in Place(f"{address}/").entries()] == ["cat/a.jpg"]
    copy = Path(local_copy(address, cache=tmp_path))
    assert copy.name.startswith("photos-") and (copy / "cat" / "a.jpg").read_bytes() == b"a picture"
    with pytest.raises(StorageError, match="holds no files"):
        local_copy(f"{address}/empty", cache=tmp_path)


@pytest.mark.parametrize(("name", "there"), [("cat/", "photos/cat/"), ("", "photos/")])
def test_an_object_with_content_and_a_folders_name_is_refused(
    store: Callable[[str], str], name: str, there: str
) -> None:
    fsspec.filesystem("s3").pipe_file(store(there).removeprefix("s3://"), b"x")
    with pytest.raises(StorageError, match=f"holds {name!r}, which is no name inside a folder"):
        Place(store("photos")).entries()


@pytest.mark.parametrize(
    ("endpoint", "host", "path"),
    [
        (f"https://{OBS}", f"photos.{OBS}", "/x/a"),
        (OBS, f"photos.{OBS}", "/x/a"),
        ("http://127.0.0.1:9", "127.0.0.1", "/photos/x/a"),
        ("http://[::1]:9", "::1", "/photos/x/a"),
        ("http://localhost:9", "localhost", "/photos/x/a"),
        ("http://minio:9", "minio", "/photos/x/a"),
    ],
)
@pytest.mark.usefixtures("server")
def test_obs_has_the_bucket_in_the_hosts_name(
    endpoint: str, host: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBS_ENDPOINT", endpoint)
    address = urlsplit(Place("obs://photos/x")._files.url("photos/x/a", client_method="put_object"))
    assert (address.hostname, address.path) == (host, path) and "checksum" not in address.query.lower()


@pytest.mark.usefixtures("server")
def test_a_botocore_that_knows_no_such_checksums_is_given_no_word_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        monkeypatch.delitem(botocore.config.Config.OPTION_DEFAULTS, name)
    monkeypatch.setenv("OBS_ENDPOINT", f"https://{OBS}")
    place = Place("obs://photos/x")
    assert place._files.config_kwargs == {"s3": {"addressing_style": "virtual"}}


@pytest.fixture
def listener() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that takes everything, and the headers of what it was sent."""
    taken: list[dict[str, str]] = []

    class Taking(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # with which clients that ask whether to go on are told

        def do_PUT(self) -> None:
            taken.append({name.lower(): value for name, value in self.headers.items()})
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("ETag", '"0"')
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Taking) as started:
        thread = threading.Thread(target=started.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{started.server_port}", taken
        started.shutdown()
        thread.join()


@pytest.mark.usefixtures("server")
def test_obs_is_sent_no_checksums_of_newer_kinds(
    listener: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, taken = listener
    fsspec.filesystem("s3", endpoint_url=address).pipe_file("photos/a", b"a picture")
    monkeypatch.setenv("OBS_ENDPOINT", address)
    Place("obs://photos")._files.pipe_file("photos/a", b"a picture")
    amazons, obs = (
        {name for name in headers if "checksum" in name or "trailer" in name or "encoding" in name} for headers in taken
    )
    assert "x-amz-checksum-crc32" in amazons, "a control"
    assert obs <= {"accept-encoding"}


@pytest.fixture
def amazons_etags(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The server tells of encrypted objects what Amazon's tells, an ETag that looks like an MD5 and is none; of which
    objects it was asked by HEAD."""
    plain, headers = FakeKey.etag.fget, FakeKey.response_dict.fget
    asked: list[str] = []

    def etag(key: FakeKey) -> str:
        own = "of-the-customer" in key.name or key.encryption not in (None, "AES256")
        return f'"{hashlib.md5(key.value + b"salt").hexdigest()}"' if own else plain(key)

    def told(key: FakeKey) -> dict[str, object]:
        customers = {"x-amz-server-side-encryption-customer-algorithm": "AES256"}
        return headers(key) | (customers if "of-the-customer" in key.name else {})

    monkeypatch.setattr(FakeKey, "etag", property(etag))
    monkeypatch.setattr(FakeKey, "response_dict", property(told))
    send = fsspec.filesystem("s3").call_s3

    def counted(method: str, *arguments: object, **options: str) -> object:
        asked.extend([options["Key"]] * (method == "head_object"))
        return send(method, *arguments, **options)

    monkeypatch.setattr(fsspec.filesystem("s3"), "call_s3", counted)
    return asked


@pytest.mark.parametrize("encryption", ["aws:kms", "aws:kms:dsse", "of-the-customer"])
def test_encrypted_objects_have_etags_that_are_no_checksums(
    bucket: str, amazons_etags: list[str], tmp_path: Path, encryption: str
) -> None:
    kept = {"ServerSideEncryption": encryption} if encryption.startswith("aws") else {}
    for number in range(3):
        name = f"data/{encryption.replace(':', '-')}/{number}"
        fsspec.filesystem("s3").call_s3("put_object", Bucket=bucket, Key=name, Body=b"x" * 1000, **kept)
    place = Place(f"s3://{bucket}/data")
    for entry in place.entries():
        assert hashlib.md5(b"x" * 1000).hexdigest() not in entry.version, "a control"
        place.get(entry, tmp_path / entry.name)
        assert (tmp_path / entry.name).read_bytes() == b"x" * 1000
    assert len(amazons_etags) == 1, "the first object is asked about"
    with pytest.raises(StorageError, match="1000 bytes came, not those that are there"):
        place.get(RemoteFile(entry.name, 999, entry.version), tmp_path / "other")


def test_a_damaged_object_of_another_encryption_is_an_error(
    bucket: str, amazons_etags: list[str], tmp_path: Path
) -> None:
    put = fsspec.filesystem("s3").call_s3
    put("put_object", Bucket=bucket, Key="data/a", Body=b"x" * 1000, ServerSideEncryption="AES256")
    place = Place(f"s3://{bucket}/data")
    (entry,) = place.entries()
    place.get(entry, tmp_path / "a")
    assert amazons_etags == [], "nothing was in doubt"
    with pytest.raises(StorageError, match="1000 bytes came, not those that are there"):
        place.get(RemoteFile("a", 1000, '"' + "0" * 32 + '"'), tmp_path / "b")
    assert amazons_etags == ["data/a"] and not (tmp_path / "b").exists()


def test_directory_buckets_have_no_checksums(server: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_S3_DISABLE_EXPRESS_SESSION_AUTH", "true")  # the server has no sessions
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "_cache", {})
    name = f"photos-{os.getpid()}--use1-az4--x-s3"
    fsspec.filesystem("s3").mkdir(name)
    place = Place(f"s3://{name}/data")
    (tmp_path / "a").write_bytes(b"x" * 1000)
    place.put(tmp_path / "a", "a")
    place.get(RemoteFile("a", 1000, '"' + "0" * 32 + '"'), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x" * 1000
    with pytest.raises(StorageError, match="1000 bytes came"):
        place.get(RemoteFile("a", 999, '"' + "0" * 32 + '"'), tmp_path / "c")


def test_a_file_that_is_gone_already_is_no_error_of_removing_it(
    store: Callable[[str], str], google_store: Callable[[str], str], tmp_path: Path
) -> None:
    for address in (store("x"), google_store("x"), f"file://{tmp_path}/x", f"memory://{tmp_path.name}/x"):
        place = Place(address)
        place.write("a", b"1")
        place.delete("a")
        place.delete("a")
        assert place.read("a") is None
