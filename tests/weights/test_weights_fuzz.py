"""Damaged files: a thousand of each kind give a clear error or a correct read, and nothing else."""

from __future__ import annotations

import collections
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from running import ROOT
from safetensors.torch import save_file
from weights_cases import network, tiny_state

from inception_v4.weights import LAYOUTS, Weights, WeightsError, WeightsInfo, read_weights
from inception_v4.weights.files import containers, msckpt
from inception_v4.weights.files.mindspore import from_tensor
from inception_v4.weights.writing import write_weights

COUNT = 1000


def small() -> dict[str, torch.Tensor]:
    """Names of every layout, so that each reader keeps them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"features.0.conv.weight": (2, 3, 3, 3), "features.0.bn.running_mean": (2,), "features.1.bn.gamma": (5,)}
    shapes |= {"InceptionV4/Conv2d_1a_3x3/weights": (3, 3, 3, 2), "InceptionV4/Logits/Logits/biases": (4,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_legacy(state: dict, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


FIXTURES = ROOT / "tests" / "tfslim" / "fixtures"


def copy_fixture(name: str) -> Callable[[dict, Path], None]:
    """TensorFlow's own, which cannot be written here; a bundle's numbers lie beside it."""

    def copy(state: dict, path: Path) -> None:
        shutil.copy(FIXTURES / name, path)
        for shard in FIXTURES.glob(f"{name.removesuffix('.index')}.data-*"):
            shutil.copy(shard, path.with_name(path.stem + shard.name[shard.name.index(".data-") :]))

    return copy


def write_ckpt(state: dict, path: Path, crc: bool = False) -> None:
    msckpt.write_msckpt(path, {name: from_tensor(tensor) for name, tensor in state.items()} | {"note": "text"}, crc=crc)


WRITERS: dict[str, Callable[[dict, Path], None]] = {
    "safetensors": lambda state, path: save_file(state, path, metadata={"format": "pt", "inception_v4": '{"a": 1}'}),
    "torch zip": lambda state, path: torch.save(state, path),
    "torch pickle": write_legacy,
    "mindspore": write_ckpt,
    "mindspore crc": lambda state, path: write_ckpt(state, path, crc=True),
    "tensorflow": copy_fixture("everything_v1.ckpt"),
    "tensorflow index": copy_fixture("everything_v2.ckpt.index"),
    "npz": lambda state, path: np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()}),
}


def mutated(whole: bytes, rng: random.Random) -> bytes:
    """One to three of: bytes changed, a piece cut out, doubled, zeroed or filled with noise, the end missing."""
    data = bytearray(whole)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.choice([1, 1, 1, 2, 4, 8, 64, 500]))
        kind = rng.randrange(7)
        if kind == 0:
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[start:end] = rng.randbytes(end - start)
        elif kind == 2:
            data[start:end] = bytes(end - start)
        elif kind == 3:
            data[start:end] = b"\xff" * (end - start)
        elif kind == 4:
            del data[start:end]
        elif kind == 5:
            data[start:start] = data[start:end]
        else:
            del data[start:]
        if not data:
            break
    return bytes(data)


def verdict(path: Path, expected: dict[str, torch.Tensor]) -> str:
    """What became of one damaged file; any other exception fails the test."""
    try:
        state = containers.read(path).state
    except WeightsError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 3000
        return "refused"
    for tensor in state.values():
        assert tensor.numel() * tensor.element_size() <= path.stat().st_size
        tensor.sum()  # every element can be read
    if state.keys() == expected.keys() and all(torch.equal(state[n], t) for n, t in expected.items()):
        return "read right"
    known = [name for name in state if name in expected and state[name].shape == expected[name].shape]
    return "numbers differ" if len(known) == len(expected) == len(state) else "names or shapes differ"


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files(tmp_path, kind):
    """Without a checksum changed numbers cannot be seen; the next test is about changed names and shapes."""
    path = tmp_path / ("a.npz" if kind == "npz" else "a.bin")
    WRITERS[kind](small(), path)
    whole, expected = path.read_bytes(), {n: t.clone() for n, t in containers.read(path).state.items()}
    rng = random.Random(kind)
    counts: collections.Counter[str] = collections.Counter()
    for _ in range(COUNT):
        path.write_bytes(mutated(whole, rng))
        counts[verdict(path, expected)] += 1
    print(f"{kind}: {COUNT} damaged files: {dict(counts)}")
    assert counts["refused"] > COUNT / 4
    if kind.startswith("tensorflow"):
        assert counts["numbers differ"] + counts["names or shapes differ"] == 0  # every block has a checksum
    if kind == "mindspore crc":
        assert counts["numbers differ"] < COUNT / 50  # only where the trailer itself is lost
    if kind == "npz":
        assert counts["numbers differ"] == 0  # the archive has checksums


@pytest.mark.parametrize(
    ("layout", "suffix"),
    [(layout, suffix) for layout in LAYOUTS for suffix in LAYOUTS[layout].suffixes if suffix not in (".pt", ".bin")],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_networks_are_complete_or_refused(tmp_path, layout, suffix):
    """All names: what is not refused has every name and the shapes that belong together."""
    path = tmp_path / f"a{suffix}"
    expected = tiny_state(10)
    write_weights(Weights(expected, WeightsInfo(10)), path, layout=layout)
    path.with_name(path.name + ".json").unlink(missing_ok=True)
    whole = path.read_bytes()
    rng = random.Random(layout + suffix)
    counts: collections.Counter[str] = collections.Counter()
    for _ in range(25):
        path.write_bytes(mutated(whole, rng))
        try:
            state = read_weights(path).state
        except WeightsError:
            counts["refused"] += 1
            continue
        assert state.keys() == expected.keys()
        counts["complete"] += 1
    print(f"{layout}{suffix}: {dict(counts)}")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".pth"])
@pytest.mark.filterwarnings("ignore")
def test_damage_at_full_size(tmp_path, suffix):
    """The real 171 MB: one bit of a number changed, then cut short."""
    path = tmp_path / f"a{suffix}"
    layout = "mindcv" if suffix == ".ckpt" else "torch"
    write_weights(Weights(dict(network().state_dict()), WeightsInfo()), path, layout=layout)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)
        file.seek(size // 2)
        file.write(bytes([byte[0] ^ 1]))
    changed = read_weights(path).state
    different = [n for n, t in network().state_dict().items() if not torch.equal(t, changed[n])]
    assert len(different) == 1
    del changed
    for length in (size - 1, size - 4096, size // 3):
        os.truncate(path, length)
        with pytest.raises(WeightsError, match="truncated or damaged"):
            read_weights(path)
