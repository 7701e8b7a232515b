"""What a hub repository says about its weights, in every form that timm has written, and what errors of a hub tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from running import ROOT
from safetensors.torch import save_file
from weights_cases import tiny_state

from inception_v4.preprocessing import Preprocessing
from inception_v4.weights import WeightsError, WeightsInfo, read_weights
from inception_v4.weights.source import _reason

RECIPE = {"input_size": [3, 331, 331], "mean": [0.1, 0.2, 0.3], "std": [0.4] * 3, "crop_pct": 0.95,
          "interpolation": "bilinear"}  # fmt: skip
MEANT = Preprocessing(331, (0.1, 0.2, 0.3), (0.4,) * 3, 0.95, "bilinear")


def described(folder: Path, config: object, monkeypatch: pytest.MonkeyPatch) -> WeightsInfo:
    """Of a repository in the hub's cache, with `config` as its `config.json`."""
    repository = folder / "models--someone--flowers"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    save_file(tiny_state(3), snapshot / "model.safetensors", metadata={"format": "pt"})
    (snapshot / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return read_weights("hf-hub:someone/flowers").info


@pytest.mark.parametrize(
    ("config", "preprocessing", "names"),
    [
        ({"pretrained_cfg": RECIPE, "label_names": ["a", "b", "c"]}, MEANT, ("a", "b", "c")),
        ({"architecture": "inception_v4", **RECIPE, "labels": ["a", "b", "c"]}, MEANT, ("a", "b", "c")),
        ({"pretrained_cfg": None, **RECIPE}, MEANT, None),
        ({"pretrained_cfg": RECIPE | {"input_size": None}}, MEANT.replace(image_size=299), None),
        ({"pretrained_cfg": RECIPE | {"input_size": 331}}, MEANT.replace(image_size=299), None),
        ({"architectures": ["InceptionV4"]}, Preprocessing(), None),
    ],
)
def test_every_form_of_config(
    tmp_path: Path, config: dict[str, Any], preprocessing: Preprocessing, names: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = described(tmp_path, config, monkeypatch)
    assert (info.preprocessing, info.class_names) == (preprocessing, names)


def test_a_recipe_of_another_kind_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"config\.json: its pretrained_cfg is a str, not a recipe"):
        described(tmp_path, {"pretrained_cfg": "inception_v4"}, monkeypatch)


class Overloaded(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_the_login_of_a_mirror_is_not_told(tmp_path: Path) -> None:
    """The hub's library names the whole address of what failed."""
    code = "from inception_v4.weights.source import locate; locate('hf-hub:someone/flowers')"
    with ThreadingHTTPServer(("127.0.0.1", 0), Overloaded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://tom:secret@127.0.0.1:{server.server_port}"
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        environment["HF_HUB_OFFLINE"] = "0"
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        server.shutdown()
    said = done.stderr.splitlines()[-1]
    assert "cannot get someone/flowers" in said and "503" in said and f"127.0.0.1:{server.server_port}" in said
    assert "secret" not in said and "tom" not in said


@pytest.mark.parametrize(
    "text",
    [
        "403 for url 'https://cdn.example/x?X-Signature=secret&Expires=3'",
        "HTTPSConnectionPool(host='cdn.example', port=443): Max retries exceeded with url: /x?X-Signature=secret (end)",
    ],
)
def test_the_signature_of_a_download_is_not_told(text: str) -> None:
    told = _reason(OSError(f"{text}\nmore"))
    assert told.startswith("OSError: ") and "cdn.example" in told and "secret" not in told and "\n" not in told
    assert _reason(OSError("is it there?")) == "OSError: is it there?"
