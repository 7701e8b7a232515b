"""Optimizers against timm's and against the definition; the moving average against its formula."""

from __future__ import annotations

import copy
import math

import pytest
import timm.optim
import torch
from torch import nn

from inception_v4.settings.schema import Optimizer
from inception_v4.training.optim import (
    Ema,
    RMSpropTF,
    build_optimizer,
    clip_gradients,
    restore_optimizer,
    set_learning_rate,
)


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).double()


def run_steps(net: nn.Module, optimizer: torch.optim.Optimizer, rates: list[float]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for lr in rates:
        set_learning_rate(optimizer, lr)
        x = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


RATES = [0.4, 0.3, 0.2, 0.1, 0.05, 0.02]


@pytest.mark.parametrize("eps", [1.0, 1e-3])
@pytest.mark.parametrize("decay", [0.0, 4e-5])
def test_rmsprop_equals_timms(eps: float, decay: float) -> None:
    ours, theirs = small_net(), small_net()
    a = run_steps(ours, RMSpropTF(ours.parameters(), 0.4, alpha=0.9, eps=eps, momentum=0.9, weight_decay=decay), RATES)
    peer = timm.optim.RMSpropTF(theirs.parameters(), 0.4, alpha=0.9, eps=eps, momentum=0.9, weight_decay=decay)
    b = run_steps(theirs, peer, RATES)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_torchs_rmsprop_is_another_method() -> None:
    ours, theirs = small_net(), small_net()
    a = run_steps(ours, RMSpropTF(ours.parameters(), 0.4, momentum=0.9), RATES)
    b = run_steps(theirs, torch.optim.RMSprop(theirs.parameters(), 0.4, alpha=0.9, eps=1.0, momentum=0.9), RATES)
    assert max((x - y).abs().max().item() for x, y in zip(a, b, strict=True)) > 1e-2


def test_parameter_groups_carry_names_and_decay() -> None:
    net = small_net()
    everything = build_optimizer(net, Optimizer(opt="momentum", weight_decay=0.1), 0.1)
    assert [g["weight_decay"] for g in everything.param_groups] == [0.1]
    filtered = build_optimizer(
        net, Optimizer(opt="rmsproptf", weight_decay=0.1, weight_decay_filter="no_norm_bias"), 0.1
    )
    by_decay = {g["weight_decay"]: g["param_names"] for g in filtered.param_groups}
    assert by_decay == {0.1: ["0.weight", "4.weight"], 0.0: ["0.bias", "1.weight", "1.bias", "4.bias"]}


@pytest.mark.parametrize("name", ["momentum", "nesterov", "sgd", "adamw", "lamb", "nadam", "lion", "adam"])
def test_optimizers_by_name_train(name: str) -> None:
    net = small_net()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = build_optimizer(net, Optimizer(opt=name), 1e-3)
    after = run_steps(net, optimizer, [1e-3])
    assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert [n for g in optimizer.param_groups for n in g["param_names"]] == [n for n, _ in net.named_parameters()]
    if name != "nesterov" and isinstance(optimizer, torch.optim.SGD):
        assert not optimizer.param_groups[0]["nesterov"]


def trajectory(opt: str, **numbers: float) -> tuple[list[torch.Tensor], dict[str, object]]:
    """Weights after some steps, and the options of the optimizer."""
    net = small_net()
    optimizer = build_optimizer(net, Optimizer(opt=opt, **numbers), 1e-2)
    return run_steps(net, optimizer, [1e-2] * 8), optimizer.param_groups[0]


def one_of_each_kind() -> list[str]:
    """A name for every class of timm's factory that needs no package, no GPU and no second derivatives."""
    infos = [timm.optim.get_optimizer_info(str(name)) for name in timm.optim.list_optimizers()]
    own = [i for i in infos if not isinstance(i.opt_class, str) and not i.second_order and "kron" not in i.name]
    return list({i.opt_class: i.name for i in own if i.opt_class is not torch.optim.SGD}.values())


@pytest.mark.parametrize("name", sorted({*one_of_each_kind(), "rmsproptf", "momentum", "adamw"}))
def test_a_number_that_is_given_counts_or_is_refused(name: str) -> None:
    """Taken means that other weights come out."""
    plain, _ = trajectory(name)
    taken = []
    for setting, value in {"momentum": 0.61, "opt_beta2": 0.91, "opt_alpha": 0.63, "opt_eps": 0.02}.items():
        try:
            weights, _ = trajectory(name, **{setting: value})
        except ValueError as error:
            message = f"{setting} {value}: the optimizer {name} has no such parameter: leave it out"
            assert str(error).startswith(message)
            continue
        assert any(not torch.equal(a, b) for a, b in zip(plain, weights, strict=True)), setting
        taken.append(setting)
    assert taken, "each has one of them"


@pytest.mark.parametrize("name", ["adam", "lamb", "nadam", "adan", "lion", "radam", "adamp", "novograd", "adopt"])
def test_betas_are_those_of_timms_own_class(name: str) -> None:
    weights, options = trajectory(name, momentum=0.8, opt_beta2=0.7)
    plain = trajectory(name)[1]["betas"]
    assert options["betas"] == (0.8, 0.7, *plain[2:])
    net = small_net()
    peer = timm.optim.create_optimizer_v2(
        net.parameters(), name, lr=1e-2, weight_decay=4e-5, betas=(0.8, 0.7, *plain[2:])
    )
    for a, b in zip(weights, run_steps(net, peer, [1e-2] * 8), strict=True):
        assert torch.equal(a, b)
    assert trajectory(name, momentum=0.8)[1]["betas"] == (0.8, *plain[1:]), "the others stay what they are"


def test_without_numbers_every_optimizer_has_its_own() -> None:
    assert trajectory("adamw")[1]["betas"] == (0.9, 0.999) and trajectory("adan")[1]["betas"] == (0.98, 0.92, 0.99)
    assert trajectory("lion")[1]["betas"] == (0.9, 0.99) and trajectory("adafactor", momentum=0.3)[1]["beta1"] == 0.3
    assert trajectory("momentum")[1]["momentum"] == trajectory("rmsproptf")[1]["momentum"] == 0.9
    assert trajectory("rmsproptf")[1]["alpha"] == 0.9 and trajectory("rmsproptf")[1]["eps"] == 1.0


def test_what_no_optimizer_here_can_run_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"opt bnbadam: .*choose another opt"):
        build_optimizer(small_net(), Optimizer(opt="bnbadam"), 0.1)


