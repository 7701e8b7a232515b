"""Averages over views and networks, against numpy: of probabilities, in one process and in two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_networks import NAMES, linear_network, matrix, noise
from photos import encoded
from PIL import Image
from running import run as run_processes
from temporary import NewFolder

from inception_v4.accelerator import select
from inception_v4.cli.ensemble import is_file_of_weights, one_flag_each
from inception_v4.cli.main import run
from inception_v4.data.pictures import read_picture
from inception_v4.data.views import Views, eval_transform
from inception_v4.inference.ensemble import engines_of, ready
from inception_v4.inference.network import OpenNetwork
from inception_v4.inference.predict import Predictor
from inception_v4.preprocessing import Preprocessing
from inception_v4.weights import WeightsInfo

HOWS = (Preprocessing(image_size=75), Preprocessing(image_size=75, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))
"""An ensemble's networks normalise each in its own way."""


@pytest.fixture(scope="module")
def pair(module_folder: NewFolder) -> tuple[Path, Path]:
    """Two networks; the second has its classes in another order."""
    folder = module_folder("pair")
    return (
        linear_network(folder / "a.onnx", 0, HOWS[0]),
        linear_network(folder / "b.onnx", 1, HOWS[1], ("cat", "ape", "bear")),
    )


@pytest.fixture(scope="module")
def data(module_folder: NewFolder) -> Path:
    return noise(module_folder("data"))


