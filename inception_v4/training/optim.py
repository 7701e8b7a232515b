"""Parameter groups, TensorFlow's RMSProp, the optimizers of timm's factory, and the moving average of weights."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inception_v4.settings.schema import OPTIMIZER_NUMBERS
from inception_v4.settings.schema import Optimizer as OptimizerSettings
from inception_v4.training.layers import rate_scale


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp as TensorFlow and MindSpore define it, on multi-tensor kernels where the device gains by them.

        s <- s + (1 - alpha) (g^2 - s)        s starts at 1
        m <- momentum m + lr g / sqrt(s + eps)
        w <- w - m

    torch.optim.RMSprop differs in all three places that matter with eps = 1 (the paper's recipe): epsilon outside
    the root, learning rate outside the momentum, square average from 0. Equal to timm's `RMSpropTF`; state names
    (`square_avg`, `momentum_buffer`) are the same. Weight decay is L2, added to the gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.045,
        *,
        alpha: float = 0.9,
        eps: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and params[0].device.type != "cpu":
                self._update(params, group)
                continue
            # A CPU wants to find in its caches what it has just computed: one after another take a third of the time.
            for p in params:
                self._update([p], group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
        squares, moments = [], []
        for p in params:
            state = self.state[p]
            if not state:
                state["square_avg"] = torch.ones_like(p, memory_format=torch.preserve_format)
                state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            squares.append(state["square_avg"])
            moments.append(state["momentum_buffer"])
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1 - group["alpha"])
        roots = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(moments, group["momentum"])
        torch._foreach_addcdiv_(moments, grads, roots, value=group["lr"])
        torch._foreach_sub_(params, moments)


OWN = {"rmsprop": "rmsproptf", "tfrmsprop": "rmsproptf", "rmsprop_tf": "rmsproptf"}


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups with their decay, where asked for their `lr_scale`, and the names of their parameters in order.

    Parameters that never learn are in none. Those that learn from an epoch on are: without gradients an optimizer
    passes them over, and the groups of a checkpoint are the same before and after.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and settings.unfreeze_at is None:
            continue
        exempt = settings.weight_decay_filter == "no_norm_bias" and parameter.ndim <= 1
        decay = 0.0 if exempt else settings.weight_decay
        scale = rate_scale(name, layer_decay=settings.layer_decay, head=settings.head_lr_scale)
        new: dict[str, Any] = {"params": [], "param_names": [], "weight_decay": decay}
        group = groups.setdefault((decay, scale), new if scale == 1 else new | {"lr_scale": scale})
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(groups.values())


def canonical_name(opt: str) -> str:
    """One name for the spellings of an optimizer."""
    return OWN.get(opt.lower(), opt.lower())


def state_kind(opt: str) -> str:
    """One name for all optimizers that can go on from each other's state."""
    name = canonical_name(opt)
    return {"sgd": "momentum", "nesterov": "momentum", "nmuon": "muon"}.get(name, name)


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, lr: float, *, fused: Any | None = None
) -> torch.optim.Optimizer:
    """The optimizer named in the settings; `fused` is a class to use in place of TensorFlow's RMSProp or SGD.

    Raises:
        ValueError: a name that neither this project nor timm's factory knows, or a number (momentum, opt_alpha,
            opt_beta2, opt_eps) or keyword (opt_kwargs) that was given and that this optimizer has not.
    """
    name = canonical_name(settings.opt)
    groups = parameter_groups(model, settings)
    if name == "rmsproptf":
        numbers = _own_numbers(settings, {"opt_alpha": 0.9, "opt_eps": 1.0, "momentum": 0.9})
        alpha, eps, momentum = (numbers[n] for n in ("opt_alpha", "opt_eps", "momentum"))
        return (fused or RMSpropTF)(groups, lr, alpha=alpha, eps=eps, momentum=momentum)
    if name in ("momentum", "nesterov", "sgd"):
        # timm's `sgd` means Nesterov; torch's and MindSpore's mean plain momentum, and this project follows them.
        momentum = _own_numbers(settings, {"momentum": 0.9})["momentum"]
        # torch's fused SGD rounds otherwise on a CPU than its loop does on accelerators, and gains 8 ms a step.
        return (fused or torch.optim.SGD)(groups, lr, momentum=momentum, nesterov=name == "nesterov")
    if name == "adamw":
        numbers = _own_numbers(settings, {"momentum": 0.9, "opt_beta2": 0.999, "opt_eps": 1e-8})
        betas = (numbers["momentum"], numbers["opt_beta2"])
        # One pass over memory instead of ten: on a CPU the default is a loop over tensors.
        on_cpu = next(model.parameters()).device.type == "cpu"
        return torch.optim.AdamW(groups, lr, betas=betas, eps=numbers["opt_eps"], fused=True if on_cpu else None)
    return _from_timm(name, groups, lr, settings)