def test_a_state_from_a_cpu_goes_on_where_a_step_is_not_fused() -> None:
    ours, theirs = small_net(), small_net()
    fused = build_optimizer(ours, Optimizer(opt="adamw"), 0.01)
    run_steps(ours, fused, RATES)
    theirs.load_state_dict(ours.state_dict())
    group = {"params": list(theirs.parameters()), "param_names": []}
    plain = torch.optim.AdamW([group], 0.01, weight_decay=Optimizer().weight_decay, fused=None)
    assert fused.param_groups[0]["fused"] is True and plain.param_groups[0]["fused"] is None
    restore_optimizer(plain, copy.deepcopy(fused.state_dict()))
    assert plain.param_groups[0]["fused"] is None and plain.param_groups[0]["lr"] == RATES[-1]
    for a, b in zip(run_steps(ours, fused, RATES), run_steps(theirs, plain, RATES), strict=True):
        assert torch.allclose(a, b, rtol=1e-9)
    restored = build_optimizer(theirs, Optimizer(opt="adamw"), 0.01)
    restore_optimizer(restored, plain.state_dict())
    assert restored.param_groups[0]["fused"] is True


def test_unknown_optimizer_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'adamww'.*adamw"):
        build_optimizer(small_net(), Optimizer(opt="adamww"), 0.1)


def test_average_follows_mindcvs_formula() -> None:
    net = small_net()
    ema = Ema(net, decay=0.99, warmup=20)
    expected = net[4].weight.detach().clone()
    statistics = net[1].running_mean.clone()
    for t in range(1, 6):
        with torch.no_grad():
            net[4].weight.add_(0.1 * t)
            net[1].running_mean.add_(1.0)
        ema.update(net)
        decay = 0.99 * (1 - math.exp(-t / 20))
        expected = decay * expected + (1 - decay) * net[4].weight.detach()
        statistics = decay * statistics + (1 - decay) * net[1].running_mean
    torch.testing.assert_close(ema.module[4].weight, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ema.module[1].running_mean, statistics, rtol=1e-12, atol=0)
    assert not any(p.requires_grad for p in ema.module.parameters())


