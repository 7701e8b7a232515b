"""Weights in another runtime by themselves: exported once, kept, compared, and never trusted when damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exported import CLASSES, HOW, drawn, folder, network, run, weights_file
from photos import photos
from running import environment
from temporary import NewFolder

from inception_v4.accelerator import select
from inception_v4.inference import engines as module
from inception_v4.inference.engine_cache import engines_folder, find_entry, key_of, store_entry
from inception_v4.inference.engines import ENGINES, pick_engine
from inception_v4.inference.predict import Predictor
from inception_v4.inference.sessions import ExportedFileError, Session
from inception_v4.weights import WeightsInfo, save_weights

__all__ = ["folder"]

NATIVE = select("cpu").amp_support("bf16") == "native"


def fill(text: str):
    """What writes an entry of one file."""

    def write(part: Path) -> dict[str, str]:
        (part / "graph").write_text(text)
        return {"said": text}

    return write


def test_an_entry_is_made_once_and_found(tmp_path: Path) -> None:
    key = key_of(weights="a")
    assert find_entry(tmp_path / "cache", key) is None
    made = store_entry(tmp_path / "cache", key, fill("one"))
    assert made == find_entry(tmp_path / "cache", key) and made.about == {"said": "one"}
    assert store_entry(tmp_path / "cache", key, fill("two")).about == {"said": "one"}, "it was there"
    assert find_entry(tmp_path / "cache", key_of(weights="b")) is None


@pytest.mark.parametrize("file", ["graph", "entry.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_entry_is_not_there_and_is_made_again(tmp_path: Path, file: str, damage: str) -> None:
    key = key_of(weights="a")
    path = store_entry(tmp_path, key, fill("first")).folder / file
    text = path.read_text()
    path.unlink()
    if damage != "gone":
        path.write_text(text[:-1] if damage == "cut" else text.replace("first", "other").replace("graph", "grape", 1))
        if path.read_text() == text:
            path.write_text("other")
    assert find_entry(tmp_path, key) is None
    assert store_entry(tmp_path, key, fill("again")).about == {"said": "again"} == find_entry(tmp_path, key).about


KILLED = """
import sys, time
from pathlib import Path
from inception_v4.inference.engine_cache import store_entry

def write(part):
    (part / "graph").write_text("half")
    print("writing", flush=True)
    time.sleep(60)

store_entry(Path(sys.argv[1]), "key", write)
"""


def test_a_writer_that_is_killed_leaves_no_entry_and_stops_nobody(tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment()) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    assert (tmp_path / ".key.part" / "graph").read_text() == "half", "it was in the middle of writing"
    assert find_entry(tmp_path, "key") is None
    store_entry(tmp_path, "another", fill("whole"))
    assert not (tmp_path / ".key.part").exists(), "what it left is cleared away"
    assert store_entry(tmp_path, "key", fill("whole")).about == {"said": "whole"}


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    for age, key in enumerate(("old", "older", "oldest")):
        store_entry(tmp_path, key, fill(key.ljust(1000)))
        os.utime(tmp_path / key, (0, 1000 - age))
    find_entry(tmp_path, "oldest")  # used again
    store_entry(tmp_path, "new", fill("new".ljust(1000)), limit=5000)
    assert [key for key in ("old", "older", "oldest", "new") if find_entry(tmp_path, key)] == ["oldest", "new"]


@pytest.fixture(scope="module")
def kept(folder: Path, module_folder: NewFolder):
    """A cache folder with the live weights in float32 for OpenVINO."""
    pytest.importorskip("openvino")
    place = module_folder("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        predictor = Predictor(str(weights_file(folder)), device="cpu", amp="off")
        predictor.expect(module.WORTH_EXPORTING - 1)
        assert predictor.engine.startswith("PyTorch") and not engines_folder().exists(), "not worth it"
        predictor.expect(module.WORTH_EXPORTING)
        assert predictor.engine.startswith("openvino")
        yield place


def test_every_network_of_an_ensemble_runs_there(kept: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    source, copy = str(weights_file(folder)), folder / "copy.safetensors"
    copy.write_bytes(Path(source).read_bytes())
    predictor = Predictor([source, str(copy)], device="cpu", amp="off")
    predictor.expect(module.WORTH_EXPORTING - 1)
    predictor.expect(module.WORTH_EXPORTING)
    assert "PyTorch" not in predictor.engine and predictor._others[0].network.fixed_amp == "off"


def probabilities(source: Path, **options: object) -> tuple[str, torch.Tensor]:
    """Of six pictures, and what has computed them."""
    predictor = Predictor(str(source), device="cpu", amp="off", **options)
    with torch.inference_mode():
        return predictor.engine, torch.cat([predictor._outputs(drawn(6)[:1]), predictor._outputs(drawn(6)[1:])])


def test_what_is_kept_runs_and_answers_as_pytorch(kept: Path, folder: Path) -> None:
    engine, found = probabilities(weights_file(folder))
    plain, expected = probabilities(weights_file(folder), runtime="torch")
    assert engine.startswith("openvino") and engine.endswith("float32") and plain.startswith("PyTorch")
    assert (found - expected).abs().max() < 1e-5 < (expected[0] - expected[1]).abs().max()
    predictor = Predictor(str(weights_file(folder)), device="cpu", amp="off")
    assert predictor.class_names == CLASSES and predictor.preprocessing == HOW


def test_other_weights_sizes_and_precisions_are_not_what_is_kept(kept: Path, folder: Path, tmp_path: Path) -> None:
    other = save_weights(network(), tmp_path / "live.safetensors", WeightsInfo(len(CLASSES), CLASSES, HOW))
    with torch.no_grad():
        weight = network().last_linear.weight
        weight.neg_()
        negated = save_weights(network(), tmp_path / "other.safetensors", WeightsInfo(len(CLASSES), CLASSES, HOW))
        weight.neg_()
    assert negated.stat().st_size == other.stat().st_size
    for source, options in ((negated, {}), (weights_file(folder), {"image_size": 96})):
        assert Predictor(str(source), device="cpu", amp="off", **options).engine.startswith("PyTorch")
    if NATIVE:
        assert Predictor(str(weights_file(folder)), device="cpu", amp="bf16").engine.startswith("PyTorch")


def test_a_cut_graph_is_not_run(kept: Path, folder: Path) -> None:
    (graph,) = kept.glob("inception-v4/engines/*/graph.bin")
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1])
    try:
        assert Predictor(str(weights_file(folder)), device="cpu", amp="off").engine.startswith("PyTorch")
    finally:
        graph.write_bytes(whole)
    assert Predictor(str(weights_file(folder)), device="cpu", amp="off").engine.startswith("openvino")


@pytest.mark.slow
def test_commands_use_it_and_say_so(kept: Path, folder: Path, tmp_path: Path, capsys) -> None:
    from photos import class_folders

    data = class_folders(tmp_path / "val", dict.fromkeys(CLASSES, 2))
    words = ("--ckpt-path", weights_file(folder), "--device", "cpu", "--workers", 0, "--amp", "off")
    for extra, engine in (((), "openvino"), (("--no-cache",), "PyTorch"), (("--runtime", "torch"), "PyTorch")):
        code, out, err = run(capsys, "predict", data, *words, "--jsonl", *extra)
        assert code == 0 and f"12 pictures, 75 px, {engine}" in err and len(out.splitlines()) == 12
    losses = []
    for extra, engine in (((), "openvino"), (("--no-cache",), "PyTorch")):
        code, out, err = run(capsys, "validate", "--data-dir", tmp_path, *words, "--json", *extra)
        assert code == 0 and engine in err, err
        losses.append(json.loads(out)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    code, _, err = run(capsys, "predict", data, *words, "--no-cache", "--runtime", "openvino")
    assert code != 0 and "--no-cache" in err


SLOW_TO_IMPORT = ("torchvision", "timm", "torch._dynamo", "torch._inductor", "sympy", "pydantic", "matplotlib")
REPORTS_TO_ITS_MAKERS = "openvino_telemetry"


def test_predict_imports_only_what_it_needs(kept: Path, folder: Path, tmp_path: Path) -> None:
    """Half of the time of one picture would be imports of these, and one would tell others of it."""
    (tmp_path / "photo.jpg").write_bytes(photos(1)[0])
    code = f"""
