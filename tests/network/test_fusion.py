from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from live import enliven
from torch import Tensor, nn

from inception_v4.accelerator import onednn
from inception_v4.network.fusion import FusedInceptionV4, fuse
from inception_v4.network.model import InceptionV4


@cache
def plain() -> InceptionV4:
    """Live weights in float64; tests do not change it."""
    return enliven(InceptionV4().double()).eval()


@cache
def shallow() -> InceptionV4:
    """The same with one block of each kind."""
    model = InceptionV4().double()
    model.features = nn.Sequential(*(model.features[i] for i in (0, 1, 2, 3, 4, 5, 6, 10, 11, 18, 19)))
    return enliven(model).eval()


def images(batch: int = 2, side: int = 75, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(batch + side)
    return torch.randn(batch, channels, side, side, generator=generator, dtype=torch.float64)


def difference(a: Tensor, b: Tensor) -> float:
    """Relative to the spread of `b` over the batch: what a picture changes, without the constant part."""
    return ((a.double() - b).norm() / (b - b.mean(0)).norm()).item()


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("side", "join"), [(75, True), (107, True), (75, False)])
def test_fused_equals_plain(side: int, join: bool) -> None:
    x = images(2, side)
    fused = fuse(plain(), join=join)
    assert difference(fused(x), plain()(x)) < 1e-12
    for a, b in zip(fused.forward_intermediates(x)[1], plain().forward_intermediates(x)[1], strict=True):
        assert (a - b).norm() < 1e-12 * b.norm()


def test_the_smallest_change_of_a_fused_bias_would_be_seen() -> None:
    fused = fuse(shallow())
    x = images()
    expected = fused(x)
    fused.features[6].fused.bias.mul_(1 + 1e-6)
    assert difference(fused(x), expected) > 1e-9


def test_fused_equals_plain_in_float32_and_any_memory_format() -> None:
    x = images(2, 107)
    expected = plain()(x)
    scale = expected.norm()
    model = copy.deepcopy(plain()).float()
    for layout in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=layout)
        fused = fuse(model)
        weights = [parameter for parameter in fused.parameters() if parameter.ndim == 4]
        assert all(weight.is_contiguous(memory_format=layout) for weight in weights)
        assert (fused(x.float().to(memory_format=layout)) - expected).norm() < 1e-5 * scale


@pytest.mark.slow
def test_folding_before_bfloat16_loses_no_more_than_bfloat16_itself() -> None:
    x = images(2, 107)
    expected = plain()(x)
    fused = (fuse(plain()).to(torch.bfloat16)(x.bfloat16()) - expected).norm() / expected.norm()
    unfused = (copy.deepcopy(plain()).to(torch.bfloat16)(x.bfloat16()) - expected).norm() / expected.norm()
    assert 0 < fused < 1.5 * unfused


@pytest.mark.parametrize("settings", [{"num_classes": 0}, {"num_classes": 3, "in_channels": 1, "bn_eps": 0.1}])
def test_other_networks(settings: dict[str, object]) -> None:
    model = enliven(InceptionV4(**settings).double()).eval()  # type: ignore[arg-type]
    x = images(channels=model.in_channels)
    assert difference(fuse(model)(x), model(x)) < 1e-12


def test_the_input_stays_as_it_is_and_shares_nothing() -> None:
    model = InceptionV4(4).train()
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    for parameter in fused.parameters():
        parameter.zero_()
    assert model.training and model.head_drop.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_fused_takes_the_place_of_the_plain_model() -> None:
    fused, model = fuse(plain()), plain()
    for name in ("num_classes", "in_channels", "num_features", "head_hidden_size", "drop_rate", "feature_info"):
        assert getattr(fused, name) == getattr(model, name)
    x = images()
    features = fused.forward_features(x)
    assert torch.equal(fused.forward_head(features), fused(x))
    assert fused.forward_head(features, pre_logits=True).shape == (2, 1536)
    assert not fused.training and not any(parameter.requires_grad for parameter in fused.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == 149 - 3 * 14
    with pytest.raises(ValueError, match="75"):
        fused(images(1, 74))


def _broken(*args: object, **options: object) -> Tensor:
    raise RuntimeError("mkldnn::_convolution_pointwise() is missing value for argument 'algorithm'")


def _wrong(convolution: nn.Conv2d, x: Tensor, *args: object, **options: object) -> Tensor:
    return convolution(x.float())  # and no ReLU


@pytest.mark.parametrize("convolve", [_broken, _wrong])
def test_a_torch_without_the_private_operators_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, convolve: Callable[..., Tensor]
) -> None:
    x = images().float().contiguous(memory_format=torch.channels_last)
    model = copy.deepcopy(shallow()).float().to(memory_format=torch.channels_last)
    monkeypatch.setattr(onednn, "convolve", convolve)
    onednn._types.cache_clear()
    try:
        assert onednn._types() == frozenset()
        assert difference(fuse(model)(x), shallow()(x.double())) < 1e-4
    finally:
        onednn._types.cache_clear()


def test_trying_the_operators_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    onednn._types.cache_clear()
    onednn._types()
    assert torch.equal(before, torch.get_rng_state())


