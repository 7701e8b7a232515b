from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from functools import cache

import pytest
import timm
import torch
from live import enliven
from torch import Tensor, nn

from inception_v4 import preprocessing
from inception_v4.network import model as model_module
from inception_v4.network import recompute
from inception_v4.network.model import InceptionV4

BOUND = 1e-12
VISIBLE = 1e-6
"""What a wrong detail must exceed, far above the rounding of float64."""


def cadene() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pretrainedmodels

        model = pretrainedmodels.models.inceptionv4(num_classes=1000, pretrained=None)
    model.avg_pool = nn.AdaptiveAvgPool2d(1)  # its own takes 8x8 maps only, which need 299 pixels
    return model


PEERS: dict[str, Callable[[], nn.Module]] = {"timm": lambda: timm.create_model("inception_v4"), "cadene": cadene}


@cache
def peer(name: str) -> nn.Module:
    """The other implementation in float64, with live weights; tests do not change it."""
    return enliven(PEERS[name]().double()).eval()


@cache
def twin() -> InceptionV4:
    """This network with timm's weights; tests do not change it."""
    return ours()


def ours(peer_name: str = "timm", **settings: object) -> InceptionV4:
    with torch.device("meta"):
        model = InceptionV4(**settings).double().eval()  # type: ignore[arg-type]
    weights = {name: value.clone() for name, value in peer(peer_name).state_dict().items()}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_()


def images(batch: int = 2, height: int = 75, width: int = 75) -> Tensor:
    generator = torch.Generator().manual_seed(batch + height + width)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)


def difference(a: Tensor, b: Tensor) -> float:
    """Relative to the spread of `b` over the batch: what a picture changes, without the constant part."""
    return ((a - b).norm() / (b - b.mean(0)).norm()).item()


def assert_same_gradients(model: nn.Module, reference: nn.Module) -> None:
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and b.grad.norm() > 0, name
        assert (a.grad - b.grad).norm() <= BOUND * b.grad.norm(), name


def test_the_weights_have_the_names_order_and_shapes_of_both_peers() -> None:
    with torch.device("meta"):
        model = InceptionV4()
    shapes = [(name, value.shape) for name, value in model.state_dict().items()]
    assert len(shapes) == 896
    for name in PEERS:
        assert shapes == [(key, value.shape) for key, value in peer(name).state_dict().items()]
    assert sum(parameter.numel() for parameter in model.parameters()) == 42_679_816


@pytest.mark.parametrize(("height", "width"), [(75, 75), (75, 90)])
def test_logits_equal_timm(height: int, width: int) -> None:
    x = images(2, height, width)
    with torch.no_grad():
        assert difference(twin()(x), peer("timm")(x)) < BOUND


def test_logits_and_gradients_equal_cadene() -> None:
    model, reference = ours("cadene"), peer("cadene")
    x = images(2, 107, 107)
    logits = [network(x) for network in (model, reference)]
    assert difference(*logits) < BOUND
    for output in logits:
        nn.functional.cross_entropy(output, torch.tensor([1, 2])).backward()
    assert_same_gradients(model, reference)
    reference.zero_grad()


@pytest.mark.parametrize("wrong", ["eps", "count_include_pad"])
def test_a_wrong_detail_would_be_seen(wrong: str) -> None:
    model = ours(bn_eps=1e-5 if wrong == "eps" else 1e-3)
    if wrong == "count_include_pad":
        for block in model.features:
            if hasattr(block, "branch3"):
                block.branch3[0] = nn.AvgPool2d(3, stride=1, padding=1)
    x = images(2, 107, 107)
    with torch.no_grad():
        assert difference(model(x), peer("timm")(x)) > VISIBLE


def test_a_training_step_equals_timm() -> None:
    reference = copy.deepcopy(peer("timm")).train()
    model = ours(drop_rate=0.0).train()
    x = images(3, 107, 107)
    outputs = [network(x) for network in (model, reference)]
    for output in outputs:
        nn.functional.cross_entropy(output, torch.tensor([1, 2, 3])).backward()
    assert difference(*outputs) < BOUND
    assert_same_gradients(model, reference)
    changed = 0
    before = peer("timm").state_dict()
    for name, value in reference.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, rtol=BOUND, atol=0), name
        changed += not torch.equal(value, before[name])
    assert changed == 3 * 149


def test_feature_levels_equal_timm() -> None:
    model, reference, x = twin(), peer("timm"), images(1, 75, 90)
    assert model.feature_info == reference.feature_info
    with torch.no_grad():
        pairs = [
            (network.forward_features(x), *network.forward_intermediates(x)[1], network(x))
            for network in (model, reference)
        ]
    assert [value.shape[1] for value in pairs[0][1:6]] == [info["num_chs"] for info in model.feature_info]
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


