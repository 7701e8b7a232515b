"""`demo`, on loopback: the answer to an upload, what is refused, and what a browser shows and asks for."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import browser, look_like, overflow, requested
from finding import SIDE, finder, pixels, scene
from made_run import made
from photos import encoded
from PIL import Image
from running import environment
from temporary import NewFolder

from inception_v4.cli.main import run
from inception_v4.pages.examples import write_examples

httpx = pytest.importorskip("httpx")
if importlib.util.find_spec("gradio") is None:  # not imported here: it leaves sockets open
    pytest.skip("needs gradio", allow_module_level=True)
pytest.importorskip("uvicorn")

WATCHED = """
import sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        place = arguments[1] if event == "socket.connect" else arguments[0]
        host = place[0] if isinstance(place, tuple) else place
        print("asked:", host.decode() if isinstance(host, bytes) else host, file=sys.stderr, flush=True)
sys.addaudithook(note)
from inception_v4.cli.main import main
main()
"""
"""The command line, which tells whom it connects to and whose name it looks up."""


PICTURED = "return [...document.querySelectorAll('#picture video')].map(film => film.videoWidth).filter(width => width)"
"""Widths of what a camera shows on the page; none before it shows something."""


@pytest.fixture(scope="module")
def weights(module_folder: NewFolder) -> Path:
    return finder(module_folder("finder"))


@pytest.fixture(scope="module")
def page(weights: Path, module_folder: NewFolder) -> Iterator[Any]:
    """A client of the real command in another process, which ends when it is asked to and leaves nothing."""
    work = module_folder("demo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["demo", str(weights), f"--port={port}", "--device=cpu", "--max-bytes=300000", "--max-pixels=200000"]
    with (work / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, "-c", WATCHED, *words], cwd=work, stderr=said,
                                   env=environment() | {"TMPDIR": str(work)})  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            wait(lambda: [client] if _answers(client, process) else [])
            (client.folder,) = work.glob("inception-v4-demo-*")
            client.said = work / "said"
            yield client
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (work / "said").read_text()
        assert not client.folder.exists() and {path.name for path in work.iterdir()} == {"said"}
    finally:
        process.kill()
        process.wait()


def _answers(client: Any, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "it has ended"
    try:
        return bool(client.get("/").status_code == 200)
    except httpx.TransportError:
        return False


def join(page: Any, given: Any, session: str = "s") -> Any:
    """The answer to what the page's own script sends for a picture."""
    body = {"data": [given], "fn_index": _number(page), "session_hash": session, "event_data": None, "trigger_id": None}
    return page.post("/gradio_api/queue/join", json=body)


def ask(page: Any, given: Any) -> dict[str, Any]:
    """What becomes of it."""
    session = f"s{time.monotonic_ns()}"
    assert join(page, given, session).status_code == 200
    with page.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
        for line in events.iter_lines():
            event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if event.get("msg") == "process_completed":
                return event | {"said": json.dumps(event["output"])}
    raise AssertionError("the page's answer never came")


def _number(page: Any) -> int:
    """Of the function that is called when the picture changes."""
    functions = page.get("/config").json()["dependencies"]
    return next(each["id"] for each in functions if [event for _, event in each["targets"]] == ["change"])


def upload(page: Any, content: bytes, name: str = "x.png") -> Any:
    return page.post("/gradio_api/upload", files={"files": (name, content)})


def as_given(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}


