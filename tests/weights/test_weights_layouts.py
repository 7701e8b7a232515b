"""Every layout: names, algebra, recognition, and what training leaves in MindSpore's files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from live import enliven
from running import ROOT
from safetensors.torch import save_file
from torch import nn
from weights_cases import equal, fresh, logits, network, save, tiny_state

from inception_v4.preprocessing import IMAGENET_MEAN, Preprocessing
from inception_v4.weights import LAYOUTS, Weights, WeightsError, WeightsInfo
from inception_v4.weights.files import msckpt
from inception_v4.weights.files.mindspore import from_tensor
from inception_v4.weights.layouts import mindcv, modelzoo, tfslim
from inception_v4.weights.layouts.epsilon import shift_epsilon
from inception_v4.weights.layouts.registry import layout_of
from inception_v4.weights.loading import load_weights
from inception_v4.weights.names import COUNTER
from inception_v4.weights.reading import read_weights
from inception_v4.weights.writing import write_weights

PARAMETERS = json.loads((ROOT / "tests" / "mindspore" / "fixtures" / "mindcv_parameters.json").read_text())


def encoded(layout: str, state: dict, **info) -> dict:
    classes = state["last_linear.bias"].shape[0]
    return LAYOUTS[layout].encode(state, WeightsInfo(classes, **info), [])


def write_ckpt(path: Path, tensors: dict) -> Path:
    msckpt.write_msckpt(path, {n: t if isinstance(t, str) else from_tensor(t) for n, t in tensors.items()})
    return path


def without_counters(state: dict) -> dict:
    return {name: tensor for name, tensor in state.items() if COUNTER not in name}


def test_mindcv_names_order_and_shapes_are_the_real_network_s():
    tensors = encoded("mindcv", dict(network().state_dict()))
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == PARAMETERS
    assert list(tensors) == list(PARAMETERS)


def test_modelzoo_names():
    names = set(encoded("modelzoo", tiny_state()))
    assert len(names) == 755
    assert names >= {
        "features.0.conv2d_1a_3x3.conv.conv.weight",
        "features.13.branch_1.3.conv.batchnorm.moving_variance",
        "features.16.branch_2_2.conv.batchnorm.gamma",
        "bn0.gamma",
        "softmax.dense.weight",
        "softmax.batchnorm.moving_mean",
    }


def test_tfslim_names_and_shapes():
    tensors = encoded("tf-slim", dict(network(1001).state_dict()))
    assert len(tensors) == 598
    assert tensors["InceptionV4/Logits/Logits/weights"].shape == (1536, 1001)
    assert tensors["InceptionV4/Mixed_7d/Branch_2/Conv2d_0b_3x1/weights"].shape == (3, 1, 384, 448)
    assert tensors["InceptionV4/Mixed_6h/Branch_2/Conv2d_0e_1x7/weights"].shape == (1, 7, 224, 256)
    assert "InceptionV4/Mixed_3a/Branch_1/Conv2d_0a_3x3/BatchNorm/moving_variance" in tensors


@pytest.mark.parametrize("layout", ["torch", "cadene", "mindcv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_renaming_layouts_are_bit_exact(tmp_path, layout, dtype):
    state = {n: t.to(dtype) if t.is_floating_point() else torch.tensor(0) for n, t in tiny_state().items()}
    for suffix in LAYOUTS[layout].suffixes:
        path = tmp_path / f"a{suffix}"
        write_weights(Weights(state, WeightsInfo()), path, layout=layout)
        assert equal(read_weights(path).state, state)


def test_names_alone_decide_the_layout():
    for layout in LAYOUTS:
        expected = "torch" if layout == "cadene" else layout
        assert layout_of(encoded(layout, tiny_state())) == expected
    old = {name.replace("last_linear", "classif") for name in tiny_state()}
    assert layout_of(old) == "cadene"


class ModelZoo(nn.Module):
    """The ModelZoo's function: another epsilon, a BatchNorm on each side of the classifier, log-softmax."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = fresh(classes, bn_eps=1e-5).double()
        self.bn0 = nn.BatchNorm1d(1536, eps=1e-3).double()
        self.bn1 = nn.BatchNorm1d(classes, eps=1e-5).double()
        enliven(self.backbone)
        for norm in (self.bn0, self.bn1):
            nn.init.uniform_(norm.weight, -1.5, 1.5)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.1, 2)
        self.eval()

    def forward(self, x):
        features = self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)
        return self.bn1(self.backbone.last_linear(self.bn0(features))).log_softmax(1)

    def tensors(self) -> dict:
        """Under the ModelZoo's names."""
        state = self.backbone.state_dict()
        named = {other: state[name] for name, other in modelzoo.table().items()}
        for prefix, norm in (("bn0", self.bn0), ("softmax.batchnorm", self.bn1)):
            parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            leaves = ("moving_mean", "moving_variance", "gamma", "beta")
            named |= {f"{prefix}.{leaf}": part.detach() for leaf, part in zip(leaves, parts, strict=True)}
        return named