@pytest.mark.parametrize("indices", [2, [0, 1], [-4], (1, 0)])
@pytest.mark.parametrize("stop_early", [False, True])
def test_chosen_feature_levels_equal_timm(indices: int | list[int], stop_early: bool) -> None:
    x = images(1)
    with torch.no_grad():
        outputs = [n.forward_intermediates(x, indices, stop_early=stop_early) for n in (twin(), peer("timm"))]
        alone = twin().forward_intermediates(x, indices, stop_early=stop_early, intermediates_only=True)
    (last, levels), (timm_last, timm_levels) = outputs
    assert torch.equal(last, timm_last)
    assert len(levels) == len(timm_levels) == len(alone)
    assert all(torch.equal(a, b) for a, b in zip([*levels, *alone], [*timm_levels, *levels], strict=True))


@pytest.mark.parametrize("indices", [0, 6, [5], [-6], []])
def test_a_feature_level_that_is_not_there_is_refused(indices: int | list[int]) -> None:
    with pytest.raises(ValueError, match="5 feature levels"):
        twin().forward_intermediates(images(1), indices)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", ""])
def test_embeddings_equal_timm_with_every_pool(pool: str) -> None:
    with torch.device("meta"):
        reference = timm.create_model("inception_v4", num_classes=0, global_pool=pool).eval()
        model = InceptionV4(0, global_pool=pool).eval()
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model.head_hidden_size == reference.head_hidden_size
    with torch.no_grad():
        features = twin().forward_features(images(2, 75, 107))
        a, b = model.forward_head(features), reference.forward_head(features)
    assert a.shape == b.shape
    assert difference(a, b) < BOUND


def test_reset_classifier() -> None:
    model = ours(init="tf", drop_rate=0.0).train()
    features = torch.rand(2, 1536, 2, 2, dtype=torch.float64)
    model.reset_classifier(7, "catavgmax")
    head = model.get_classifier()
    assert isinstance(head, nn.Linear) and head.weight.dtype == torch.float64 and head.training
    assert head.weight.shape == (7, 3072) and model.num_classes == 7
    assert torch.equal(head.bias, torch.zeros_like(head.bias))
    assert model.forward_head(features).shape == (2, 7)
    assert model.forward_head(features, pre_logits=True).shape == (2, 3072)
    model.reset_classifier(0, "avg")
    assert torch.equal(model.forward_head(features), features.mean((2, 3)))


def shallow(**settings: object) -> InceptionV4:
    """One block of each kind, to train."""
    model = ours(**settings).train()  # type: ignore[arg-type]
    model.features = nn.Sequential(*(model.features[i] for i in (0, 1, 2, 3, 4, 5, 6, 10, 11, 18, 19)))
    return model


def step(model: InceptionV4, x: Tensor) -> None:
    torch.manual_seed(0)  # the same dropout
    model(x).square().sum().backward()


def test_checkpointing_changes_no_bit_and_counts_each_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shallow(drop_rate=0.5)
    frugal, careless = copy.deepcopy(plain), copy.deepcopy(plain)
    runs = []
    frugal.features[6].register_forward_pre_hook(lambda *_: runs.append(1))
    for model in (frugal, careless):
        model.set_grad_checkpointing()
    x = images(3)
    step(plain, x)
    step(frugal, x)
    assert len(runs) == 2
    for a, b in zip(frugal.parameters(), plain.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)
    assert all(torch.equal(a, b) for a, b in zip(frugal.buffers(), plain.buffers(), strict=True))
    assert all(norm.momentum == 0.1 for norm in frugal.modules() if isinstance(norm, nn.BatchNorm2d))

    monkeypatch.setattr(recompute, "_frozen_statistics", lambda block: contextlib.nullcontext())
    step(careless, x)
    assert not any(torch.equal(a, b) for a, b in zip(careless.buffers(), plain.buffers(), strict=True))


def test_checkpointing_with_synchronised_batchnorm() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(shallow())
    model.set_grad_checkpointing()
    step(model, images(2))
    assert int(model.features[0].bn.num_batches_tracked) == 1


@pytest.mark.slow
def test_checkpointing_under_compile_counts_each_batch_once() -> None:
    plain = shallow()
    frugal = copy.deepcopy(plain)
    frugal.set_grad_checkpointing()
    plain.forward_features(images()).sum().backward()
    torch.compile(frugal.forward_features, fullgraph=True, backend="aot_eager")(images()).sum().backward()
    assert_same_gradients(frugal.features, plain.features)
    for (name, a), b in zip(frugal.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=BOUND), name


@pytest.mark.slow
def test_compile_takes_the_network_as_one_graph() -> None:
    model = twin()
    with torch.no_grad():
        assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(images()), model(images()))