@pytest.mark.parametrize(("kind", "column", "row"), [("disc", 1, 0), ("bars", 0, 1)])
def test_an_upload_is_named_and_its_heat_is_where_the_object_is(page: Any, kind: str, column: int, row: int) -> None:
    (path,) = upload(page, encoded(scene(kind, column, row), "PNG")).json()
    event = ask(page, as_given(path))
    assert event["success"], event["said"]
    classes, heat, took = event["output"]["data"]
    assert classes["label"] == kind and len(classes["confidences"]) == 3
    assert f"{SIDE} x {SIDE} px" in took and "(Grad-CAM)" in took and "PyTorch" in took
    first, *_, last = heat["value"] if isinstance(heat, dict) else heat
    assert first["caption"].startswith(f"{kind} 9") and last["caption"].endswith(": nothing found")
    with Image.open(first["image"]["path"]) as image:
        hot = image.convert("RGB").resize((SIDE, SIDE))
    change = (pixels(hot).float() - pixels(scene(kind, column, row)).float()).abs().mean(0)
    half = SIDE // 2
    quarters = {(c, r): float(change[r * half :, c * half :][:half, :half].mean()) for c in (0, 1) for r in (0, 1)}
    assert max(quarters, key=lambda place: quarters[place]) == (column, row), quarters


def test_no_file_of_the_machine_is_readable(
    page: Any, weights: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    beside = page.folder.parent / "secret.txt"
    beside.write_text("secret")
    request.addfinalizer(beside.unlink)
    (page.folder / "link").symlink_to(beside)
    for place in (
        "/etc/passwd", str(weights), str(Path.cwd() / "setup.cfg"), "setup.cfg", str(beside),
        f"{page.folder}/../secret.txt", f"{page.folder}/%2e%2e/secret.txt", f"{page.folder}/link",
        str(page.folder), "/proc/self/environ", "a" * 5000, "%00", "http://example.com/x", "https://raw.githubusercontent.com/x",
    ):  # fmt: skip
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/proxy=", "/static/", "/assets/"):
            answer = page.get(route + place)
            assert answer.status_code in (403, 404), (route, place, answer.status_code)
    assert page.get(f"/gradio_api/file={page.folder}/star.jpg").status_code == 200, "what may be read is read"
    outside = tmp_path / "x.png"
    scene("disc", 0, 0).save(outside)
    kept = set(page.folder.rglob("*"))
    for place in (str(outside), "/etc/passwd", str(weights), str(page.folder / "link"), "http://127.0.0.1:1/x", "",
                  "setup.cfg", "data:image/png;base64,AA", 7, {"path": str(outside)}, str(page.folder)):  # fmt: skip
        assert join(page, as_given(place)).status_code == 403, place
        assert join(page, [{"x": as_given(place)}]).status_code == 403, place
    assert set(page.folder.rglob("*")) == kept, "nothing was copied to where it could be read"
    event = ask(page, as_given("x") | {"path": None, "url": "data:image/png;base64,AA"})
    assert not event["success"] or not event["output"]["data"][0]
    (path,) = upload(page, outside.read_bytes()).json()
    assert join(page, as_given(path)).status_code == 200


def test_nothing_else_of_gradio_is_there(page: Any) -> None:
    for path in ("/gradio_api/runs", "/gradio_api/vibe-code", "/monitoring", "/gradio_api/openapi.json", "/docs",
                 "/login", "/gradio_api/run/predict", "/gradio_api/call/name_it", "/gradio_api/deep_link"):  # fmt: skip
        assert page.get(path).status_code == 404 and page.post(path, json={}).status_code == 404, path
    answer = page.get("/")
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]


