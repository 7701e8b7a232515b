"""Products of matrices in place of convolutions of small maps: the same sums, where they are faster alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from in_process import Calls
from torch import Tensor, nn

from inception_v4.network.model import InceptionV4
from inception_v4.network.small_maps import LARGEST_MAP, Conv2d

CASES = {
    "1x1": (1, 1, 0, (3, 2)),
    "1x1 of one place": (1, 1, 0, (1, 1)),
    "1x7, as many places as taps reach": ((1, 7), 1, (0, 3), (2, 4)),
    "1x7": ((1, 7), 1, (0, 3), (3, 2)),
    "7x1": ((7, 1), 1, (3, 0), (3, 2)),
    "7x1 of one place": ((7, 1), 1, (3, 0), (1, 1)),
    "1x3": ((1, 3), 1, (0, 1), (2, 2)),
    "3x1 of one place": ((3, 1), 1, (1, 0), (1, 1)),
    "one window": (3, 2, 0, (3, 3)),
    "one window, a row and a column left over": (3, 2, 0, (4, 4)),
    "one padded window": (3, 2, 1, (2, 2)),
    "one padded window of one place": (3, 2, 1, (1, 1)),
}
"""Kernel, stride, padding, and the map."""


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in the type in which differences show."""
    monkeypatch.setitem(LARGEST_MAP, torch.float64, 5)


PRODUCTS = 107
"""Of a pass at 75 px in float32: all 106 convolutions behind reduction A, and the classifier."""


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_the_convolutions(name: str) -> None:
    kernel, stride, padding, sides = CASES[name]
    torch.manual_seed(0)
    conv = Conv2d(5, 6, kernel, stride, padding, bias=False).to(torch.double, memory_format=torch.channels_last)
    x = maps(4, 5, *sides).requires_grad_()
    expected = F.conv2d(x, conv.weight, None, stride, padding)
    with Calls() as calls:
        y = conv(x)
    assert (calls.convolutions, calls.products) == (0, 1)
    assert y.shape == expected.shape and y.is_contiguous(memory_format=torch.channels_last)
    direction = maps(*y.shape)
    found, wanted = (torch.autograd.grad(out, (x, conv.weight), direction) for out in (y, expected))
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "sides"),
    [((1, 7), 1, (0, 3), (2, 5)), ((7, 1), 1, (3, 0), (5, 2)), (3, 1, 1, (3, 3)), (3, 2, 1, (3, 3)), (3, 2, 0, (5, 5)),
     (1, 1, 0, (6, 6))],
)  # fmt: skip
def test_other_maps_are_convolved(kernel, stride, padding, sides) -> None:
    conv = Conv2d(5, 6, kernel, stride, padding, bias=False).to(torch.double, memory_format=torch.channels_last)
    with Calls() as calls:
        y = conv(maps(2, 5, *sides))
    assert (calls.convolutions, calls.products) == (1, 0)
    assert torch.equal(y, F.conv2d(maps(2, 5, *sides), conv.weight, None, stride, padding))


def test_products_have_the_type_of_mixed_precision() -> None:
    conv = Conv2d(8, 4, (1, 7), 1, (0, 3), bias=False).to(memory_format=torch.channels_last)
    x = maps(3, 8, 2, 2, dtype=torch.bfloat16).requires_grad_()
    with pytest.raises(RuntimeError, match="type"):
        conv(x)
    with torch.autocast("cpu", torch.bfloat16), Calls() as calls:
        y = conv(x)
        expected = F.conv2d(x, conv.weight, None, 1, (0, 3))
    assert calls.products == 1 and y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    y.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32 and x.grad.dtype == torch.bfloat16


@torch.no_grad()
def test_the_usual_format_is_convolved_down_to_a_single_place() -> None:
    model = InceptionV4(3).eval()
    with Calls() as calls:
        model(torch.zeros(2, 3, 75, 75))
    assert (calls.convolutions, calls.products) == (149, 1), "the classifier is the one product"


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_is_compiled_exported_scripted_or_traced_has_convolutions() -> None:
    model = InceptionV4(3).eval().to(memory_format=torch.channels_last)
    x = torch.zeros(2, 3, 75, 75).contiguous(memory_format=torch.channels_last)
    with Calls() as calls:
        model(x)
    assert calls.products == PRODUCTS
    exported = torch.export.export(model, (x,))
    assert sum("conv2d" in str(node.target) for node in exported.graph.nodes) == 149
    traced = torch.jit.trace(model, x, check_trace=False)
    assert str(traced.inlined_graph).count("aten::_convolution") == 149
    block = model.features[19].branch0
    assert "linear" not in str(torch.jit.script(block).inlined_graph)


def test_hooks_on_convolutions_are_called() -> None:
    conv, seen = Conv2d(8, 4, 1, bias=False).to(memory_format=torch.channels_last), []
    conv.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    conv(maps(3, 8, 1, 1, dtype=torch.float32))
    assert seen == [(3, 4, 1, 1)] and isinstance(conv, nn.Conv2d)


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_other_types_are_convolved(kind: torch.dtype) -> None:
    conv = Conv2d(8, 4, 1, bias=False).to(memory_format=torch.channels_last).to(kind)
    with Calls() as calls:
        conv(maps(3, 8, 2, 2, dtype=kind))
    assert calls.convolutions == 1