def test_modelzoo_folds_to_the_same_probabilities(tmp_path):
    """All its freedoms used: live BatchNorms around the classifier, and variances below the epsilons' difference."""
    torch.manual_seed(0)
    zoo = ModelZoo(10)
    tensors = zoo.tensors()
    tiny = 0
    for name, tensor in tensors.items():
        if name.endswith(".conv.batchnorm.moving_variance") and "features.16" in name:
            tensor[::2] = torch.rand(len(tensor[::2]), dtype=torch.float64) * 9e-4
            tensors[name.replace("moving_variance", "gamma")][::2] *= 0.02  # as trained ones are
            tiny += len(tensor[::2])
    model = fresh(10).double()
    report = load_weights(model, write_ckpt(tmp_path / "zoo.ckpt", tensors))
    expected = logits_of(zoo)
    assert tiny > 900
    assert expected.std() > 0.5
    assert (logits_of(model).log_softmax(1) - expected).abs().max() < 1e-9
    assert any("folded into the classifier" in line for line in report.messages)
    tensors["bn0.beta"] = tensors["bn0.beta"] + 0.01
    load_weights(model, write_ckpt(tmp_path / "other.ckpt", tensors))
    assert (logits_of(model).log_softmax(1) - expected).abs().max() > 1e-4  # the negative control


def logits_of(model: nn.Module):
    with torch.no_grad():
        return model(torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(1)).double())


def test_modelzoo_there_and_back(tmp_path):
    state = tiny_state()
    write_weights(Weights(state, WeightsInfo()), tmp_path / "a.ckpt", layout="modelzoo")
    back = read_weights(tmp_path / "a.ckpt").state
    changed = {name for name, tensor in without_counters(state).items() if not torch.equal(tensor, back[name])}
    assert all(name.endswith("running_var") for name in changed)
    assert max((float((back[n] - state[n]).abs().max()) for n in changed), default=0) < 1e-6


def test_modelzoo_half_precision_is_widened(tmp_path):
    half = {n: t.half() for n, t in encoded("modelzoo", tiny_state()).items()}
    back = read_weights(write_ckpt(tmp_path / "a.ckpt", half)).state
    assert {t.dtype for t in without_counters(back).values()} == {torch.float32}


@pytest.mark.parametrize("layout", ["mindcv", "cadene", "modelzoo", "tf-slim"])
def test_another_epsilon_is_moved_into_the_variances(tmp_path, layout):
    """A network trained with epsilon 1e-5 keeps its function where the layout has only 1e-3."""
    model = enliven(fresh(10, bn_eps=1e-5))
    with torch.no_grad():
        model.features[1].bn.running_var[:9] = 1e-6
    suffix = LAYOUTS[layout].suffixes[0]
    write_weights(
        Weights(dict(model.state_dict()), WeightsInfo(10, bn_eps=1e-5)), tmp_path / f"a{suffix}", layout=layout
    )
    back = fresh(10)
    report = load_weights(back, tmp_path / f"a{suffix}")
    assert report.info.bn_eps == 1e-3
    assert torch.allclose(logits(back), logits(model), rtol=1e-4, atol=1e-4 * float(logits(model).abs().max()))
    assert shift_epsilon(dict(model.state_dict()), 1e-3, 1e-3)["features.1.bn.running_var"][0] == 1e-6


