"""Parameter groups, TensorFlow's RMSProp, the optimizers of timm's factory, and the moving average of weights."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from inception_v4.schema import Optimizer as OptimizerSettings


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp as TensorFlow and MindSpore define it, on multi-tensor kernels.

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
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads: list[Tensor] = [p.grad for p in params]
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
    """Groups with their decay and, for checkpoints and converters, the names of their parameters in order."""
    groups: dict[float, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = settings.weight_decay_filter == "no_norm_bias" and parameter.ndim <= 1
        decay = 0.0 if exempt else settings.weight_decay
        group = groups.setdefault(decay, {"params": [], "param_names": [], "weight_decay": decay})
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(groups.values())


def canonical_name(opt: str) -> str:
    """One name for the spellings of an optimizer."""
    return OWN.get(opt.lower(), opt.lower())


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, lr: float, *, fused: Any | None = None
) -> torch.optim.Optimizer:
    """The optimizer named in the settings; `fused` is a class to use in place of TensorFlow's RMSProp or SGD.

    Raises:
        ValueError: a name that neither this project nor timm's factory knows.
    """
    name = canonical_name(settings.opt)
    groups = parameter_groups(model, settings)
    if name == "rmsproptf":
        eps = 1.0 if settings.opt_eps is None else settings.opt_eps
        rmsprop = fused or RMSpropTF
        return rmsprop(groups, lr, alpha=settings.opt_alpha, eps=eps, momentum=settings.momentum)
    if name in ("momentum", "nesterov", "sgd"):
        # timm's `sgd` means Nesterov; torch's and MindSpore's mean plain momentum, and this project follows them.
        return (fused or torch.optim.SGD)(groups, lr, momentum=settings.momentum, nesterov=name == "nesterov")
    if name == "adamw":
        betas = (settings.momentum, settings.opt_beta2)
        eps = 1e-8 if settings.opt_eps is None else settings.opt_eps
        # One pass over memory instead of ten: on a CPU the default is a loop over tensors.
        on_cpu = next(model.parameters()).device.type == "cpu"
        return torch.optim.AdamW(groups, lr, betas=betas, eps=eps, fused=True if on_cpu else None)
    return _from_timm(name, groups, lr, settings)


def _from_timm(
    name: str, groups: list[dict[str, Any]], lr: float, settings: OptimizerSettings
) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2, list_optimizers

    known = [str(n) for n in list_optimizers()]
    if name not in known:
        near = difflib.get_close_matches(name, [*known, "rmsproptf", "momentum"], n=3)
        raise ValueError(f"unknown optimizer {settings.opt!r}: did you mean {' or '.join(near) or 'rmsproptf'}?")
    names = [group.pop("param_names") for group in groups]
    options: dict[str, Any] = {} if settings.opt_eps is None else {"eps": settings.opt_eps}
    optimizer = create_optimizer_v2(
        groups, opt=name, lr=lr, weight_decay=settings.weight_decay, momentum=settings.momentum, **options
    )
    for group, group_names in zip(optimizer.param_groups, names, strict=True):
        group["param_names"] = group_names
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One rate for every group, scaled where a group carries `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def clip_gradients(parameters: Iterable[Tensor], limit: float | None) -> None:
    """Scale gradients so that their global L2 norm is at most `limit` (None: leave them)."""
    if limit is not None:
        torch.nn.utils.clip_grad_norm_(parameters, limit)


class Ema:
    """Moving average of parameters and BatchNorm statistics.

    The decay rises as MindCV's does, decay (1 - exp(-t / warmup)), so that a short run is not averaged with its
    random start. `module` is the averaged network.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup: int) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.warmup, self.updates = decay, warmup, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move a little towards `model`; call it after each optimizer step."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / self.warmup)) if self.warmup else self.decay
        ours, theirs = list(self.module.state_dict().values()), list(model.state_dict().values())
        floats = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
        for a, b in zip(ours, theirs, strict=True):
            if not a.is_floating_point():
                a.copy_(b)


class NoEma:
    """The off state."""

    module: nn.Module | None = None
    updates = 0

    def update(self, model: nn.Module) -> None: ...