def test_limits_of_uploads(page: Any) -> None:
    assert upload(page, bytes(100_000)).status_code == 200
    assert upload(page, bytes(400_000)).status_code == 413
    chunks = iter([b"--b\r\nContent-Disposition: form-data; name=files; filename=x\r\n\r\n", *[bytes(50_000)] * 9])
    answer = page.post(
        "/gradio_api/upload", content=chunks, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 413, "of a length that nobody declared"
    for content, part in (
        (
            encoded(Image.new("RGB", (600, 600)), "PNG"),
            "360000 pixels|600 x 600 pixels are more than max_pixels 200000",
        ),
        (b"\x89PNG and no more", "cannot decode x.png"),
    ):
        (path,) = upload(page, content).json()
        event = ask(page, as_given(path))
        assert not event["success"] and re.search(part, event["said"]), event["said"]


def test_the_server_asks_nobody(page: Any) -> None:
    (path,) = upload(page, encoded(scene("disc", 0, 0), "PNG")).json()
    assert ask(page, as_given(path))["success"]
    asked = set(re.findall(r"^asked: (.*)$", page.said.read_text(), re.M))
    assert asked <= {"127.0.0.1", "None"} or not asked, asked


def test_examples_are_copies_of_the_runs_pictures_or_drawn(tmp_path: Path, weights: Path) -> None:
    finished = made(tmp_path / "run", per_class=3)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    files = write_examples(str(finished), ("bars", "disc", "nothing"), tmp_path / "a")
    assert [file.name for file in files] == ["example-1.jpg", "example-2.jpg", "example-3.jpg"]
    with Image.open(files[1]) as image:
        assert image.size == (SIDE, SIDE) and not image.getexif()
    drawn = write_examples(str(weights), ("heart", "zebra", "star"), tmp_path / "b")
    assert [file.stem for file in drawn] == ["star", "heart"]


def test_without_gradio_there_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run(["demo", "nothing.safetensors", "--device=cpu"]) == 1
    assert "pip install 'inception-v4[demo]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_browser_uploads_a_picture_and_shows_the_answer(page: Any, tmp_path: Path) -> None:
    for kind in ("disc", "bars"):
        scene(kind, 1, 0).save(tmp_path / f"{kind}.png")
    with browser() as driver:
        look_like(driver, 1280, "light")
        driver.get(str(page.base_url))
        for kind, other in (("disc", "bars"), ("bars", "disc")):
            wait(lambda: driver.find_elements("css selector", "#picture input[type=file]")).send_keys(
                str(tmp_path / f"{kind}.png")
            )
            wait(lambda kind=kind: [x for x in text_of(driver, "#classes").splitlines()[1:2] if x == kind])
            assert re.search(f"{kind} 9\\d.\\d %", text_of(driver, "#heat")) and other in text_of(driver, "#classes")
            wait(lambda: [x for x in [text_of(driver, "#took")] if "named and explained" in x])
            for width in (380, 1280):
                for scheme in ("light", "dark"):
                    look_like(driver, width, scheme)
                    assert overflow(driver) == 0, (width, scheme)
                    assert driver.save_screenshot(str(tmp_path / f"{kind}-{width}-{scheme}.png"))
            driver.find_element("css selector", "#picture button[title='Remove Image']").click()
        own = re.compile(re.escape(str(page.base_url).rstrip("/")) + "/|data:|blob:")
        assert [address for address in requested(driver) if not own.match(address)] == []
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_a_photograph_is_named(page: Any, tmp_path: Path) -> None:
    """The browser's camera sees a film of one picture."""
    film, side = tmp_path / "film.mjpeg", 320
    film.write_bytes(encoded(scene("disc", 1, 0).resize((side, side)), "JPEG") * 5)
    camera = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    with browser(*camera, f"--use-file-for-fake-video-capture={film}") as driver:
        look_like(driver, 1280, "light")
        driver.get(str(page.base_url))
        press(driver, "#picture button[aria-label='Capture from camera']")
        press(driver, "#picture [title='grant webcam access'] button")
        wait(lambda: driver.execute_script(PICTURED))
        press(driver, "#picture button[aria-label='capture photo']")
        wait(lambda: [x for x in text_of(driver, "#classes").splitlines()[1:2] if x == "disc"])
        took = wait(lambda: [x for x in [text_of(driver, "#took")] if "named and explained" in x])
        assert f"{side} x {side} px" in took and re.search(r"disc \d+\.\d %", text_of(driver, "#heat"))
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def press(driver: Any, selector: str) -> None:
    """A button, as soon as it can be pressed."""
    wait(lambda: [found for found in driver.find_elements("css selector", selector) if found.is_displayed()]).click()


def wait(find: Any, limit: float = 60) -> Any:
    """The first of what is found, as soon as there is something."""
    end = time.monotonic() + limit
    while not (found := find()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)
    return found[0]


def text_of(driver: Any, selector: str) -> str:
    return str(driver.find_element("css selector", selector).text)