def test_tfslim_gamma_moves_into_the_kernels(tmp_path):
    notes = write_weights(Weights(dict(network().state_dict()), WeightsInfo()), tmp_path / "a.npz", layout="tf-slim")
    model = fresh()
    load_weights(model, tmp_path / "a.npz")
    assert (model.features[6].branch0.bn.weight == 1).all()
    assert torch.allclose(logits(model), logits(network()), atol=2e-5)
    assert notes[0].startswith("gamma: 149 folded into kernels and means")


def test_tfslim_dump_with_everything_in_it(tmp_path):
    """Auxiliary head, optimizer slots, global_step, `:0` and averages, as a real dump has them."""
    plain, average = (encoded("tf-slim", tiny_state(1001, seed=seed)) for seed in (0, 1))
    dump = {name + ":0": tensor.numpy() for name, tensor in plain.items()}
    dump |= {f"{n}/ExponentialMovingAverage": t.numpy() for n, t in average.items() if "moving" not in n}
    dump |= {f"{n}/RMSProp": t.numpy() for n, t in plain.items() if "moving" not in n}
    dump |= {
        "InceptionV4/AuxLogits/Conv2d_1b_1x1/weights": np.ones((1, 1, 2, 2), np.float32),
        "global_step": np.int64(7),
    }
    np.savez(tmp_path / "a.npz", **dump)
    weights = read_weights(tmp_path / "a.npz")
    assert (weights.layout, weights.info.num_classes, weights.tensors) == ("tf-slim", 1001, 598)
    assert set(weights.dropped) == {"RMSProp: 300 variables", "AuxLogits/*: 1 variables", "global_step: 1 variables"}
    assert torch.equal(weights.state["last_linear.weight"], tiny_state(1001)["last_linear.weight"])
    averaged = read_weights(tmp_path / "a.npz", ema=True)
    assert torch.equal(averaged.state["last_linear.weight"], tiny_state(1001, seed=1)["last_linear.weight"])
    del dump["InceptionV4/Conv2d_1a_3x3/weights:0"]
    np.savez(tmp_path / "b.npz", **dump)
    with pytest.raises(WeightsError, match=r"missing 1 \(InceptionV4/Conv2d_1a_3x3/weights\)"):
        read_weights(tmp_path / "b.npz")


def test_tfslim_with_gamma_is_used(tmp_path):
    tensors = encoded("tf-slim", tiny_state())
    tensors |= {f"InceptionV4/{s}/BatchNorm/gamma": torch.full((2,), 0.5) for s in tfslim.UNITS.values()}
    np.savez(tmp_path / "a.npz", **{n: t.numpy() for n, t in tensors.items()})
    assert (read_weights(tmp_path / "a.npz").state["features.9.branch0.bn.weight"] == 0.5).all()


def training_file(tensors: dict, slots: list[str]) -> dict:
    """What Model.train leaves in a checkpoint besides the network."""
    trainable = [name for name in tensors if not name.rsplit(".", 1)[1].startswith("moving")]
    extra = {f"{slot}.{name}": torch.zeros_like(tensors[name]) for slot in slots for name in trainable}
    extra |= {"global_step": torch.tensor([5], dtype=torch.int32), "learning_rate": torch.rand(100)}
    return tensors | extra | {"epoch_num": torch.tensor(3), "note": "written by hand"}


@pytest.mark.parametrize("slots", [["moments"], ["mean_square", "moment", "mean_grad"], ["adam_m", "adam_v"]])
@pytest.mark.parametrize("layout", ["mindcv", "modelzoo"])
def test_mindspore_training_checkpoints(tmp_path, layout, slots):
    tensors = encoded(layout, tiny_state())
    path = write_ckpt(tmp_path / "train.ckpt", training_file(tensors, slots))
    weights = read_weights(path)
    assert weights.layout == layout
    assert equal(weights.state, read_weights(write_ckpt(tmp_path / "plain.ckpt", tensors)).state)
    count = 449 if layout == "mindcv" else 453
    assert set(weights.dropped) == {
        *(f"{slot}.*: {count} entries" for slot in slots),
        *(f"{name}: training state" for name in ("global_step", "learning_rate", "epoch_num", "note")),
    }


