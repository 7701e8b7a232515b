"""Proof in the real MindSpore and MindCV, which run in an environment of their own.

`INCEPTION_V4_MINDSPORE_PYTHON` names its interpreter: a virtual environment with
`pip install "mindspore>=2.10,<2.11" "mindcv==0.3.0" "numpy<2"`.
"""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from live import enliven
from torch import nn
from weights_cases import fresh, network

from inception_v4.settings.schema import Optimizer
from inception_v4.training.optim import parameter_groups
from inception_v4.weights import WeightsInfo, load_weights, read_weights, save_weights
from inception_v4.weights.convert import convert_weights
from inception_v4.weights.files import msckpt
from inception_v4.weights.layouts import mindcv, modelzoo

HERE = Path(__file__).parent
PYTHON = os.environ.get("INCEPTION_V4_MINDSPORE_PYTHON", "")
SIZE = 107  # leaves a 2x2 map, so that BatchNorm in training has something to average

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON, reason="INCEPTION_V4_MINDSPORE_PYTHON names no Python with MindSpore and MindCV"),
]


def peer(folder: Path, *arguments: str | Path) -> None:
    """Run a command of `peer.py` in MindSpore's Python; its output goes to a file that is shown on failure."""
    log = folder / "peer.log"
    with log.open("w") as file:
        command = [PYTHON, str(HERE / "peer.py"), *map(str, arguments)]
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, check=False)
    assert done.returncode == 0, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def folder(module_folder):
    """Live weights, pictures and this package's logits."""
    path = module_folder("mindspore")
    save_weights(network(), path / "net.safetensors", WeightsInfo())
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    np.save(path / "images.npy", images.numpy())
    with torch.no_grad():
        np.save(path / "logits.npy", network()(images).numpy())
    return path


@pytest.mark.parametrize("name", ["mindcv.ckpt", "mindcv.safetensors"])
def test_mindcv_loads_strictly_and_gives_our_logits(folder, name):
    convert_weights(folder / "net.safetensors", folder / name, to="mindcv")
    peer(folder, "logits", "mindcv", folder / name, folder / "images.npy", folder / "out.npz")
    out, expected = np.load(folder / "out.npz"), np.load(folder / "logits.npy")
    difference, spread = np.abs(out["logits"] - expected).max(), expected.std()
    between = np.abs(expected[0] - expected[1]).max()
    print(
        f"{name}: {out['parameters']} parameters, largest difference of logits {difference:.1e}, their std {spread:.2f}"
    )
    assert out["left"].tolist() == []
    assert out["parameters"] == 747
    assert difference < 5e-4
    assert between > 100 * difference  # the signals are live


def test_a_full_page_cache_is_no_lack_of_memory(folder, tmp_path):
    convert_weights(folder / "net.safetensors", tmp_path / "net.ckpt", to="mindcv")
    peer(tmp_path, "memory", tmp_path / "net.ckpt", tmp_path / "counts.npy")
    assert np.load(tmp_path / "counts.npy").tolist() == [0, 747]


def test_modelzoo_structure_gives_our_probabilities(folder):
    convert_weights(folder / "net.safetensors", folder / "zoo.ckpt", to="modelzoo")
    peer(folder, "logits", "modelzoo", folder / "zoo.ckpt", folder / "images.npy", folder / "out.npz")
    out = np.load(folder / "out.npz")
    expected = torch.from_numpy(np.load(folder / "logits.npy")).log_softmax(1).numpy()
    logs, probabilities = (np.abs(f(out["logits"]) - f(expected)).max() for f in (np.asarray, np.exp))
    print(
        f"ModelZoo: {out['parameters']} parameters, softmax differs by {probabilities:.1e}, its logarithm by {logs:.1e}"
    )
    assert out["left"].tolist() == []
    assert out["parameters"] == 755
    assert probabilities < 1e-5
    assert logs < 5e-4


