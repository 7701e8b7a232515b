"""The network as an HTTP service for programs (FastAPI): predict, health, metrics. Imported only where it is served."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteError
from starlette.requests import ClientDisconnect
from torch import Tensor

from inception_v4 import __version__
from inception_v4.data.pictures import CorruptImage, decode_picture
from inception_v4.files import sha256_of
from inception_v4.inference.predict import Prediction, Predictor, UnreadPicture
from inception_v4.pages.batching import Batcher, NetworkFailed, QueueFull
from inception_v4.weights.source import local_weights, locate

_log = logging.getLogger(__name__)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Limits:
    """What a service takes.

    Attributes:
        body: bytes of a request; bodies: of all requests under way, at least one of the largest.
        pixels: of a picture; pictures: in a request, and never more than `queue`.
        seconds: for a request's body to arrive.
        queue: pictures under way at once.
        wait: seconds that a picture waits for others, to be computed together; batch: pictures computed together.
    """

    body: int = 32 << 20
    bodies: int = 512 << 20
    pixels: int = 50_000_000
    pictures: int = 64
    seconds: float = 30.0
    queue: int = 256
    wait: float = 0.005
    batch: int = 16


Shown = tuple[int, float]
"""The most classes of a picture, and their least probability."""


class Meters:
    """What /metrics tells."""

    def __init__(self, batcher_size: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self.registry, "namespace": "inception_v4"}
        self.requests = Counter("requests", "Answered requests", ["path", "status"], **named)
        self.pictures = Counter("pictures", "Pictures that were named", **named)
        self.unread = Counter("unread_pictures", "Pictures that could not be read", **named)
        self.seconds = Histogram("request_seconds", "From a request's head to its answer", **named)
        self.batches = Histogram("batch_pictures", "Pictures computed together", buckets=_BATCHES, **named)
        Gauge("under_way_pictures", "Pictures that wait or are computed", **named).set_function(batcher_size)


def create_service(predictor: Predictor, limits: Limits = Limits(), token: str | None = None) -> FastAPI:
    """The application.

    Args:
        token: what `Authorization: Bearer` must have; None: anybody may ask. /healthz is open to all.
    """
    predictor.decoding = replace(predictor.decoding, max_pixels=limits.pixels)
    meters = Meters(lambda: batcher.under_way)
    batcher = Batcher(
        predictor.crop_probabilities, batch_size=limits.batch, wait=limits.wait, capacity=limits.queue,
        observe=meters.batches.observe,
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    # The interactive pages would load scripts from elsewhere.
    app = FastAPI(title="inception-v4", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.middleware("http")(_guard(meters, token))
    front = _Front(predictor, limits, batcher, meters)
    app.add_api_route("/predict", front.predict, methods=["POST"])
    app.add_api_route("/healthz", front.health, methods=["GET"])
    app.add_api_route("/metrics", front.metrics, methods=["GET"])
    return app


def _guard(meters: Meters, token: str | None) -> Callable[..., Awaitable[Response]]:
    """Asks for the token, and measures."""
    known = ("/predict", "/healthz", "/metrics", "/openapi.json")

    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        began, path = time.perf_counter(), request.url.path
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if token and path != "/healthz" and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            response: Response = JSONResponse(
                {"detail": "give the header Authorization: Bearer TOKEN"}, 401, {"WWW-Authenticate": "Bearer"}
            )
        else:
            response = await _answered(request, proceed)
        meters.requests.labels(path if path in known else "other", str(response.status_code)).inc()
        if path == "/predict":
            meters.seconds.observe(time.perf_counter() - began)
        return response

    return guard


async def _answered(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
    """With a status for what went wrong here: it is counted as every other."""
    try:
        return await proceed(request)
    except NetworkFailed as error:
        _log.error("%s", error)
        return JSONResponse({"detail": str(error)}, 500)
    except Exception:  # a defect: the log has it whole, the client nothing of this machine
        _log.exception("%s %s failed", request.method, request.url.path)
        return JSONResponse({"detail": "the service failed: its log says why"}, 500)


class _Room:
    """Memory of one request's body, of what all of them may hold together."""

    def __init__(self, most: int, held: list[int]) -> None:
        self._most, self._held, self._mine = most, held, 0

    def take(self, size: int) -> None:
        if self._held[0] + size > self._most:
            raise QueueFull(f"the requests under way hold {self._held[0]} bytes: ask again in a second")
        self._held[0] += size
        self._mine += size

    def close(self) -> None:
        self._held[0] -= self._mine


