"""Muon against timm's, step by step and part by part, on this network."""

from __future__ import annotations

import copy

import pytest
import timm.optim.muon as theirs
import torch
from torch import Tensor, nn

from inception_v4.network.model import InceptionV4
from inception_v4.settings.schema import Optimizer
from inception_v4.training import muon
from inception_v4.training.muon import Muon, is_matrix, orthogonal
from inception_v4.training.optim import build_optimizer

BF16 = 0.04
"""Relative difference that rounding to bfloat16 leaves, in norms."""


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def matrix(rows: int, columns: int) -> Tensor:
    """One of full rank whose singular values fall to a thousandth."""
    generator = torch.Generator().manual_seed(rows)
    random = torch.randn(rows, columns, generator=generator)
    u, s, v = torch.linalg.svd(random, full_matrices=False)
    return u @ torch.diag(torch.logspace(0, -3, len(s))) @ v


SHAPES = [(32, 27), (192, 384), (224, 1568), (384, 192), (4, 300), (64, 64)]


@pytest.mark.parametrize("steps", [1, 3, 5, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_iteration_is_timms(shape: tuple[int, int], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = matrix(*shape)
    table = theirs._COEFFICIENTS["quintic"]
    assert list(muon._COEFFICIENTS) == table
    exact = theirs.zeropower_via_newtonschulz(x, steps, table, dtype=torch.float64).float()
    monkeypatch.setattr(muon, "_matrix_type", lambda device: torch.float32)
    assert difference(orthogonal(x, steps), exact) < 1e-3
    monkeypatch.setattr(muon, "_matrix_type", lambda device: torch.bfloat16)
    rounded = theirs.zeropower_via_newtonschulz(x, steps, table).float()
    assert difference(orthogonal(x, steps).float(), exact) < max(3 * difference(rounded, exact), BF16)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_update_is_orthogonal(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "_matrix_type", lambda device: torch.float32)
    singular = torch.linalg.svdvals(orthogonal(matrix(*shape), 7))
    assert singular.min() > 0.7 and singular.max() < 1.3
    assert torch.linalg.svdvals(matrix(*shape)).min() < 2e-3, "it was not before"


def test_nothing_is_made_of_nothing() -> None:
    assert torch.equal(orthogonal(torch.zeros(4, 9), 5).float(), torch.zeros(4, 9))


def test_the_same_parameters_are_matrices() -> None:
    shapes = [(1, 9), (9, 1), (3, 9), (4, 512), (4, 513), (8, 1, 3, 3), (2, 2, 3, 3), (10, 1536), (12, 1536), (7,)]
    for p in (*InceptionV4(10).parameters(), *map(torch.zeros, shapes)):
        assert is_matrix(p) == theirs._is_suitable_for_muon(p), p.shape


def network(layout: torch.memory_format) -> InceptionV4:
    """With gradients of many sizes, the same in every layout."""
    torch.manual_seed(0)
    model = InceptionV4(12)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator) * torch.logspace(0, -3, p.shape[-1])
    return model.to(memory_format=layout)


KEYWORDS = {"lr": 0.03, "momentum": 0.9, "ns_steps": 3, "fallback_lr_scale": 0.2, "weight_decay": 0.01}


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_steps_are_timms(layout: torch.memory_format, nesterov: bool) -> None:
    ours, peer = network(layout), network(torch.contiguous_format)
    before = [p.detach().clone() for p in ours.parameters()]
    a = Muon(ours.parameters(), nesterov=nesterov, **KEYWORDS)
    b = theirs.Muon(peer.parameters(), nesterov=nesterov, **KEYWORDS)
    grads = [p.grad for p in ours.parameters()]
    for number in range(3):
        if number == 2:  # each goes on from the other's state
            a.load_state_dict(copy.deepcopy(b.state_dict()))
        a.step()
        b.step()
    assert all(p.grad is grad for p, grad in zip(ours.parameters(), grads, strict=True))
    for p, q, start in zip(ours.parameters(), peer.parameters(), before, strict=True):
        if is_matrix(p):
            assert difference(p - start, q - start) < BF16
            assert p.is_contiguous(memory_format=layout) or p.ndim != 4
        else:
            assert torch.equal(p, q), "AdamW's kind is timm's own"


def test_without_gradients_nothing_moves() -> None:
    model = network(torch.channels_last)
    still = [p for name, p in model.named_parameters() if "features.5" in name or "last" in name]
    for p in still:
        p.grad = None
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = Muon(model.parameters(), lr=0.1)
    optimizer.step()
    for p, start in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, start) == any(p is q for q in still)
        assert (p in optimizer.state) != any(p is q for q in still)


def test_which_class_runs() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    for opt, nesterov in (("muon", False), ("nmuon", True)):
        own = build_optimizer(net, Optimizer(opt=opt, momentum=0.9, opt_kwargs={"ns_steps": 3}), 0.1)
        group = own.param_groups[0]
        assert type(own) is Muon and (group["nesterov"], group["ns_steps"], group["momentum"]) == (nesterov, 3, 0.9)
    for opt, words in (("muon", {"conv_mode": "batched"}), ("adamuon", None)):
        assert type(build_optimizer(net, Optimizer(opt=opt, opt_kwargs=words), 0.1)) is theirs.Muon