@pytest.mark.slow
def test_export_with_any_batch_size() -> None:
    model = twin()
    program = torch.export.export(model, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    with torch.no_grad():
        assert torch.equal(program(images(3)), model(images(3)))


@pytest.mark.skipif(not hasattr(torch.jit, "script"), reason="this torch has no TorchScript")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("pool", ["", "avg", "max", "avgmax", "catavgmax"])
def test_a_script_of_the_network_is_the_network(pool: str) -> None:
    """timm's `test_model_forward_torchscript`, and that the file it can be saved to gives the same numbers."""
    model = enliven(InceptionV4(0 if pool == "" else 7, global_pool=pool)).eval()
    script = torch.jit.script(model)
    x = images(2).float()
    outputs = script(x)
    assert outputs.shape[0] == 2 and not torch.isnan(outputs).any()
    file = io.BytesIO()
    torch.jit.save(script, file)
    file.seek(0)
    with torch.no_grad():
        expected = model(x)
        for network in (script, torch.jit.load(file)):
            assert torch.equal(network(x), expected)


@pytest.mark.skipif(not hasattr(torch.jit, "script"), reason="this torch has no TorchScript")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_script_trains_as_the_network_does() -> None:
    model = shallow(drop_rate=0.5)
    model.set_grad_checkpointing()  # TorchScript has none
    twin_model = copy.deepcopy(model)
    step(model, images(3))
    script = torch.jit.script(twin_model)
    step(script, images(3))
    assert_same_gradients(script, model)
    assert all(torch.equal(a, b) for a, b in zip(script.buffers(), model.buffers(), strict=True))


def test_torch_initialisation_is_pytorchs() -> None:
    torch.manual_seed(0)
    expected = nn.Conv2d(3, 32, 3, bias=False).weight
    torch.manual_seed(0)
    assert torch.equal(InceptionV4().features[0].conv.weight, expected)


def test_tf_initialisation_is_slims() -> None:
    model = InceptionV4(init="tf")
    for name in ("features.1", "features.11.branch2.4", "features.21.branch2_2"):
        weight = model.get_submodule(name).conv.weight
        fan_in = weight[0].numel()
        assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
        assert weight.abs().max().item() == pytest.approx(2 * (2.6 / fan_in) ** 0.5, rel=0.01)
    head = model.last_linear
    assert head.weight.abs().max().item() == pytest.approx((6 / 2536) ** 0.5, rel=0.001)
    assert not head.bias.any()


def test_xavier_initialisation_is_mindcvs() -> None:
    model = InceptionV4(init="xavier")
    weight = model.features[11].branch1[1].conv.weight  # 192 -> 224, 1x7
    assert weight.abs().max().item() == pytest.approx((6 / (7 * (192 + 224))) ** 0.5, rel=0.001)
    head = model.last_linear
    assert head.weight.abs().max().item() == pytest.approx(1536**-0.5, rel=0.001)
    assert head.bias.abs().max().item() == pytest.approx(1536**-0.5, rel=0.05)


def test_a_shallow_start_quietens_all_but_the_shortest_branches_and_lets_them_learn() -> None:
    model = InceptionV4(2, init="shallow", drop_rate=0.0)
    scales = {name: p for name, p in model.named_parameters() if name.endswith("bn.weight")}
    quiet = {name for name, p in scales.items() if torch.equal(p, torch.full_like(p, 0.1))}
    # Two deep branches in each A and B, four ends in each C, one in the stem and in each reduction.
    assert len(quiet) == 2 * 4 + 2 * 7 + 4 * 3 + 3
    assert {"features.4.branch1.3.bn.weight", "features.21.branch2_3b.bn.weight"} <= quiet
    nn.functional.cross_entropy(model(torch.randn(4, 3, 75, 75)), torch.tensor([0, 1, 0, 1])).backward()
    assert all(p.grad.any() for p in model.parameters())


def test_settings_reach_the_layers() -> None:
    with torch.device("meta"):
        model = InceptionV4(5, 1, 0.4, bn_eps=2e-3, bn_momentum=0.0003)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 149
    assert {(norm.eps, norm.momentum) for norm in norms} == {(2e-3, 0.0003)}
    assert model.head_drop.p == 0.4
    assert model(torch.zeros(2, 1, 75, 75, device="meta")).shape == (2, 5)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_classes": -1},
        {"in_channels": 0},
        {"drop_rate": 1.0},
        {"init": "he"},
        {"global_pool": "sum"},
        {"global_pool": "", "num_classes": 2},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, object]) -> None:
    name, value = next(iter(settings.items()))
    with torch.device("meta"), pytest.raises(ValueError, match=f"{name} .*{value}"):
        InceptionV4(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 74, 75), "74x75 .* 75"),
        ((1, 3, 299, 60), "299x60 .* 75"),
        ((1, 1, 75, 75), r"\[1, 1, 75, 75\].*\[batch, 3, height, width\]"),
        ((3, 75, 75), r"\[3, 75, 75\].*\[batch, 3, height, width\]"),
    ],
)
def test_images_of_the_wrong_shape_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        twin()(torch.zeros(shape))


def test_75_pixels_is_the_true_minimum() -> None:
    assert model_module.MIN_IMAGE_SIZE == preprocessing.MIN_IMAGE_SIZE
    assert twin().forward_features(images(1, 75, 75)).shape[2:] == (1, 1)
    with pytest.raises(RuntimeError, match="Kernel size"):
        peer("timm")(images(1, 74, 75))
