"""What lets requests through to the demo's page, and nothing else: its own paths, small bodies, files of one folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_FILE, _JOIN = "/gradio_api/file=", "/gradio_api/queue/join"
_PAGE = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static|svelte)/.+"
    r"|gradio_api/(upload|upload_progress|queue/(join|data)|heartbeat/\w+|startup-events|app_id|cancel|reset|info))?/?"
)
"""What the page asks for. gradio answers much else: runs of the past, other servers' files, editors."""

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)
"""A browser asks nobody but this server."""

_LONGEST = 500
_OVERHEAD = 64 << 10  # bytes around the picture in a request
_KEPT = 64
"""Largest requests that the folder may hold together."""


_forbidden = PlainTextResponse("this file is not readable here", 403)


class Gate:
    """Middleware.

    Args:
        folder: the only one whose files are readable.
        most: bytes of a request's body.
    """

    def __init__(self, app: ASGIApp, *, folder: Path, most: int) -> None:
        self._app, self._folder, self._most = app, folder.resolve(), most + _OVERHEAD
        self._too_large = PlainTextResponse(f"the request has more than {most} bytes", 413)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and (refusal := self._refusal(scope)):
            await refusal(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].startswith(_JOIN):
            await self._join(scope, receive, send)
        elif scope["type"] == "http":
            await self._pass(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        """The answer to what is not let through."""
        path = scope["path"]
        if "file" in path and path.startswith("/gradio_api/"):
            named = path.removeprefix(_FILE)
            return None if named != path and self._is_ours(named) else _forbidden
        if len(path) > _LONGEST or "\0" in path or not _PAGE.fullmatch(path):
            return PlainTextResponse("there is no such page", 404)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            return self._too_large
        if path.startswith("/gradio_api/upload") and scope["method"] == "POST" and self._is_full():
            return PlainTextResponse("too many pictures have been sent: try again in ten minutes", 429)
        return None

    def _is_ours(self, path: str) -> bool:
        try:
            file = Path(path).resolve()
            return file.is_relative_to(self._folder) and file.is_file()
        except (OSError, ValueError):  # a name too long, or with a NUL in it
            return False

    def _is_full(self) -> bool:
        return sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file()) > _KEPT * self._most

    async def _join(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A picture is to be named. gradio would read whatever path of this machine is given as an upload's."""
        body = b""
        try:
            async for part in Request(scope, receive).stream():
                body += part
                if len(body) > _OVERHEAD:
                    return await self._too_large(scope, receive, send)
        except ClientDisconnect:
            return None  # the visitor has gone
        try:
            paths = list(_paths(json.loads(body)))
        except (ValueError, RecursionError):
            return await PlainTextResponse("this is no JSON", 400)(scope, receive, send)
        if not all(isinstance(path, str) and self._is_ours(path) for path in paths):
            return await _forbidden(scope, receive, send)
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        await self._pass(scope, replay, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, begun = 0, False

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return {"type": "http.disconnect"} if size > self._most else message

        async def guarded(message: Message) -> None:
            nonlocal begun
            if size > self._most and not begun:
                return  # what the application says of a body that was cut off
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        try:
            await self._app(scope, counted, guarded)
        except ClientDisconnect:
            if size <= self._most:
                return  # the visitor has gone
        if size > self._most and not begun:
            await self._too_large(scope, receive, send)


def _paths(value: Any) -> Iterator[Any]:
    """What the files in a request's values are said to be; None is no file."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        yield from _paths(list(value.values()))
    elif isinstance(value, list):
        for each in value:
            yield from _paths(each)
