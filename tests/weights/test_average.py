"""Means of weights: the numbers, what goes together, greedy soups, files, and BatchNorm statistics anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from live import enliven
from running import TINY, as_flags, tiny
from temporary import NewFolder
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from inception_v4.accelerator import select
from inception_v4.accelerator.precision import Precision
from inception_v4.cli.main import run
from inception_v4.data.loader import Batch
from inception_v4.data.normalise import Normalise
from inception_v4.distributed import World
from inception_v4.inference.soup import greedy_soup
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import Preprocessing
from inception_v4.training.batch_statistics import recompute_statistics
from inception_v4.training.train import train
from inception_v4.weights import Weights, WeightsError, WeightsInfo, load_weights, read_weights
from inception_v4.weights.average import WeightsSum
from inception_v4.weights.writing import write_weights

NAMES = ("ape", "bear")


def small(*values: float, info: WeightsInfo | None = None, dtype: torch.dtype = torch.float32) -> Weights:
    """Weights of a network of one tensor, and a count of batches."""
    state = {"w": torch.tensor(values, dtype=dtype), "num_batches_tracked": torch.tensor(int(values[0]))}
    return Weights(state, info or WeightsInfo(2, NAMES))


def mean(*weights: Weights) -> Tensor:
    total = WeightsSum.of(weights[0], "a")
    for number, other in enumerate(weights[1:]):
        total = total.plus(other, f"b{number}")
    return total.mean().state["w"]


def test_the_sum_is_in_float64_and_rounded_once() -> None:
    assert mean(small(1e8), small(1.0), small(-1e8), small(1.0)).tolist() == [0.5], "float32 would have lost both ones"
    halves = mean(small(1.0, dtype=torch.bfloat16), small(1.0078125, dtype=torch.bfloat16))
    assert halves.dtype == torch.float32 and halves.tolist() == [1.00390625], "bfloat16 has no number between the two"
    three = [small(5.0), small(7.0), small(6.0)]
    total = WeightsSum.of(three[0], "a").plus(three[1], "b").plus(three[2], "c")
    assert int(total.mean().state["num_batches_tracked"]) == 7 and three[0].state["w"].tolist() == [5.0]
    noted = small(1.0, info=WeightsInfo(2, NAMES, extra={"top1": 90.0, "recipe": "x"}))
    info = WeightsSum.of(noted, "a").plus(small(2.0), "b").mean().info
    assert info.extra == {"recipe": "x", "averaged": 2} and info.class_names == NAMES


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (WeightsInfo(3), "num_classes 3 and 2"),
        (WeightsInfo(2, ("bear", "ape")), "other class names, or another order"),
        (WeightsInfo(2, NAMES, Preprocessing(crop_pct=0.9)), "preprocessing 299 px, bicubic, crop 0.9"),
        (WeightsInfo(2, NAMES, bn_eps=1e-5), "bn_eps 1e-05 and 0.001"),
    ],
)
def test_weights_of_different_networks_have_no_mean(info: WeightsInfo, message: str) -> None:
    with pytest.raises(WeightsError, match="b and a are not of one network") as caught:
        WeightsSum.of(small(1.0), "a").plus(small(1.0, info=info), "b")
    assert message in str(caught.value) and "as an ensemble" in str(caught.value)
    with pytest.raises(WeightsError, match=r"other shapes: 1 \(w\)"):
        WeightsSum.of(small(1.0), "a").plus(small(1.0, 2.0), "b")


def soup_of(values: dict[str, float], top1: Callable[[float], float]) -> tuple[tuple[str, ...], list[str]]:
    """Names in the soup of one-number networks whose accuracy is a function of the number, and what was said."""
    lines: list[str] = []
    judge = lambda weights: SimpleNamespace(merit=("top-1", top1(float(weights.state["w"]))))  # noqa: E731
    soup = greedy_soup(list(values), lambda name: small(values[name]), judge, say=lines.append)
    return soup.names, lines


def test_a_greedy_soup_keeps_what_does_not_lower_top1() -> None:
    # Alone: c 99, a 98, b 96, d 92. c and a: mean 0.5, 99.5. With b: -1 is worse than -0.5. With d: 3 is worse.
    names, lines = soup_of({"a": 2.0, "b": -4.0, "c": -1.0, "d": 8.0}, lambda w: 100 - abs(w))
    assert names == ("c", "a")
    assert lines[:4] == [f"{n}: top-1 {t:.2f} %" for n, t in (("a", 98), ("b", 96), ("c", 99), ("d", 92))]
    assert lines[4:] == [
        "2 with a: top-1 99.50 %, kept", "3 with b: top-1 99.00 %, left out", "3 with d: top-1 97.00 %, left out",
    ]  # fmt: skip
    assert soup_of({"a": 1.0, "b": 2.0, "c": 3.0}, lambda w: 50.0)[0] == ("a", "b", "c"), "no worse is kept"
    assert soup_of({"a": 1.0, "b": -1.0, "c": 5.0}, lambda w: -abs(w - 5))[0] == ("c",)


@pytest.fixture(scope="module")
def pair(module_folder: NewFolder) -> tuple[list[Path], list[dict[str, Tensor]]]:
    """Two live networks in files of two programs, and their numbers."""
    folder, model = module_folder("pair"), InceptionV4(2, init="torch")
    files, states = [folder / "a.safetensors", folder / "b.ckpt"], []
    for seed, (file, layout) in enumerate(zip(files, ("torch", "mindcv"), strict=True)):
        states.append({k: v.clone() for k, v in enliven(model, seed).state_dict().items()})
        info = WeightsInfo(2, NAMES, Preprocessing(image_size=75), extra={"top1": 50.0})
        write_weights(Weights(states[-1], info), file, layout=layout)
    return files, states


def test_files_of_any_program_are_averaged_as_torchs_averaged_model(
    pair: tuple[list[Path], list[dict[str, Tensor]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, states = pair
    output = tmp_path / "mean.pth"
    assert run(["average", *map(str, files), "--output", str(output)]) == 0
    assert f"wrote {output}: the mean of 2 of 2, torch" in capsys.readouterr().err
    found = read_weights(output)
    assert found.info.class_names == NAMES and found.info.extra == {"averaged": 2}
    model = InceptionV4(2, init="torch")
    model.load_state_dict(states[0])
    oracle = AveragedModel(model, use_buffers=True)
    oracle.update_parameters(model)
    model.load_state_dict(states[1])
    oracle.update_parameters(model)
    for name, value in oracle.module.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(found.state[name], value, rtol=1e-5, atol=1e-6), name
    assert not torch.allclose(found.state["last_linear.weight"], states[0]["last_linear.weight"], atol=1e-3)
    for words, message in (
        ([files[0], "--output", output], "one set of weights has no average"),
        ([*files, "--output", files[0]], "is both source and destination"),
        ([*files, "--output", tmp_path / "x.txt"], "no layout has the suffix '.txt'"),
    ):
        assert run(["average", *map(str, words)]) == 1
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != "mean.pth"] == ["mean.pth.json"]


def test_statistics_are_those_of_torchs_update_bn() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 9, 9), generator=generator, dtype=torch.uint8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 3),
                          nn.BatchNorm2d(2))  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    how, labels = Normalise(Preprocessing(image_size=75)), torch.zeros(20, dtype=torch.int64)
    batches = [Batch(images[i : i + 8], labels[i : i + 8], labels[i : i + 8]) for i in (0, 8, 16)]
    precision = Precision(select("cpu"))
    assert recompute_statistics(model, batches, normalise=how, precision=precision, world=World()) == 20
    ours = {name: value.clone() for name, value in model.state_dict().items()}
    assert not any(module.training for module in model.modules()) and model[1].momentum == 0.1
    model.load_state_dict(before)
    model[3].p = 0.0  # torch's would drop half the values before the second statistics
    update_bn([how(batch.images) for batch in batches], model)
    for name, value in model.state_dict().items():
        assert torch.allclose(ours[name], value, atol=1e-6), name
        assert ("running" in name or "tracked" in name) != torch.equal(ours[name], before[name]), name


@pytest.mark.slow
def test_checkpoints_of_a_run_become_a_soup_with_statistics_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "run", tmp_path / "swa.safetensors"
    train(tiny(folder, epochs=1, max_steps=3, ckpt_steps=1, lr=0.001, bn_momentum=0.9))
    files = [str(path) for path in sorted((folder / "checkpoints").glob("step-*.pt"))]
    assert len(files) == 3
    settings = ["-c", str(folder / "config.yaml"), "--output", str(output)]
    assert run(["average", *files, *settings, "--greedy", "--update-bn"]) == 0
    said = capsys.readouterr().err
    assert said.count(": top-1 ") == 5 and "BatchNorm statistics of 24 training pictures, 75 px" in said
    assert run(["average", *files, "--output", str(tmp_path / "plain.safetensors")]) == 0
    swa, plain = read_weights(output), read_weights(tmp_path / "plain.safetensors")
    norm = "features.0.bn.running_mean"
    assert not torch.allclose(swa.state[norm], plain.state[norm], rtol=1e-3)
    load_weights(InceptionV4(2), swa)
    assert run(["validate", "--ckpt-path", str(output), "--device=cpu", "--workers=0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 10, "the record of the data goes with them"
    names = (
        "dataset",
        "image_size",
        "batch_size",
        "val_batch_size",
        "workers",
        "device",
        *(n for n in TINY if "shapes" in n),
    )
    data = as_flags({name: TINY[name] for name in names})
    assert run(["average", *files[:2], *data, "--output", str(output), "--greedy", "--update-bn"]) == 0, "of no recipe"
