"""Finding files, and one clear line for each file that is not usable."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from running import ROOT
from safetensors.torch import save_file
from weights_cases import equal, save, tiny_state

from inception_v4.preprocessing import Preprocessing
from inception_v4.weights import WeightsError, read_weights
from inception_v4.weights.files.containers import sniff
from inception_v4.weights.files.pickled import read_pickled


class Bomb:
    """Pickles to a call of `os.mkdir`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(tmp_path, zipped):
    trap = tmp_path / "executed"
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": tiny_state(), "x": Bomb(trap)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"evil\.pth is refused: it needs (posix|nt)\.mkdir") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert not trap.exists()


BAD_FILES = {
    "empty": (b"", "is empty: copy or download it again"),
    "web page": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page, not weights: the download failed"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer.*git lfs pull"),
    "json": (b'{"error": "Repository not found"}', "is JSON text"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file: dump the TensorFlow checkpoint to .npz"),
    "gzip": (b"\x1f\x8b" + bytes(99), "gzip archive: unpack"),
    "tensorflow": (
        bytes(200) + (0xDB4775248B80FB57).to_bytes(8, "little"),
        "truncated or damaged: copy or download it again",
    ),
    "encrypted": (b"\xd8\x5e\x3a\x7f" + bytes(99), "encrypted MindSpore checkpoint: save it again without enc_key"),
    "noise": (b"\x07\x01\x02" * 99, "is no weights file .297 bytes"),
    "zip": (b"PK\x03\x04" + bytes(99), "truncated or damaged: copy or download it again"),
    "pickle": (b"\x80\x02}q\x00.", "truncated or damaged"),
    "safetensors": (b"\x10\x00\x00\x00\x00\x00\x00\x00{" + b" " * 20, "truncated or damaged"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_unusable_files_say_what_they_are(tmp_path, kind):
    content, message = BAD_FILES[kind]
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        read_weights(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], {"a": 1}, {"epoch": 3, "args": None}])
def test_pickles_without_a_state_dict(tmp_path, content):
    with pytest.raises(WeightsError, match=r"a\.pt holds .*save model\.state_dict\(\)"):
        read_weights(save(content, tmp_path / "a.pt"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.zeros(1).expand(1 << 40), r"a\.b shows 4 bytes as \[1099511627776\]"),
        (lambda: torch.zeros(3).to_sparse(), r"a\.b is a sparse_coo tensor"),
        (lambda: torch.zeros(3, device="meta"), r"a\.b is a meta tensor"),
        (lambda: torch.nested.as_nested_tensor(torch.zeros(2, 3)), r"a\.b is a nested tensor|truncated or damaged"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8), r"a\.b is a quantized tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_plain_numbers(tmp_path, make, said, zipped):
    """A few bytes could stand for any number of weights."""
    torch.save({"a.b": make()}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=said) as error:
        read_weights(tmp_path / "a.pt")
    assert "a.pt" in str(error.value) and "\n" not in str(error.value)


def test_parts_of_a_larger_tensor_are_read(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    path = save({"a.b": whole[1:3], "a.c": whole.T, "a.d": whole.view(2, 12)}, tmp_path / "a.pt")
    assert [tuple(tensor.shape) for tensor in read_pickled(path).state.values()] == [(2, 6), (6, 4), (2, 12)]


def test_names_in_errors_stay_on_one_line(tmp_path):
    path = save({"a\nb" + "c" * 9000: 1}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"\(it has a bc+\)") as error:
        read_weights(path)
    assert len(str(error.value)) < 400


def test_other_networks_and_several_networks(tmp_path):
    other = {"layer1.0.bn1.running_mean": torch.ones(3), "fc.weight": torch.ones(3, 3)}
    with pytest.raises(WeightsError, match=r"weights of another network \(fc\.weight, layer1"):
        read_weights(save(other, tmp_path / "resnet.pth"))
    twice = {prefix + name: t for prefix in ("student.", "teacher.") for name, t in tiny_state().items()}
    with pytest.raises(WeightsError, match=r"holds 2 networks, under 'student\.', 'teacher\.'"):
        read_weights(save(twice, tmp_path / "two.pth"))


def test_programs_are_refused(tmp_path):
    path = tmp_path / "program.pt"
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), path)
    with pytest.raises(WeightsError, match="program"):
        read_weights(path)