def test_modelzoo_file_with_live_norms_comes_here(folder, tmp_path):
    """BatchNorms around the classifier that do something, and small variances; MindSpore's output is the oracle."""
    convert_weights(folder / "net.safetensors", tmp_path / "plain.ckpt", to="modelzoo")
    file = msckpt.Checkpoint(tmp_path / "plain.ckpt")
    values = {name: file.read(name) for name in file.records}
    rng = np.random.default_rng(0)
    for name, value in values.items():
        if name.startswith(("bn0.", "softmax.batchnorm.")):
            value.array[...] = rng.uniform(0.3, 1.2, value.array.shape)
        elif name.startswith("features.16") and name.endswith("moving_variance"):
            value.array[::2] = rng.uniform(0, 9e-4, value.array[::2].shape)
            values[name.replace("moving_variance", "gamma")].array[::2] *= 0.02
    msckpt.write_msckpt(tmp_path / "live.ckpt", values)
    peer(tmp_path, "logits", "modelzoo", tmp_path / "live.ckpt", folder / "images.npy", tmp_path / "out.npz")
    model = fresh()
    load_weights(model, tmp_path / "live.ckpt")
    with torch.no_grad():
        ours = model(torch.from_numpy(np.load(folder / "images.npy"))).softmax(1).numpy()
    difference = np.abs(np.exp(np.load(tmp_path / "out.npz")["logits"]) - ours).max()
    print(f"folded ModelZoo: softmax differs by {difference:.1e}, largest {ours.max():.2f}")
    assert difference < 2e-4


def test_files_that_mindspore_wrote_come_back_bit_for_bit(folder, tmp_path):
    convert_weights(folder / "net.safetensors", tmp_path / "ours.ckpt")
    peer(tmp_path, "save", tmp_path / "ours.ckpt", tmp_path)
    assert (tmp_path / "plain.ckpt").read_bytes() == (tmp_path / "ours.ckpt").read_bytes()
    expected = network().state_dict()
    for name, dtype in {
        "plain.ckpt": torch.float32,
        "crc.ckpt": torch.float32,
        "plain.safetensors": torch.float32,
        "half.ckpt": torch.float16,
        "bfloat.ckpt": torch.bfloat16,
    }.items():
        state = read_weights(tmp_path / name).state
        same = sum(torch.equal(state[n], t.to(dtype)) for n, t in expected.items() if t.is_floating_point())
        print(f"{name}: {same} of 747 tensors bit for bit")
        assert same == 747
    damaged = bytearray((tmp_path / "crc.ckpt").read_bytes())
    damaged[1_000_000] ^= 1
    (tmp_path / "damaged.ckpt").write_bytes(damaged)
    with pytest.raises(ValueError, match="CRC"):
        read_weights(tmp_path / "damaged.ckpt")
    convert_weights(folder / "net.safetensors", tmp_path / "plain.ckpt")  # MindSpore left it with mode 0400
    assert (tmp_path / "plain.ckpt").stat().st_mode & 0o200


@pytest.fixture(scope="module")
def trained(module_folder):
    """Checkpoints of MindSpore's own training, and the parameters it had."""
    path = module_folder("trained")
    peer(path, "train", path)
    return path


@pytest.mark.parametrize(
    ("name", "table", "extras"),
    [
        ("momentum", mindcv.table, {"moments.*: 449 entries", "global_step: training state"}),
        ("ema", mindcv.table, {"moments.*: 449 entries", "updates: training state", "learning_rate: training state"}),
        ("rmsprop", modelzoo.table, {f"{slot}.*: 453 entries" for slot in ("mean_square", "moment", "mean_grad")}),
    ],
)
def test_checkpoints_of_real_training(trained, name, table, extras):
    (path,) = trained.glob(f"{name}-*.ckpt")
    held = np.load(trained / f"{name}.npz")
    weights = read_weights(path)
    print(f"{path.name}: {weights.layout}, {weights.tensors} of {len(msckpt.Checkpoint(path).records)} entries")
    assert extras | {"epoch_num: training state", "note: training state"} <= set(weights.dropped)
    if name != "rmsprop":  # the ModelZoo's numbers change on the way in; its names do not
        assert all(np.array_equal(weights.state[n].numpy(), held[other]) for n, other in table().items())
    assert set(table().values()) <= set(held.files)
    if name == "ema":
        average = read_weights(path, ema=True).state
        assert all(np.array_equal(average[n].numpy(), held[f"ema.{other}"]) for n, other in table().items())
        assert not torch.equal(average["last_linear.bias"], weights.state["last_linear.bias"])


