"""`serve`, on loopback: answers, batches, limits, a full queue, hostile requests, a graceful stop."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from colours import COLOURS, colour_network
from photos import encoded
from PIL import Image
from running import command, environment
from temporary import NewFolder

from inception_v4.cli.main import run
from inception_v4.inference.predict import Predictor

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")
pytest.importorskip("prometheus_client")

from inception_v4.pages.service import Limits, create_service  # noqa: E402 it imports FastAPI


@pytest.fixture(scope="module")
def network(module_folder: NewFolder) -> Path:
    return colour_network(module_folder("colours"))


@pytest.fixture
def predictor(network: Path) -> Predictor:
    return Predictor(str(network), device="cpu")


def picture(colour: str, fmt: str = "JPEG") -> bytes:
    return encoded(Image.new("RGB", (90, 80), "lime" if colour == "green" else colour), fmt)


@contextmanager
def served(predictor: Predictor, limits: Limits | None = None, token: str | None = None) -> Iterator[Any]:
    """A client of a real server in a thread."""
    config = uvicorn.Config(
        create_service(predictor, limits or Limits(), token), port=0, log_level="error", http="h11", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            client.server = server
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def test_answers_are_the_predictors_own(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(picture("green"))
    expected = predictor([tmp_path / "x.jpg"])[0].to_dict() | {"picture": "picture"}
    with served(predictor) as client:
        answer = client.post("/predict", content=picture("green"))
        assert answer.status_code == 200 and answer.json() == {"results": [expected]}
        files = [("a", (f"{name}.png", picture(name, "PNG"))) for name in COLOURS] + [("b", ("bad.png", b"\x89PNG"))]
        rows = client.post("/predict?top_k=1", files=files).json()["results"]
        assert [row.get("class") for row in rows] == [*COLOURS, None]
        assert [row["picture"] for row in rows] == ["red.png", "green.png", "blue.png", "bad.png"]
        assert "cannot decode bad.png" in rows[3]["error"] and len(rows[0]["top"]) == 1
        health = client.get("/healthz").json()
        assert health["status"] == "ok" and health["classes"] == 3 and "onnxruntime" in health["engine"]


def test_pictures_of_many_requests_are_computed_together(predictor: Predictor) -> None:
    with served(predictor, Limits(wait=0.5, batch=8)) as client, concurrent.futures.ThreadPoolExecutor(16) as threads:
        names = [COLOURS[i % 3] for i in range(16)]
        answers = list(threads.map(lambda name: client.post("/predict", content=picture(name)).json(), names))
        assert [a["results"][0]["class"] for a in answers] == names  # each has its own
        metrics = client.get("/metrics").text
    value = {m[1]: float(m[2]) for m in re.finditer(r"^(inception_v4_\S+) (\S+)$", metrics, re.M)}
    assert value["inception_v4_pictures_total"] == value["inception_v4_batch_pictures_sum"] == 16
    assert value["inception_v4_batch_pictures_count"] <= 4
    assert value['inception_v4_requests_total{path="/predict",status="200"}'] == 16


def test_a_full_queue_says_so_and_empties_again(predictor: Predictor) -> None:
    gate, compute = threading.Event(), predictor.crop_probabilities
    predictor.crop_probabilities = lambda crops: (gate.wait(20), compute(crops))[1]  # type: ignore[method-assign]
    with served(predictor, Limits(queue=2, batch=1)) as client, concurrent.futures.ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(client.post, "/predict", content=picture("red")) for _ in range(2)]
        end = time.monotonic() + 10
        while "under_way_pictures 2.0" not in client.get("/metrics").text:
            assert time.monotonic() < end
            time.sleep(0.01)
        refused = client.post("/predict", content=picture("red"))
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        gate.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert client.post("/predict", content=picture("red")).status_code == 200


def test_a_stop_answers_what_was_asked(predictor: Predictor) -> None:
    compute = predictor.crop_probabilities
    predictor.crop_probabilities = lambda crops: (time.sleep(0.5), compute(crops))[1]  # type: ignore[method-assign]
    with served(predictor) as client, concurrent.futures.ThreadPoolExecutor(1) as threads:
        future = threads.submit(client.post, "/predict", content=picture("blue"))
        time.sleep(0.2)
        client.server.should_exit = True
        assert future.result().json()["results"][0]["class"] == "blue"


def test_limits(predictor: Predictor) -> None:
    with served(predictor, Limits(body=5000, pixels=10_000, pictures=2, seconds=0.3), token="s3cret") as client:
        assert client.post("/predict", content=b"x").status_code == 401
        assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/healthz").status_code == 200
        client.headers["Authorization"] = "Bearer s3cret"

        def status(**request: Any) -> int:
            return int(client.post("/predict", **request).status_code)

        assert status(content=picture("red")) == 200
        assert status(content=bytes(5001)) == 413
        assert status(content=iter([bytes(3000)] * 3)) == 413  # of a length that nobody declared
        assert status(content=b"") == 400 and status(content=b"no picture") == 422
        assert status(files=[("a", ("x", picture("red")))] * 3) == 400
        assert status(data={"a": "b"}, headers={"Content-Type": "multipart/form-data; boundary=x"}) == 400
        assert status(content=picture("red"), params={"top_k": 0}) == 422
        assert status(content=bomb(20_000)) == 422 and "max_pixels" in client.post("/predict", content=bomb(200)).text
        assert client.get("/predict").status_code == 405 and client.get("/docs").status_code == 404
        port = client.base_url.port
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\nContent-Length: 9\r\n\r\nab"
        assert b" 408 " in raw(port, head)  # the rest never comes


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(2000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def raw(port: int, data: bytes, limit: float = 5) -> bytes:
    """What comes back for bytes on a socket."""
    with socket.create_connection(("127.0.0.1", port), timeout=limit) as connection:
        try:
            connection.sendall(data)
            return connection.recv(65536)
        except OSError:
            return b""


def hostile(rng: random.Random) -> bytes:
    """A request that nobody should send."""
    good = picture("red", rng.choice(["JPEG", "PNG", "GIF", "BMP", "WEBP"]))
    body = [
        good[: rng.randrange(len(good))], bomb(rng.choice([30_000, 65_000])), rng.randbytes(rng.randrange(3000)), b"",
        bytes(x ^ (rng.random() < 0.02) * rng.randrange(256) for x in good),
        b"--x\r\nContent-Disposition: form-data; name=a; filename=" + rng.randbytes(40) + b"\r\n\r\n" + good,
    ][rng.randrange(6)]  # fmt: skip
    length = rng.choice([len(body), len(body), len(body), 10**12, -1, "x"])
    heads = [
        f"POST /predict?top_k={rng.choice([1, 0, -1, 'x', 10**30])} HTTP/1.1", "POST /predict HTTP/1.1",
        "GET /../../etc/passwd HTTP/1.1", "PUT /predict HTTP/9.9", "\x00\xff",
        "POST /predict HTTP/1.1\r\nA: " + "a" * 10**5,
    ]  # fmt: skip
    kind = rng.choice(
        ["image/jpeg", "multipart/form-data; boundary=x", "multipart/form-data", "\u00ff/;;;=", "a" * 300]
    )
    lines = [rng.choice(heads), "Host: x", f"Content-Length: {length}", f"Content-Type: {kind}", "Connection: close"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def besiege(client: Any, count: int) -> None:
    """Hostile requests, some at a time; the service answers afterwards as before."""
    port = client.base_url.port
    rng = random.Random(0)
    requests = [hostile(rng) for _ in range(min(count, 2000))]
    with concurrent.futures.ThreadPoolExecutor(48) as threads:
        answers = list(threads.map(lambda i: raw(port, requests[i % len(requests)], 8), range(count)))
    codes = {answer[9:12] for answer in answers}
    assert {b"422", b"400"} <= codes and not {b"500", b"502"} & codes, codes
    answer = client.post("/predict", content=picture("blue"))
    assert answer.status_code == 200 and answer.json()["results"][0]["class"] == "blue"
    assert "under_way_pictures 0.0" in client.get("/metrics").text


def test_hostile_requests_do_no_harm(predictor: Predictor) -> None:
    with served(predictor, Limits(seconds=0.5, pixels=1_000_000)) as client:
        besiege(client, 150)


@contextmanager
def commanded(*words: str) -> Iterator[tuple[Any, int]]:
    """A client of the real command in a process of its own, and that one's number; it ends well when it is asked to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(command("serve", *words, f"--port={port}", "--device=cpu"), env=environment(),
                               stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            for _ in range(600):
                try:
                    if client.get("/healthz").status_code == 200:
                        break
                except httpx.TransportError:
                    assert process.poll() is None
                    time.sleep(0.1)
            yield client, process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def memory(number: int) -> int:
    """KiB that a process holds."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{number}/status").read_text(), re.M)
    assert found
    return int(found[1])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ten_thousand_hostile_requests_leave_no_memory_behind(network: Path) -> None:
    """In a process of its own: the clients' memory is not the service's."""
    with commanded(str(network), "--max-pixels=1000000") as (client, number):
        besiege(client, 1000)
        files, held = len(os.listdir(f"/proc/{number}/fd")), [memory(number)]
        for _ in range(5):
            besiege(client, 2000)
            held.append(memory(number))
        print(f"KiB after 1000 requests and each 2000 more: {held}")
        assert held[-1] - held[0] < 20_000, held
        assert len(os.listdir(f"/proc/{number}/fd")) <= files + 5


@pytest.mark.slow
def test_the_command_serves_and_stops_when_asked(network: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    with commanded(str(network), f"--token-file={tmp_path / 'token'}") as (client, _):
        assert client.post("/predict", content=picture("red")).status_code == 401
        answer = client.post("/predict", content=picture("red"), headers={"Authorization": "Bearer abc"})
        assert answer.json()["results"][0]["class"] == "red"


def test_an_empty_token_is_no_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("\n")
    assert run(["serve", f"--token-file={tmp_path / 'token'}"]) == 1
    assert "is empty" in capsys.readouterr().err


def test_what_fails_within_is_counted_and_the_next_request_is_answered(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    compute = predictor.crop_probabilities

    def fails(crops: Any) -> Any:
        raise MemoryError("no memory left")

    batches = iter([fails])
    predictor.crop_probabilities = lambda crops: next(batches, compute)(crops)  # type: ignore[method-assign]
    with served(predictor) as client:
        failed = client.post("/predict", content=picture("red"))
        assert failed.status_code == 500 and "no memory left" in failed.json()["detail"]
        assert client.post("/predict", content=picture("red")).status_code == 200
        metrics = client.get("/metrics").text
    assert 'requests_total{path="/predict",status="500"} 1.0' in metrics and "no memory left" in caplog.text


def test_a_broken_observer_ends_no_service(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens between two batches, the next one is computed."""
    from inception_v4.pages import batching

    stack = batching.torch.stack
    broken = iter([MemoryError("too many crops")])

    def once_broken(tensors: Any) -> Any:
        for error in broken:
            raise error
        return stack(tensors)

    with served(predictor) as client:
        monkeypatch.setattr(batching.torch, "stack", once_broken)
        assert client.post("/predict", content=picture("red")).status_code == 500
        assert client.post("/predict", content=picture("red")).status_code == 200