def test_missing_files_name_the_nearest(tmp_path):
    save_file(tiny_state(), tmp_path / "inception.safetensors")
    with pytest.raises(FileNotFoundError, match=r"does not exist: is it inception\.safetensors\?"):
        read_weights(tmp_path / "incepton.safetensors")
    with pytest.raises(FileNotFoundError, match="nor does the directory"):
        read_weights(tmp_path / "no" / "such.pth")
    with pytest.raises(FileNotFoundError, match="is a web address: download it"):
        read_weights("https://example.com/a.ckpt")
    with pytest.raises(FileNotFoundError, match=r"without best\.safetensors .*name one of its files \(inception"):
        read_weights(tmp_path)
    with pytest.raises(WeightsError, match="layout 'caffe' is not one of"):
        read_weights(tmp_path / "inception.safetensors", layout="caffe")


def test_truncated_files(tmp_path):
    for name, write in {
        "a.safetensors": lambda path: save_file(tiny_state(), path),
        "b.pth": lambda path: torch.save(tiny_state(), path),
        "c.pth": lambda path: torch.save(tiny_state(), path, _use_new_zipfile_serialization=False),
    }.items():
        path = tmp_path / name
        write(path)
        whole = path.read_bytes()
        for part in (0.001, 0.3, 0.7, 0.999):
            path.write_bytes(whole[: int(len(whole) * part)])
            with pytest.raises(WeightsError, match="truncated or damaged"):
                read_weights(path)


def test_content_decides_not_the_suffix(tmp_path):
    path = tmp_path / "lightning.ckpt"
    torch.save({"state_dict": {"model." + k: v for k, v in tiny_state().items()}, "hyper_parameters": {}}, path)
    assert sniff(path) == "torch"
    assert equal(read_weights(path).state, tiny_state())
    save_file(tiny_state(), tmp_path / "misnamed.bin")
    assert equal(read_weights(tmp_path / "misnamed.bin").state, tiny_state())


def test_description_beside_a_file(tmp_path):
    path = save(tiny_state(10), tmp_path / "a.pth")
    described = {"preprocessing": {"image_size": 331}, "class_names": [str(i) for i in range(10)], "from_the_future": 1}
    beside = tmp_path / "a.pth.json"
    beside.write_text(json.dumps(described))
    info = read_weights(path).info
    assert info.preprocessing.image_size == 331
    assert info.preprocessing.interpolation == "bicubic"
    assert info.class_names[9] == "9"
    beside.write_text("{")
    with pytest.raises(WeightsError, match=r"a\.pth\.json is not readable JSON"):
        read_weights(path)
    beside.write_text('{"preprocessing": {"std": [0, 0, 0]}}')
    with pytest.raises(WeightsError, match=r"a\.pth: the description .* must be positive"):
        read_weights(path)


