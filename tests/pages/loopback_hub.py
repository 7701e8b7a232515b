"""As much of the Hugging Face hub as uploading and downloading need, on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

TOKEN = "hf_loopback"
COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Files by repository; large ones come through LFS, as the real hub wants them."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    stored: ClassVar[dict[str, bytes]] = {}
    private: ClassVar[dict[str, bool]] = {}
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        path, values = self.path, json.loads(body.splitlines()[0]) if body else {}
        if path == "/api/repos/create":
            name = f"{values['organization']}/{values['name']}" if values.get("organization") else values["name"]
            self.repositories.setdefault(name, {})
            self.private[name] = bool(values.get("private")) or values.get("visibility") == "private"
            return self._answer(200, {"url": f"{self._here}/{name}", "name": name, "id": name})
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] > 10**6 else "regular", "shouldIgnore": False}
                for f in values["files"]
            ]
            return self._answer(200, {"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self._here}/lfs/{o['oid']}"}}}
                for o in values["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            return self._commit(path.split("/api/models/")[1].split("/commit/")[0], body)
        return self._answer(200, {})

    def _commit(self, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repositories[name][value["path"]] = self.stored[value["oid"]]
        self._answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{self._here}/{name}/commit/{COMMIT}"})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert hashlib.sha256(body).hexdigest() == self.path.rpartition("/")[2]
        self.stored[hashlib.sha256(body).hexdigest()] = body
        self._answer(200, {})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name, found, rest = self.path.lstrip("/").partition("/resolve/")
        data = self.repositories.get(name, {}).get(rest.partition("/")[2]) if found else None
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if name in self.repositories else "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        return None

    @property
    def _here(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _answer(self, code: int, values: dict[str, Any]) -> None:
        data = json.dumps(values).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def loopback_hub() -> Iterator[str]:
    """The address of an empty hub."""
    for shelf in (Hub.repositories, Hub.stored, Hub.private):
        shelf.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