def test_a_client_that_goes_away_leaves_no_traceback(predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    with served(predictor) as client:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", client.base_url.port)) as connection:
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n0123456789")
        end = time.monotonic() + 10
        while 'status="400"} 3.0' not in client.get("/metrics").text:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert "Traceback" not in caplog.text and not caplog.records


def test_what_could_never_be_admitted_is_no_matter_of_waiting(predictor: Predictor) -> None:
    with served(predictor, Limits(queue=2, bodies=100, body=100_000)) as client:
        three = client.post("/predict", files=[("a", ("x.jpg", picture("red")))] * 3)
        assert three.status_code == 400 and "2" in three.json()["detail"]
        assert client.post("/predict", content=picture("red")).status_code == 200, "one is more than all may hold"


def test_a_picture_may_have_several_classes_or_none(predictor: Predictor) -> None:
    import dataclasses

    predictor.info = dataclasses.replace(predictor.info, multi_label=True)
    grey = encoded(Image.new("RGB", (90, 80), (140, 140, 0)), "PNG")  # -1 to 1: red and green 0.1, blue -1
    with served(predictor) as client:

        def classes(**asked: Any) -> list[str]:
            answer = client.post("/predict", content=grey, params=asked).json()["results"][0]
            return [row["class"] for row in answer["top"]]

        assert classes() == ["red", "green"], "the classes of at least 0.5"
        assert len(classes(top_k=3)) == 3 and classes(threshold=0.9) == [] and classes(top_k=1, threshold=0) == ["red"]
        assert client.post("/predict?threshold=2", content=grey).status_code == 422


def test_a_thin_picture_is_named_like_others(predictor: Predictor) -> None:
    thin = encoded(Image.new("RGB", (1, 30_000), "blue"), "PNG")
    with served(predictor) as client:
        assert client.post("/predict", content=thin).json()["results"][0]["class"] == "blue"


def test_health_tells_weights_apart(predictor: Predictor, network: Path) -> None:
    with served(predictor) as client:
        assert client.get("/healthz").json()["sha256"] == hashlib.sha256(network.read_bytes()).hexdigest()


def test_a_taken_port_is_said_before_any_weights_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["serve", "no/such/weights", f"--port={port}"]) == 1
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1, port {port}" in error and "--port" in error and error.count("\n") == 1