class Hub(BaseHTTPRequestHandler):
    """The few answers of a Hugging Face hub that a download needs."""

    files: dict[str, bytes]
    asked: list[str]
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        content = self.files.get(self.path)
        known = content is not None or any(name.startswith(self.path.rsplit("/", 1)[0]) for name in self.files)
        self.send_response(200 if content is not None else 404)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            content = b""
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(tmp_path):
    """A hub on loopback: timm's repository, one with a pickle only, one without weights."""
    path = tmp_path / "model.safetensors"
    save_file(tiny_state(seed=4), path, metadata={"format": "pt"})
    pickled = save(tiny_state(10, seed=5), tmp_path / "pytorch_model.bin")
    recipe = {"input_size": [3, 299, 299], "mean": [0.4, 0.5, 0.6], "std": [0.5] * 3, "crop_pct": 0.9}
    files = {
        "/timm/inception_v4.tf_in1k/resolve/main/model.safetensors": path.read_bytes(),
        "/timm/inception_v4.tf_in1k/resolve/main/config.json": json.dumps({"pretrained_cfg": recipe}).encode(),
        "/someone/flowers/resolve/v1/pytorch_model.bin": pickled.read_bytes(),
        "/someone/nothing/resolve/main/README.md": b"",
    }
    handler = type("Handler", (Hub,), {"files": files, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
        server.shutdown()
        thread.join()


ASK_THE_HUB = """
import pickle, sys, time
from inception_v4.weights import read_weights
answers = []
for source in sys.argv[2:]:
    start = time.monotonic()
    try:
        weights = read_weights(source)
        answers.append((weights.state, weights.info))
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")
    seconds = time.monotonic() - start
    assert seconds < 10, f"{source} took {seconds} s"
pickle.dump(answers, open(sys.argv[1], "wb"))
"""


def ask(tmp_path: Path, endpoint: str, *sources: str, **settings: str) -> list:
    """`read_weights` of each source in a fresh process whose hub is `endpoint`; its results or messages."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"} | settings
    answers = tmp_path / "answers"
    command = [sys.executable, "-c", ASK_THE_HUB, str(answers), *sources]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Retry" not in done.stderr and "thrown" not in done.stderr, done.stderr
    return pickle.loads(answers.read_bytes())


@pytest.mark.slow
def test_hugging_face_hub(tmp_path, hub):
    endpoint, asked = hub
    names = ("timm/inception_v4.tf_in1k", "pretrained", "hf-hub:someone/flowers@v1", "someone/nothing", "no/body")
    first, word, flowers, nothing, nobody = ask(tmp_path, endpoint, *names)
    assert equal(first[0], tiny_state(seed=4))
    assert equal(word[0], first[0])
    assert first[1].preprocessing.mean == (0.4, 0.5, 0.6)
    assert (first[1].preprocessing.crop_pct, first[1].preprocessing.interpolation) == (0.9, "bicubic")
    assert first[1].source == "hf-hub:timm/inception_v4.tf_in1k"
    assert equal(flowers[0], tiny_state(10, seed=5))
    assert nothing == (
        "WeightsError: hub repository someone/nothing holds neither model.safetensors nor pytorch_model.bin"
    )
    assert nobody.startswith("WeightsError: cannot get no/body from the Hugging Face hub (RepositoryNotFoundError")
    assert "\n" not in nobody
    assert sum(line.startswith("GET /timm") for line in asked) == 2  # weights and config.json, then from the cache

    cached, message = ask(tmp_path, endpoint, "pretrained", "no/body", HF_HUB_OFFLINE="1")
    assert equal(cached[0], first[0])
    assert message.startswith("WeightsError: cannot get no/body from the Hugging Face hub")
    assert "set HF_ENDPOINT to a mirror" in message
    assert "\n" not in message


@pytest.fixture
def silent_port():
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port():
    """A port that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return port


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["silent_port", "closed_port"])
def test_no_network_is_said_in_seconds_and_the_cache_still_serves(tmp_path, hub, kind, request):
    """Each question in less than ten seconds, which `ask` watches over, and without a library's lines of retries."""
    nowhere = f"http://127.0.0.1:{request.getfixturevalue(kind)}"
    (message,) = ask(tmp_path, nowhere, "pretrained")
    assert message.startswith("WeightsError: cannot get timm/inception_v4.tf_in1k from the Hugging Face hub (")
    assert message.endswith("check the name and the network, set HF_ENDPOINT to a mirror, or download "
                            "model.safetensors and give its path")  # fmt: skip
    assert "\n" not in message
    (first,) = ask(tmp_path, hub[0], "pretrained")
    (again,) = ask(tmp_path, nowhere, "pretrained")
    assert equal(again[0], first[0]) and again[1] == first[1]


@pytest.mark.slow
def test_offline_the_hub_is_not_asked_and_half_a_cache_serves(tmp_path, hub):
    """timm leaves only the weights there, other programs only a pickle."""
    endpoint, asked = hub
    names = ("pretrained", "hf-hub:someone/flowers@v1")
    first, flowers = ask(tmp_path, endpoint, *names)
    for config in (tmp_path / "hf").rglob("config.json"):
        config.unlink()
    asked.clear()
    cached, pickled = ask(tmp_path, endpoint, *names, HF_HUB_OFFLINE="1")
    assert asked == []
    assert equal(cached[0], first[0]) and equal(pickled[0], flowers[0])
    assert cached[1].preprocessing == Preprocessing()


@pytest.mark.slow
def test_equal_weights_are_equal_bytes_in_every_process(tmp_path: Path) -> None:
    """safetensors orders the metadata by a random number of the process."""
    code = (
        "import sys, torch; from pathlib import Path; from inception_v4.weights import WeightsInfo; "
        "from inception_v4.weights.files.safetensor import write_safetensors; "
        "[write_safetensors({'w': torch.ones(3), 'v': torch.zeros(2)}, Path(sys.argv[1]) / f'{n}.safetensors', "
        "WeightsInfo(3, class_names=('ä', 'b', 'c'))) for n in range(8)]"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    assert len({file.read_bytes() for file in tmp_path.glob("*.safetensors")}) == 1
    from safetensors.torch import load_file

    assert load_file(tmp_path / "0.safetensors")["w"].tolist() == [1, 1, 1]