def apart(one: np.ndarray | torch.Tensor, other: torch.Tensor) -> float:
    """The norm of the difference, as a share of the norm."""
    return float((torch.as_tensor(one) - other).norm() / other.norm())


def away_from(exact, model, images, labels) -> float:
    """Largest relative distance of a parameter's gradient from that of `exact`."""
    model.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    pairs = zip(model.parameters(), exact.parameters(), strict=True)
    return max(float((a.grad - b.grad).norm() / b.grad.norm()) for a, b in pairs)


def test_training_goes_on_in_mindspore(folder, tmp_path):
    """Weights and Momentum's state from here; one step there and one here agree, and so do BatchNorm's statistics.

    The step holds the statistics still: through 149 BatchNorms on few pictures float32 gradients are chaotic (PyTorch's
    own differ from float64's by a fifth), so that a comparison would show nothing.
    """
    torch.set_num_threads(2)  # the weights, and how far they magnify rounding, depend on it
    torch.manual_seed(0)
    model = enliven(fresh(10, drop_rate=0.0, bn_momentum=1 - 0.9997)).eval()
    groups = parameter_groups(model, Optimizer(weight_decay=4e-5))
    optimizer = torch.optim.SGD(groups, 0.01, momentum=0.9)
    images, labels = torch.from_numpy(np.load(folder / "images.npy")), torch.tensor([1, 2, 3, 4])
    np.save(tmp_path / "labels.npy", labels.numpy())

    def step() -> float:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    step()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, tmp_path / "step-00000001.pt"
    )
    convert_weights(tmp_path / "step-00000001.pt", tmp_path / "here.ckpt", with_optimizer=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    peer(
        tmp_path,
        "step",
        tmp_path / "here.ckpt",
        folder / "images.npy",
        tmp_path / "labels.npy",
        tmp_path / "after.npz",
    )
    earlier = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    exact, orders = copy.deepcopy(model).double(), ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1])
    nn.functional.cross_entropy(exact(images.double()), labels).backward()
    # What float32 itself costs on this processor: our own gradients against those of float64. How near they come is
    # partly chance; sums in other orders round otherwise, as MindSpore's do.
    rounding = max(away_from(exact, copy.deepcopy(model), images[order], labels[order]) for order in orders)
    loss, after = step(), np.load(tmp_path / "after.npz")
    with torch.no_grad():
        model.train()(images)
    limit = max(1e-3, rounding)
    changes, moments, forgotten = [], [], []
    for name, parameter in model.named_parameters():
        other = mindcv.table()[name]
        moved = parameter.detach() - before[name]
        buffer = optimizer.state[parameter]["momentum_buffer"]
        changes.append(apart(after[other] - before[name].numpy(), moved))
        moments.append(apart(after[f"moments.{other}"], buffer))
        forgotten.append(apart(buffer - 0.9 * earlier[name], buffer))
    ours = model.state_dict()
    running = {name: other for name, other in mindcv.table().items() if "running" in name}
    statistics = max(float(np.abs(after[other] - ours[name].numpy()).max()) for name, other in running.items())
    drift = min(float((ours[name] - before[name]).abs().max()) for name in running)
    print(
        f"one step: loss {loss:.6f} here, {float(after['loss']):.6f} there; parameters differ by at most "
        f"{max(changes):.1e} of their step, moments by {max(moments):.1e}, BatchNorm statistics by {statistics:.1e}"
        f"; float32 gradients here are {rounding:.1e} from float64's"
    )
    assert sorted(after["missing"].tolist()) == ["learning_rate", "momentum"]
    assert after["global_step"].tolist() == [2]
    assert abs(loss - after["loss"]) < 1e-4
    assert limit < 2e-2, "float32 is too rough on this processor to show anything"
    assert max(changes) < limit  # without the decay of gamma it would be 2.6e-2
    assert max(moments) < limit
    assert min(forgotten) > 0.1  # a step without Momentum's state from here would show
    assert statistics < 1e-6 * (limit / 1e-3) < drift / 10  # they follow the step