def test_mindcv_moving_average(tmp_path):
    plain, average = (encoded("mindcv", tiny_state(seed=seed)) for seed in (0, 1))
    tensors = plain | {f"ema.{name}": tensor for name, tensor in average.items()} | {"updates": torch.tensor(9)}
    path = write_ckpt(tmp_path / "a.ckpt", tensors)
    assert torch.equal(read_weights(path).state["last_linear.bias"], tiny_state()["last_linear.bias"])
    averaged = read_weights(path, ema=True)
    assert torch.equal(averaged.state["last_linear.bias"], tiny_state(seed=1)["last_linear.bias"])
    assert averaged.dropped == ["updates: training state"]


def test_optimizer_file_without_statistics_is_refused(tmp_path):
    tensors = {n: t for n, t in encoded("mindcv", tiny_state()).items() if "moving" not in n}
    assert len(tensors) == 449
    with pytest.raises(WeightsError, match=r"holds no BatchNorm statistics, as MindCV's optim_\*\.ckpt do"):
        read_weights(write_ckpt(tmp_path / "optim_inception_v4.ckpt", tensors))


@pytest.mark.parametrize("layout", ["mindcv", "modelzoo"])
def test_file_cut_between_records_misses_names(tmp_path, layout):
    tensors = encoded(layout, tiny_state())
    for keep in (1, 300, len(tensors) - 1):
        part = dict(list(tensors.items())[:keep])
        with pytest.raises(WeightsError, match=r"missing|no BatchNorm statistics|another network"):
            read_weights(write_ckpt(tmp_path / "a.ckpt", part))


def test_mindspore_safetensors(tmp_path):
    """As MindSpore writes them: `format: ms`, its names, training entries among them."""
    tensors = {
        n: t.contiguous() for n, t in training_file(encoded("mindcv", tiny_state()), ["moments"]).items() if n != "note"
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "ms"})
    weights = read_weights(tmp_path / "a.safetensors")
    assert weights.layout == "mindcv"
    assert "moments.*: 449 entries" in weights.dropped
    assert weights.info.preprocessing == mindcv.PREPROCESSING


def test_usual_preprocessing_of_each_layout(tmp_path):
    expected = {
        "torch": Preprocessing(),
        "tf-slim": Preprocessing(),
        "mindcv": Preprocessing(
            mean=IMAGENET_MEAN, std=(0.229, 0.224, 0.225), interpolation="bilinear", antialias=False
        ),
    }
    expected["modelzoo"] = expected["mindcv"].replace(crop_pct=1.0)
    for layout, preprocessing in expected.items():
        path = tmp_path / f"a{LAYOUTS[layout].suffixes[0]}"
        write_weights(Weights(tiny_state(), WeightsInfo()), path, layout=layout)
        assert read_weights(path).info.preprocessing == Preprocessing()  # what was written travels
        if path.suffix == ".safetensors":
            save_file(tiny_state(), path)
        path.with_name(path.name + ".json").unlink(missing_ok=True)
        weights = read_weights(path)
        assert (weights.info.preprocessing, weights.described) == (preprocessing, False), layout
    torch_file = save(tiny_state(1001), tmp_path / "b.pth")
    assert read_weights(torch_file).info.preprocessing == Preprocessing()


def test_a_layout_can_be_insisted_on(tmp_path):
    path = save(tiny_state(), tmp_path / "a.pth")
    assert read_weights(path, layout="torch").layout == "torch"
    with pytest.raises(WeightsError, match=r"not a complete network of this layout|no BatchNorm statistics"):
        read_weights(path, layout="mindcv")


@pytest.mark.parametrize("layout", ["mindcv", "modelzoo", "tf-slim"])
def test_counters_are_said_only_where_something_is_lost(layout):
    for count, lines in {0: 0, 9: 1}.items():
        state = tiny_state() | {n: torch.tensor(count) for n in tiny_state() if n.endswith(COUNTER)}
        notes: list[str] = []
        LAYOUTS[layout].encode(state, WeightsInfo(), notes)
        assert sum(COUNTER in line for line in notes) == lines