def test_gradients_of_the_input_still_flow() -> None:
    gradients = []
    for model in (fuse(shallow()), shallow()):
        x = images()
        with torch.enable_grad():
            x.requires_grad_()
            model(x).square().sum().backward(inputs=[x])
        gradients.append(x.grad)
    assert (gradients[0] - gradients[1]).norm() < 1e-12 * gradients[1].norm()


@pytest.mark.parametrize("join", [True, False])
def test_laid_out_weights_give_what_the_convolutions_give(join: bool, monkeypatch) -> None:
    """In every type that has them, after `to`, after a change of a weight, and for batches of other shapes."""
    fused = fuse(copy.deepcopy(shallow()).float(), join=join).to(memory_format=torch.channels_last)

    def both(x: Tensor, amp: torch.dtype | None = None) -> tuple[Tensor, Tensor, int]:
        x = x.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=amp, enabled=amp is not None):
            with monkeypatch.context() as patch:
                patch.setattr(onednn, "type_for", lambda x, convolution: None)
                expected = fused(x)
            calls: list[bool] = []
            with monkeypatch.context() as patch:
                real = onednn.convolve
                patch.setattr(onednn, "convolve", lambda *a, relu: calls.append(relu) or real(*a, relu=relu))
                return fused(x), expected, len(calls)

    count = sum(isinstance(module, nn.Conv2d) for module in fused.modules())
    usable = count if onednn._types() else 0
    x = images(2, 107).float()
    outputs = []
    for batch in (x, x[:1], x, images(3, 75).float()):
        y, expected, calls = both(batch)
        assert calls == usable and (y - expected).norm() < 1e-5 * expected.norm()
        outputs.append(y)
    assert torch.equal(outputs[0], outputs[2])
    fused.features[6].get_submodule("fused" if join else "branch0.0").weight.mul_(1.5)
    changed, expected, _ = both(x)
    assert (changed - expected).norm() < 1e-5 * expected.norm() < 1e-2 * (changed - outputs[0]).norm()
    for amp, kind in ((torch.bfloat16, torch.float32), (None, torch.bfloat16)):
        fused.to(kind)
        y, expected, calls = both(x.to(kind), amp)
        assert calls == (usable if torch.bfloat16 in onednn._types() else 0) and y.dtype == torch.bfloat16
        assert (y.float() - expected.float()).norm() < 0.05 * expected.float().norm()


@pytest.mark.parametrize("use", ["gradients", "contiguous", "float64", "copied", "inference"])
def test_laid_out_weights_are_left_out_where_they_do_not_apply(use: str, monkeypatch) -> None:
    fused = fuse(copy.deepcopy(shallow()).float()).to(memory_format=torch.channels_last)
    x = images(2, 75).float().to(memory_format=torch.channels_last)
    expected = fused(x)
    if use == "gradients":
        with torch.enable_grad():
            assert fused(x.requires_grad_()).requires_grad
    elif use == "contiguous":
        monkeypatch.setattr(onednn, "convolve", None)
        plainly = fused.to(memory_format=torch.contiguous_format)(x.contiguous())
        assert (plainly - expected).norm() < 1e-5 * expected.norm()
    elif use == "float64":
        assert difference(fused.double()(x.double()), expected.double()) < 1e-4
    elif use == "copied":
        assert torch.equal(copy.deepcopy(fused)(x), expected)
    else:
        with torch.inference_mode():
            made = fuse(copy.deepcopy(shallow()).float()).to(memory_format=torch.channels_last)
            assert torch.equal(made(x), expected)


def test_compile_takes_the_fused_network_as_one_graph() -> None:
    fused = fuse(shallow())
    assert torch.equal(torch.compile(fused, fullgraph=True, backend="eager")(images()), fused(images()))


@pytest.mark.slow
def test_export_with_any_batch_size_and_common_operators_only() -> None:
    fused = fuse(plain())
    program = torch.export.export(fused, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.equal(program.module()(images(3)), fused(images(3)))
    nodes = program.run_decompositions({}).graph.nodes
    operators = {node.target._overloadpacket.__name__ for node in nodes if hasattr(node.target, "_overloadpacket")}
    operators -= {"clone"}  # which an older torch makes of dropout
    assert operators == {"conv2d", "relu", "avg_pool2d", "max_pool2d", "cat", "split_with_sizes", "mean", "linear"}


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda fused: fused.train(), "train the plain model"),
        (lambda fused: fused.state_dict(), r"save the model given to fuse\(\)"),
        (lambda fused: fused.load_state_dict(shallow().state_dict()), r"before calling fuse\(\)"),
    ],
)
def test_what_only_the_plain_model_can_do_is_refused(use, message: str) -> None:
    fused = fuse(shallow())
    assert fused.eval() is fused and fused.train(False) is fused
    with pytest.raises(RuntimeError, match=message):
        use(fused)


def test_only_a_plain_model_can_be_fused() -> None:
    fused = fuse(shallow())
    assert isinstance(fused, FusedInceptionV4) and isinstance(copy.deepcopy(fused), FusedInceptionV4)
    for model in (fused, nn.DataParallel(shallow()), nn.Linear(1, 1)):
        with pytest.raises(ValueError, match=f"cannot fuse a {type(model).__name__}"):
            fuse(model)


def test_synchronised_batchnorm_folds_too() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(shallow()))
    assert difference(fuse(model)(images()), shallow()(images())) < 1e-12
