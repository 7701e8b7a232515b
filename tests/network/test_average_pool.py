"""The average of the Inception blocks: torch's, with a gradient in bfloat16 that is nearer to float64's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from inception_v4.network.average_pool import AvgPool

SHARED_OUT, SUMMED = "avg_pool2d_backward", "avg_pool2d"


class Pools(TorchDispatchMode):
    """Names of torch's pools that ran inside."""

    def __enter__(self):
        self.names: list[str] = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if "avg_pool" in name:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def maps(*shape: int, kind: torch.dtype = torch.bfloat16) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
    return x.to(kind).contiguous(memory_format=torch.channels_last)


def gradient(pool, x: Tensor, direction: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(pool(x), x, direction)
    return found


def reference(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


@pytest.mark.parametrize("sides", [(17, 17), (5, 8), (2, 2), (1, 3), (1, 1)])
def test_the_gradient_in_bfloat16_is_nearer_to_float64s_than_torchs(sides: tuple[int, int]) -> None:
    x, direction = maps(2, 32, *sides), maps(2, 32, *sides)
    assert torch.equal(AvgPool()(x), reference(x))
    exact = gradient(reference, x.double(), direction.double())
    with Pools() as pools:
        found = gradient(AvgPool(), x, direction)
    assert set(pools.names) == {SUMMED}
    assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last)
    ours, torchs = ((g.double() - exact).norm() / exact.norm() for g in (found, gradient(reference, x, direction)))
    assert ours <= torchs
    assert ours < 0.004, "a rounding of the shares and one of their sum"


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_other_types_are_torchs(kind: torch.dtype) -> None:
    x, direction = maps(2, 8, 5, 5, kind=kind), maps(2, 8, 5, 5, kind=kind)
    with Pools() as pools:
        found = gradient(AvgPool(), x, direction)
    assert pools.names == [SUMMED, SHARED_OUT]
    assert torch.equal(found, gradient(reference, x, direction))


def test_in_torchs_own_format_it_is_torchs() -> None:
    x, direction = maps(2, 8, 5, 5).contiguous(), maps(2, 8, 5, 5).contiguous()
    found = gradient(AvgPool(), x, direction)
    assert torch.equal(found, gradient(reference, x, direction))
    assert not torch.equal(found, gradient(AvgPool(), maps(2, 8, 5, 5), direction)), "the control"


def test_what_is_exported_is_torchs_operator_and_what_fx_traces_runs_as_it_did() -> None:
    x = maps(2, 8, 5, 5).requires_grad_()
    (operator,) = (n for n in torch.export.export(AvgPool(), (x,)).graph.nodes if n.op == "call_function")
    assert operator.target is torch.ops.aten.avg_pool2d.default
    traced = torch.fx.symbolic_trace(AvgPool())
    assert torch.equal(gradient(traced, x, x), gradient(AvgPool(), x, x))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_scripted_it_is_torchs_operator() -> None:
    x = maps(2, 8, 5, 5).requires_grad_()
    scripted = torch.jit.script(AvgPool())
    assert "aten::avg_pool2d" in str(scripted.inlined_graph) and torch.equal(scripted(x), reference(x))


def test_gradients_of_samples_and_of_gradients() -> None:
    x = maps(3, 4, 5, 5)
    of_samples = torch.func.vmap(torch.func.grad(lambda one: AvgPool()(one[None]).float().square().sum()))(x)
    assert of_samples.shape == x.shape and of_samples.abs().sum() > 0
    x = x.requires_grad_()
    (first,) = torch.autograd.grad(AvgPool()(x).float().square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.float().square().sum(), x)
    assert second.abs().sum() > 0