import sys
from inception_v4.cli.main import run
code = run(sys.argv[1:])
print(code, [name for name in {(*SLOW_TO_IMPORT, REPORTS_TO_ITS_MAKERS)} if sys.modules.get(name)])
"""
    words = ["predict", tmp_path / "photo.jpg", "--ckpt-path", weights_file(folder), "--device", "cpu", "--amp", "off"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
    assert "1 picture, 75 px, openvino" in done.stderr


def test_openvino_alone_reports_its_use() -> None:
    """Otherwise nothing is switched off, and the promise needs no code."""
    pytest.importorskip(REPORTS_TO_ITS_MAKERS)
    code = f"import openvino, sys; print(bool(sys.modules.get('{REPORTS_TO_ITS_MAKERS}')))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment() | {"CI": "true"}
    )
    assert done.stdout.splitlines()[-1] == "True", done.stderr


@pytest.mark.slow
def test_a_runtime_that_computes_something_else_is_found_out(
    kept: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (ready,) = engines_folder().glob("*/graph.xml")
    row = ENGINES["openvino"]

    def copied(_: object, path: Path) -> None:
        for suffix in (".xml", ".bin"):
            path.with_suffix(suffix).write_bytes(ready.with_suffix(suffix).read_bytes())

    def skewed(path: Path, amp: str) -> Session:
        session = row.open(path, amp)
        return session._replace(run=lambda images: 1.01 * session.run(images))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "ENGINES", {"openvino": row._replace(write=copied, open=skewed)})
    predictor = Predictor(str(weights_file(folder)), device="cpu", amp="off")
    predictor.expect(module.WORTH_EXPORTING)
    assert predictor.engine.startswith("PyTorch") and "away from PyTorch's" in capsys.readouterr().err
    assert [path for path in engines_folder().iterdir() if path.is_dir()] == [], "nothing was kept"
    monkeypatch.setattr(module, "ENGINES", {"openvino": row._replace(write=copied)})
    predictor.expect(module.WORTH_EXPORTING)
    assert predictor.engine.startswith("openvino")


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = select("cpu")
    assert pick_engine("torch", cpu, "off") is None
    with pytest.raises(ExportedFileError, match="float32, not in bfloat16: use --amp off"):
        pick_engine("onnx", cpu, "bf16")
    with pytest.raises(ExportedFileError, match="on the CPU, not on cuda"):
        pick_engine("openvino", cpu, "off", device="cuda:0")
    missing = {name: row._replace(packages=("no_such_package",)) for name, row in ENGINES.items()}
    monkeypatch.setattr(module, "ENGINES", missing)
    assert pick_engine("auto", cpu, "off") is None
    with pytest.raises(RuntimeError, match="pip install no_such_package"):
        pick_engine("openvino", cpu, "off")
