"""One small face of object storage: list, get, put. Everything that goes wrong is one line without a secret.

Credentials come from the chain that each store's own library follows (environment, configuration files, the machine's
role). Nothing of them passes through here.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inception_v4.files import DiskFull, atomic_write
from inception_v4.settings.addresses import SCHEMES, redacted, require_plain

PART = 50 << 20
"""Bytes of a part of a large upload; a store's checksum of such an object depends on it."""

SMALL_FILE = 1 << 16
"""Bytes of a file that is read into memory as a whole."""

_WHOLE_AT_ONCE = ("s3", "obs", "gs")
_S3_PROTOCOL = ("s3", "obs")
_DIRECTORY_BUCKET = "--x-s3"
"""End of the names of buckets whose ETags are no checksums."""
_CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
"""Settings of botocore since 1.36."""
_MD5 = re.compile(r'"?([0-9a-f]{32})(?:-(\d+))?"?')
_OBS_ENDPOINTS = ("OBS_ENDPOINT", "S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


class StorageError(RuntimeError):
    """Storage that cannot be reached, refuses, or gives other bytes than it took; one line."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a place: its name relative to it, its size in bytes, and what changes when it does."""

    name: str
    size: int
    version: str


class Place:
    """A folder or a file behind an address.

    Args:
        address: `s3://bucket/folder`, `obs://`, `gs://`, `file://` or `memory://`.
    Raises:
        ValueError: an address of another kind, or with a secret in it; a library that is not installed.
    """

    def __init__(self, address: str) -> None:
        require_plain(address)
        self.address = address.rstrip("/")
        self.scheme, _, self._rest = self.address.partition("://")
        self._files = _filesystem(self.scheme)
        self._root = os.path.abspath(f"/{self._rest}") if self.scheme == "file" else self._rest
        self._sizes_only = self.scheme == "s3" and self._rest.partition("/")[0].endswith(_DIRECTORY_BUCKET)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self._rest.rpartition("/")[2]

    def entries(self) -> list[RemoteFile]:
        """All files in it at any depth, by name; one with an empty name where the address is a file's."""
        with _told(self.address):
            self._files.invalidate_cache()
            if self._files.isfile(self._root):
                return [_entry("", self._files.info(self._root))]
            found = self._files.find(self._root, detail=True)
        root = self._files._strip_protocol(self._root).rstrip("/") + "/"
        files = ((path, info) for path, info in found.items() if not _is_folder(path, info))
        entries = [_entry(path.removeprefix(root), info) for path, info in files]
        for entry in entries:
            if not _is_inside(entry.name):
                raise StorageError(f"{self.address} holds {entry.name!r}, which is no name inside a folder")
        return sorted((e for e in entries if not e.name.rpartition("/")[2].endswith(".part")), key=lambda e: e.name)

    def get(self, entry: RemoteFile, target: Path) -> None:
        """Copy a file here, whole or not at all, and check its size and the checksum that the store has of it.

        Raises:
            StorageError: not reachable, or other bytes came than are there.
            DiskFull: no room.
        """
        with atomic_write(target, needed=entry.size) as temporary:
            with _told(self._path(entry.name)):
                self._files.get_file(self._path(entry.name), str(temporary))
            size = temporary.stat().st_size
            if size != entry.size or not self._has_sum_of(entry, temporary):
                raise StorageError(f"{self.address}/{entry.name}: {size} bytes came, not those that are there")

    def put(self, source: Path, name: str) -> None:
        """Copy a local file there, visible only as a whole, and check what has arrived."""
        path = self._path(name)
        with _told(f"{self.address}/{name}"):
            arrived = path if self.scheme in _WHOLE_AT_ONCE else f"{path}.part"
            if self.scheme not in _WHOLE_AT_ONCE:
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            options = {"chunksize": PART} if self.scheme in _S3_PROTOCOL else {}
            self._files.put_file(str(source), arrived, **options)
            self._check(source, arrived)
            if arrived != path:
                self._files.mv(arrived, path)
            self._files.invalidate_cache()

    def read(self, name: str) -> bytes | None:
        """The first bytes of a small file, as they are there now; None where there is none."""
        with _told(f"{self.address}/{name}"):
            self._files.invalidate_cache()
            try:
                return bytes(self._files.cat_file(self._path(name)))[:SMALL_FILE]
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes, *, only_new: bool = False) -> bool:
        """Write a small file; with `only_new` False where there is one, as far as the store can tell (`excludes`)."""
        path = self._path(name)
        with _told(f"{self.address}/{name}"):
            if self.scheme not in _WHOLE_AT_ONCE:
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            if only_new:
                try:
                    self._files.pipe_file(path, content, mode="create")
                    return True
                except Exception:
                    # There is one; or the store, or the library's version, does not know the condition.
                    if self.read(name) is not None:
                        return False
            self._files.pipe_file(path, content)
        return True

    @property
    def excludes(self) -> bool:
        """Whether the store may know how to create a file only where there is none."""
        return self.scheme in _WHOLE_AT_ONCE

    def delete(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        with _told(f"{self.address}/{name}"), suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def _has_sum_of(self, entry: RemoteFile, file: Path) -> bool:
        """Whether a file has the checksum of an object; True where the store tells none."""
        if not self._sizes_only and _agrees(entry.version, file) is False:
            self._sizes_only = self._is_encrypted(entry.name)
            return self._sizes_only
        return True

    def _is_encrypted(self, name: str) -> bool:
        """Whether an object is under a key of the customer or of a key service: its ETag looks like an MD5, and is
        none. Buckets have one way of encryption as a rule, so that one object is asked about and not each."""
        if self.scheme not in _S3_PROTOCOL:
            return False
        path = self._path(name)
        bucket, key, _ = self._files.split_path(path)
        with _told(path):
            told = self._files.call_s3("head_object", Bucket=bucket, Key=key)
        return "SSECustomerAlgorithm" in told or told.get("ServerSideEncryption", "AES256") != "AES256"

    def _check(self, source: Path, path: str) -> None:
        self._files.invalidate_cache()
        info = self._files.info(path)
        same = info["size"] == source.stat().st_size
        if same and not _agrees(_version(info), source):
            # No checksum that can be compared, or one of another kind: what is there is read.
            with self._files.open(path, "rb") as there, open(source, "rb") as here:
                same = _digest(there, hashlib.sha256()).digest() == _digest(here, hashlib.sha256()).digest()
        if not same:
            raise StorageError(f"{redacted(self.address)}: what arrived is not what was sent")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def _filesystem(scheme: str) -> Any:
    import fsspec

    try:
        if scheme == "obs":
            return fsspec.filesystem("s3", **_obs_options())
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise StorageError(f"{scheme}:// needs a library: pip install 'inception-v4[{SCHEMES[scheme]}]'") from error


def _obs_options() -> dict[str, Any]:
    """What Huawei's service wants of an S3 client: the bucket in the host's name, and no checksum beyond an MD5."""
    import botocore.config

    endpoint = next((os.environ[name] for name in _OBS_ENDPOINTS if os.environ.get(name)), None)
    if endpoint is None:
        raise StorageError("obs:// needs the address of its service: set OBS_ENDPOINT, as https://obs.REGION.HOST")
    endpoint = endpoint if "://" in endpoint else f"https://{endpoint}"
    style = "virtual" if _may_have_subdomains(urlsplit(endpoint).hostname or "") else "path"
    known = [name for name in _CHECKSUMS if name in botocore.config.Config.OPTION_DEFAULTS]
    config: dict[str, Any] = {"s3": {"addressing_style": style}, **dict.fromkeys(known, "when_required")}
    return {"endpoint_url": endpoint, "config_kwargs": config}


def _may_have_subdomains(host: str) -> bool:
    """False for an IP address, localhost and other names without a dot, as of containers: no DNS knows
    BUCKET.localhost."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." in host
    return False


def _entry(name: str, info: dict[str, Any]) -> RemoteFile:
    return RemoteFile(name, int(info["size"]), _version(info))


def _version(info: dict[str, Any]) -> str:
    """What changes when a file does: its checksum where the store tells one."""
    if md5 := info.get("md5Hash"):  # Google's
        return base64.b64decode(md5).hex()
    if crc := info.get("crc32c"):  # of an object that was composed of others
        return f"crc32c {crc}"
    return str(info.get("ETag") or info.get("mtime") or info.get("created") or "")


def _is_folder(path: str, info: dict[str, Any]) -> bool:
    """Whether what a store lists is a folder: also an empty object by which a store's console shows one."""
    return info.get("type") == "directory" or (path.endswith("/") and not info["size"])


def _is_inside(name: str) -> bool:
    """Whether a name can be a file's in a folder."""
    return bool(name) and name[0] != "/" and name[-1] != "/" and ".." not in name.split("/") and "\\" not in name


def _agrees(version: str, file: Path) -> bool | None:
    """Whether a file has the MD5 or CRC32C that a store tells of an object, whole or in parts; None where it tells
    none."""
    if version.startswith("crc32c "):
        return _crc32c(file) == version.removeprefix("crc32c ")
    match = _MD5.fullmatch(version)
    if match is None:
        return None
    with open(file, "rb") as content:
        if match[2] is None:
            return bool(_digest(content, hashlib.md5(usedforsecurity=False)).hexdigest() == match[1])
        parts = [hashlib.md5(block, usedforsecurity=False).digest() for block in iter(lambda: content.read(PART), b"")]
    if len(parts) != int(match[2]):
        return None
    return hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest() == match[1] or None


def _crc32c(file: Path) -> str:
    """As Google writes it: base64 of four bytes, the highest first."""
    import google_crc32c  # comes with gcsfs

    with open(file, "rb") as content:
        return base64.b64encode(_digest(content, google_crc32c.Checksum()).digest()).decode()


def _digest(content: Any, total: Any) -> Any:
    """`total`, a checksum that has seen nothing yet, of the rest of an open file."""
    for block in iter(lambda: content.read(1 << 20), b""):
        total.update(block)
    return total


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Whatever a store's library raises, as one line that names the address and no secret."""
    try:
        yield
    except (StorageError, DiskFull):
        raise
    except FileNotFoundError as error:
        raise StorageError(f"{redacted(address)} does not exist, or may not be seen: check the address") from error
    except Exception as error:
        reason = redacted(" ".join(str(error).split()))[:200] or type(error).__name__
        raise StorageError(f"{redacted(address)} cannot be reached or refuses ({reason})") from None