class _Front:
    """The requests."""

    def __init__(self, predictor: Predictor, limits: Limits, batcher: Batcher, meters: Meters) -> None:
        self._predictor, self._limits, self._batcher, self._meters = predictor, limits, batcher, meters
        self._sha256 = sha256_of(locate(local_weights(predictor.sources[0])).path)  # tells deployments apart
        self._most = min(limits.pictures, limits.queue)  # in a request: more could never be admitted
        self._most_held, self._held = max(limits.bodies, limits.body), [0]

    async def health(self) -> dict[str, Any]:
        """Whether it answers, and what with."""
        return {"status": "ok", "weights": self._predictor.info.source, "sha256": self._sha256,
                "engine": self._predictor.engine, "classes": len(self._predictor.class_names)}  # fmt: skip

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(generate_latest(self._meters.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def predict(self, request: Request, top_k: int | None = None, threshold: float | None = None) -> JSONResponse:
        """The classes of pictures: one as the request's body, or several as multipart/form-data."""
        if top_k is not None and top_k < 1:
            raise HTTPException(422, f"top_k {top_k} must be at least 1")
        if threshold is not None and not 0 <= threshold <= 1:
            raise HTTPException(422, f"threshold {threshold} must be from 0 to 1")
        shown = self._predictor.usual(top_k, threshold)
        room = _Room(self._most_held, self._held)
        try:
            pictures = await self._pictures(request, room)
            results = await self._admitted(pictures, shown)
        except QueueFull as error:
            raise HTTPException(429, str(error), {"Retry-After": "1"}) from error
        finally:
            room.close()
        unread = sum(isinstance(result, UnreadPicture) for result in results)
        self._meters.unread.inc(unread)
        self._meters.pictures.inc(len(results) - unread)
        return JSONResponse({"results": [r.to_dict() for r in results]}, 422 if unread == len(results) else 200)

    async def _admitted(self, pictures: list[tuple[str, bytes]], shown: Shown) -> list[Prediction | UnreadPicture]:
        self._batcher.admit(len(pictures))
        try:
            return await self._name(pictures, shown)
        finally:
            self._batcher.leave(len(pictures))

    async def _name(self, pictures: list[tuple[str, bytes]], shown: Shown) -> list[Prediction | UnreadPicture]:
        decoded = await asyncio.gather(*(asyncio.to_thread(self._crop, name, data) for name, data in pictures))
        outputs = await self._batcher.outputs([crop for crop in decoded if isinstance(crop, Tensor)])
        ranked = self._predictor.ranked(torch.stack(outputs), *shown) if outputs else iter(())
        return [
            UnreadPicture(name, crop) if isinstance(crop, str) else Prediction(name, *next(ranked))
            for (name, _), crop in zip(pictures, decoded, strict=True)
        ]

    def _crop(self, name: str, data: bytes) -> Tensor | str:
        """What the network sees, or why it sees nothing."""
        try:
            return self._predictor.crop(decode_picture(data, name, self._predictor.decoding))
        except CorruptImage as error:
            return error.fault  # the remedies are a command's

    async def _pictures(self, request: Request, room: _Room) -> list[tuple[str, bytes]]:
        """Names and contents."""
        body = await self._body(request, room)
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            if not body:
                raise HTTPException(400, "send a picture as the body, or several as multipart/form-data")
            return [("picture", body)]

        async def replay() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        most = self._most
        try:
            async with Request(request.scope, replay).form(max_files=most, max_fields=most) as form:
                files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
                found = [(part.filename or "picture", await part.read()) for part in files]
        except StarletteError as error:
            raise HTTPException(400, str(error.detail)) from error
        if not found:
            raise HTTPException(400, "the form holds no file: send each picture as a part with a filename")
        return found

    async def _body(self, request: Request, room: _Room) -> bytes:
        """Of a limited size, within a limited time."""
        most, size = self._limits.body, 0
        parts: list[bytes] = []
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            raise HTTPException(413, f"{declared} bytes are more than {most}")
        stream = request.stream().__aiter__()
        end = time.monotonic() + self._limits.seconds
        while True:
            try:
                part = await asyncio.wait_for(anext(stream), max(0.0, end - time.monotonic()))
            except StopAsyncIteration:
                return b"".join(parts)
            except ClientDisconnect as error:
                raise HTTPException(400, "the connection ended within the body") from error
            except asyncio.TimeoutError as error:
                raise HTTPException(408, f"the body took longer than {self._limits.seconds:g} s") from error
            size += len(part)
            if size > most:
                raise HTTPException(413, f"the body is more than {most} bytes")
            room.take(len(part))
            parts.append(part)