def test_clipping_limits_the_global_norm() -> None:
    net = small_net()
    net(torch.randn(2, 3, 8, 8, dtype=torch.float64) * 100).square().sum().backward()
    clip_gradients(net.parameters(), None)
    free = math.sqrt(sum(p.grad.square().sum().item() for p in net.parameters()))
    assert free > 5
    clip_gradients(net.parameters(), 0.5)
    clipped = math.sqrt(sum(p.grad.square().sum().item() for p in net.parameters()))
    assert clipped == pytest.approx(0.5, rel=1e-4)


def test_keywords_are_those_of_timms_class() -> None:
    words = {"ns_steps": 3, "fallback_lr_scale": 0.2, "conv_mode": "batched"}
    net = small_net()
    optimizer = build_optimizer(net, Optimizer(opt="nmuon", weight_decay=0.0, opt_kwargs=words), 1e-2)
    ours = run_steps(net, optimizer, RATES)
    net = small_net()
    peer = timm.optim.create_optimizer_v2(net.parameters(), "nmuon", lr=1e-2, weight_decay=0.0, **words)
    for a, b in zip(ours, run_steps(net, peer, RATES), strict=True):
        assert torch.equal(a, b)
    net = small_net()
    plain = run_steps(net, build_optimizer(net, Optimizer(opt="nmuon", weight_decay=0.0), 1e-2), RATES)
    assert any(not torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize(
    ("opt", "words", "message"),
    [
        ("muon", {"ns_step": 3}, r"opt_kwargs ns_step: the optimizer muon takes adamw_lr, .*ns_steps"),
        ("muon", {"momentum": 0.5}, "opt_kwargs momentum: give momentum instead"),
        ("lamb", {"betas": 0.5}, "opt_kwargs betas: give momentum and opt_beta2 instead"),
        ("muon", {"conv_mode": "rolled"}, "opt_kwargs of muon: Invalid conv_mode: rolled"),
        ("rmsproptf", {"ns_steps": 3}, "opt_kwargs ns_steps: rmsproptf is not timm's and takes none: leave it out"),
    ],
)
def test_keywords_that_an_optimizer_has_not_are_refused(opt: str, words: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_optimizer(small_net(), Optimizer(opt=opt, opt_kwargs=words), 0.1)


def test_a_state_goes_on_with_the_numbers_of_the_new_settings() -> None:
    net = small_net()
    before = build_optimizer(net, Optimizer(opt="adamw", weight_decay=0.1), 0.01)
    run_steps(net, before, RATES)
    new = Optimizer(opt="adamw", weight_decay=0.3, momentum=0.5, opt_beta2=0.7, opt_eps=1e-3)
    after = build_optimizer(net, new, 0.01)
    restore_optimizer(after, copy.deepcopy(before.state_dict()))
    (group,) = after.param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.3, (0.5, 0.7), 1e-3)
    first = next(net.parameters())
    assert torch.equal(after.state[first]["exp_avg"], before.state[first]["exp_avg"])
    scaled = build_optimizer(net, Optimizer(opt="momentum", head_lr_scale=3.0), 0.01)
    plain = build_optimizer(net, Optimizer(opt="nesterov"), 0.01)
    scaled.param_groups[0]["lr_scale"] = 3.0
    restore_optimizer(plain, scaled.state_dict())
    assert "lr_scale" not in plain.param_groups[0] and plain.param_groups[0]["nesterov"] is True


@pytest.mark.parametrize("name", sorted({*one_of_each_kind(), "rmsproptf", "momentum", "adamw"}))
def test_a_restored_optimizer_makes_the_step_of_one_that_was_never_stopped(name: str) -> None:
    """What an optimizer counts among its groups' numbers is a part of its state."""
    ours, theirs = small_net(), small_net()
    whole = build_optimizer(ours, Optimizer(opt=name), 1e-2)
    run_steps(ours, whole, RATES)
    theirs.load_state_dict(ours.state_dict())
    resumed = build_optimizer(theirs, Optimizer(opt=name), 1e-2)
    restore_optimizer(resumed, copy.deepcopy(whole.state_dict()))
    torch.manual_seed(3)
    a = run_steps(ours, whole, RATES)
    torch.manual_seed(3)
    for x, y in zip(a, run_steps(theirs, resumed, RATES), strict=True):
        assert torch.allclose(x, y, rtol=1e-6, atol=1e-9), "torch gives NAdam's product the type of the weights"