def _own_numbers(settings: OptimizerSettings, known: Mapping[str, Any]) -> dict[str, Any]:
    """`_numbers` of an optimizer that is not timm's, which takes no keywords besides."""
    if settings.opt_kwargs:
        raise ValueError(
            f"opt_kwargs {', '.join(settings.opt_kwargs)}: {settings.opt} is not timm's and takes none: leave it out"
        )
    return _numbers(settings, known)


def _numbers(settings: OptimizerSettings, known: Mapping[str, Any]) -> dict[str, Any]:
    """The optimizer's numbers: those of the settings, and the values of `known` for what they leave open."""
    given = {name: getattr(settings, name) for name in OPTIMIZER_NUMBERS if getattr(settings, name) is not None}
    idle = [name for name in given if name not in known]
    if idle:
        said = ", ".join(f"{name} {given[name]:g}" for name in idle)
        none = " ".join(f"{name}=none" for name in idle)
        raise ValueError(
            f"{said}: the optimizer {settings.opt} has no such parameter: leave it out (over a recipe: {none}), or "
            "choose another opt"
        )
    return {**known, **given}


def _from_timm(
    name: str, groups: list[dict[str, Any]], lr: float, settings: OptimizerSettings
) -> torch.optim.Optimizer:
    from timm.optim import list_optimizers

    known = [str(n) for n in list_optimizers()]
    if name not in known:
        near = difflib.get_close_matches(name, [*known, "rmsproptf", "momentum"], n=3)
        raise ValueError(f"unknown optimizer {settings.opt!r}: did you mean {' or '.join(near) or 'rmsproptf'}?")
    names = [group.pop("param_names") for group in groups]
    options = _timm_options(name, settings)
    make = _maker(name, settings)
    try:
        optimizer = make(groups, lr=lr, weight_decay=settings.weight_decay, **options)
    except (AssertionError, TypeError, ValueError) as error:
        if not settings.opt_kwargs:
            raise
        raise ValueError(f"opt_kwargs of {settings.opt}: {error}") from error
    for group, group_names in zip(optimizer.param_groups, names, strict=True):
        group["param_names"] = group_names
    return optimizer


def _maker(name: str, settings: OptimizerSettings) -> Callable[..., torch.optim.Optimizer]:
    """timm's factory for the optimizer `name`, or this project's faster class."""
    from timm.optim import create_optimizer_v2

    if name in ("muon", "nmuon"):
        from inception_v4.training.muon import KEYWORDS, Muon  # not every timm has what it builds on

        if not (settings.opt_kwargs or {}).keys() - KEYWORDS:
            return partial(Muon, nesterov=name == "nmuon")
    return partial(create_optimizer_v2, opt=name)


_WITH_SETTINGS = {
    "lr": "lr", "weight_decay": "weight_decay", "momentum": "momentum", "beta1": "momentum", "alpha": "opt_alpha",
    "eps": "opt_eps", "betas": "momentum and opt_beta2",
}  # fmt: skip