def probabilities(file: Path, seed: int, how: Preprocessing, views: Views) -> np.ndarray:
    """Of each view, [V, 3], without this project's averages."""
    pixels = eval_transform(how, views)(read_picture(file)).numpy().reshape(-1, 3, 75, 75)
    if views.mirrored:
        pixels = np.concatenate([pixels, pixels[..., ::-1]])
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (how.mean, how.std))
    logits = ((pixels / 255 - mean) / std).reshape(len(pixels), -1) @ matrix(seed).astype(np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def expected(data: Path, networks: int, views: Views) -> np.ndarray:
    """Mean probabilities of the pictures, by class and name, [7, 3]."""
    return np.array(
        [
            np.concatenate([probabilities(f, seed, HOWS[seed], views) for seed in range(networks)]).mean(0)
            for f in sorted(data.rglob("*.png"))
        ]
    )


def loss(rows: np.ndarray, data: Path) -> float:
    labels = [NAMES.index(file.parent.name) for file in sorted(data.rglob("*.png"))]
    return float(-np.log(rows[np.arange(len(rows)), labels]).mean())


CASES = [(1, Views(flip=True)), (2, Views()), (1, Views(10)), (2, Views(12)), (2, Views(144))]


@pytest.mark.parametrize(("networks", "views"), CASES, ids=str)
def test_the_mean_of_probabilities_is_validated_and_predicted(
    pair: tuple[Path, Path], data: Path, networks: int, views: Views, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = expected(data, networks, views)
    words = [f"--crops={views.crops}", *["--flip"] * views.flip, "--device=cpu", "--batch-size=32"]
    files = [str(path) for path in pair[:networks]]
    assert run(["validate", "--ckpt-path", *files, *words, f"--data-dir={data}", "--workers=0", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["samples"] == 7 and found["loss"] == pytest.approx(loss(rows, data), abs=2e-5)
    assert (found["crops"], found["flip"]) == (views.crops, views.flip)
    assert found["weights"] == (files if networks > 1 else files[0]) and "mean of 2 networks" * (networks - 1) in err
    if networks * len(views) < 30:
        one = probabilities(next(iter(sorted(data.rglob("*.png")))), 0, HOWS[0], Views())
        assert np.abs(one - rows[0]).max() > 1e-3, "the average is not what one view gives"
    assert run(["predict", str(data), "--ckpt-path", *files, *words, "--top-k=3", "--jsonl"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_name = np.array([[{c["class"]: c["probability"] for c in row["top"]}[n] for n in NAMES] for row in shown])
    assert by_name == pytest.approx(rows, abs=1e-5)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    words = [
        "validate",
        "--ckpt-path",
        *map(str, pair),
        f"--data-dir={data}",
        "--crops=12",
        "--batch-size=32",
        "--json",
    ]
    found, kept = [], []
    for processes in (1, 2):
        file = tmp_path / f"{processes}.jsonl"
        done = run_processes(*words, "--workers=0", "--device=cpu", f"--save-predictions={file}", processes=processes)
        found.append(json.loads(done.stdout))
        kept.append(file.read_text())
    same = ("loss", "top1", "top5", "samples", "macro_f1", "ece")
    assert [found[1][name] for name in same] == [found[0][name] for name in same], "to the last bit"
    assert kept[0] == kept[1] and len(kept[0].splitlines()) == 8
    assert found[1]["loss"] == pytest.approx(loss(expected(data, 2, Views(12)), data), abs=2e-5)


def test_batches_of_any_size_give_the_same_probabilities(pair: tuple[Path, Path], data: Path) -> None:
    files, rows = sorted(map(str, data.rglob("*.png"))), expected(data, 2, Views(12))
    for batch_size in (1, 5, 12, 60):
        predictor = Predictor([str(path) for path in pair], device="cpu", batch_size=batch_size, views=Views(12))
        assert predictor.batch_size == max(1, batch_size // 12)
        found = [dict(zip(p.classes, p.probabilities, strict=True)) for p in predictor(files, top_k=3)]
        assert np.array([[row[name] for name in NAMES] for row in found]) == pytest.approx(rows, abs=1e-5)


def test_networks_that_do_not_go_together_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = linear_network(tmp_path / "size.onnx", 0, Preprocessing(image_size=80))
    names = linear_network(tmp_path / "names.onnx", 0, HOWS[0], NAMES)
    other = names.read_bytes().replace(b"bear", b"boar")
    (tmp_path / "boar.onnx").write_bytes(other)
    picture = tmp_path / "a.png"
    picture.write_bytes(encoded(Image.new("RGB", (80, 80)), "PNG"))
    for file, message in (
        (size, "prepared in different ways (image_size 80 and 75), and an ensemble sees the same ones: give these"),
        (tmp_path / "boar.onnx", "different classes ('boar' and 'bear'): give weights of the same classes"),
    ):
        assert run(["predict", str(picture), "--ckpt-path", str(pair[0]), str(file), "--device=cpu"]) == 1
        assert message in capsys.readouterr().err


def test_words_after_the_flag() -> None:
    def spelled(text: str, belongs=is_file_of_weights) -> list[str]:
        return one_flag_each(text.split(), belongs)

    both = ["--ckpt-path=a.pth", "--ckpt-path=b.onnx"]
    assert spelled("--ckpt-path a.pth b.onnx photo.jpg --flip") == [*both, "photo.jpg", "--flip"]
    assert spelled("photo.jpg --ckpt_path=a.pth b.onnx") == ["photo.jpg", *both]
    assert spelled("--ckpt-path a.pth --ckpt-path b.onnx x") == [*both, "x"]
    assert spelled("--ckpt-path runs/a photos/") == ["--ckpt-path=runs/a", "photos/"], "a folder may hold pictures"
    assert spelled("--ckpt-path runs/a runs/b --json", lambda word: True) == [
        "--ckpt-path=runs/a", "--ckpt-path=runs/b", "--json",
    ]  # fmt: skip
    assert spelled("--crops 10 --ckpt-path") == ["--crops", "10", "--ckpt-path"]


def test_each_network_has_its_own_precision() -> None:
    """What runs in another engine computes as it was made to; PyTorch beside it as it was asked to."""
    seen = []

    def network(name: str, **options: str) -> OpenNetwork:
        def model(images: torch.Tensor) -> torch.Tensor:
            seen.append((name, torch.is_autocast_enabled("cpu")))
            return images.float().mean((2, 3))

        return OpenNetwork(model, WeightsInfo(3, NAMES, HOWS[0]), select("cpu"), name, **options)  # type: ignore[arg-type]

    networks = [network("elsewhere", fixed_amp="bf16"), network("PyTorch")]
    it = ready(networks, {}, amp="bf16", batch_size=4)
    with it.precision.autocast():
        it.model(torch.zeros(2, 3, 75, 75, dtype=torch.uint8))
    assert seen == [("elsewhere", False), ("PyTorch", True)]
    assert engines_of([*networks, networks[0]]) == "elsewhere and PyTorch"


def test_the_line_says_that_the_answers_are_a_mean(
    pair: tuple[Path, Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next(data.rglob("*.png"))
    assert run(["predict", str(first), "--ckpt-path", *map(str, pair)]) == 0
    assert f"mean of {pair[0]}, {pair[1]}" in capsys.readouterr().err
    assert run(["predict", str(first), "--ckpt-path", str(pair[0])]) == 0
    assert "mean of" not in capsys.readouterr().err