def _checked_keywords(keywords: Mapping[str, Any], parameters: Mapping[str, Any], opt: str) -> dict[str, Any]:
    """`keywords`, if the optimizer has them and no setting of its own gives them."""
    free = sorted(parameters.keys() - _WITH_SETTINGS.keys() - {"params", "kwargs"})
    for name in keywords:
        if name in _WITH_SETTINGS:
            raise ValueError(f"opt_kwargs {name}: give {_WITH_SETTINGS[name]} instead")
        if name not in free:
            raise ValueError(f"opt_kwargs {name}: the optimizer {opt} takes {', '.join(free) or 'no others'}")
    return dict(keywords)


def _timm_options(name: str, settings: OptimizerSettings) -> dict[str, Any]:
    """Keywords of timm's optimizer for the numbers that were given; its own values stay for the others."""
    from timm.optim import get_optimizer_class, get_optimizer_info

    try:
        parameters = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    except (AssertionError, ImportError) as error:
        raise ValueError(f"opt {settings.opt}: {error}; choose another opt") from None
    preset = get_optimizer_info(name).defaults or {}
    keywords = {"opt_alpha": "alpha", "opt_eps": "eps", "momentum": "momentum"}
    known = {ours: None for ours, theirs in keywords.items() if theirs in parameters}
    betas: Any = None
    if "betas" in parameters:
        betas = parameters["betas"].default
        # Adafactor's are None: no first beta unless it is given, and never a second one.
        known |= {"momentum": None} | ({} if betas is None else {"opt_beta2": None})
        betas = preset.get("betas", betas)
    numbers = {ours: value for ours, value in _numbers(settings, known).items() if value is not None}
    options = {keywords[ours]: value for ours, value in numbers.items() if keywords.get(ours) in parameters}
    options |= _checked_keywords(settings.opt_kwargs or {}, parameters, settings.opt)
    if "betas" in parameters and numbers.keys() - {"opt_alpha", "opt_eps"}:
        first, second, *rest = betas or (0.0, 0.0)
        if "momentum" not in parameters:  # Muon's kind has one of its own, and betas for what it leaves to AdamW.
            first = numbers.get("momentum", first)
        options["betas"] = (first, numbers.get("opt_beta2", second), *rest)
    return options


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state dict of an optimizer of the same kind; what the settings and this device say of a step stays.

    What stays is every argument of the optimizer (weight decay, momentum, betas, whether a step is fused, ...), and
    `lr_scale`.
    """
    said = inspect.signature(type(optimizer)).parameters.keys() - {"params", "lr"} | {"lr_scale"}
    groups = []
    for held, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        kept = {name: value for name, value in held.items() if name not in said}
        groups.append(kept | {name: value for name, value in own.items() if name in said})
    optimizer.load_state_dict({**state, "param_groups": groups})


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One rate for every group, scaled where a group carries `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def clip_gradients(parameters: Iterable[Tensor], limit: float | None) -> None:
    """Scale gradients so that their global L2 norm is at most `limit` (None: leave them)."""
    if limit is not None:
        torch.nn.utils.clip_grad_norm_(parameters, limit)


def _whole(network: nn.Module) -> nn.Module:
    return network


class Ema:
    """Moving average of parameters and BatchNorm statistics.

    The decay rises as MindCV's does, decay (1 - exp(-t / warmup)), so that a short run is not averaged with its
    random start.

    Attributes:
        module: the averaged network.
        part: the part of a network that is averaged; the rest stays as it is.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup: int) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.part: Callable[[nn.Module], nn.Module] = _whole

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move a little towards `model`; call it after each optimizer step."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / self.warmup)) if self.warmup else self.decay
        ours, theirs = (list(self.part(network).state_dict().values()) for network in (self.module, model))
        floats = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
        for a, b in zip(ours, theirs, strict=True):
            if not a.is_floating_point():
                a.copy_(b)


class NoEma:
    """The off state."""

    module: nn.Module | None = None
    updates = 0
    part: Callable[[nn.Module], nn.Module] = staticmethod(_whole)

    def update(self, model: nn.Module) -> None: ...


def average_of(model: nn.Module, settings: OptimizerSettings) -> Ema | NoEma:
    """The moving average that the settings ask for, or the off state."""
    return Ema(model, decay=settings.ema_decay, warmup=settings.ema_warmup) if settings.ema else NoEma()
