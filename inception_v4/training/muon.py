"""Muon: momentum whose update of a matrix is made orthogonal; biases, BatchNorm and very flat matrices take AdamW.

Keller Jordan et al., 2024 (https://kellerjordan.github.io/posts/muon); timm's `Muon` is the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from timm.optim import Muon as TimmMuon
from torch import Tensor

from inception_v4.accelerator import select

KEYWORDS = frozenset({"ns_steps", "fallback_lr_scale"})
"""What `Muon` takes besides the numbers; with others of timm's keywords timm's own class runs."""

_COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Of the iteration's steps (timm's "quintic"); the last one counts for all further steps."""

_STEPS_IN_SQUARE = 2
"""Steps until the square is computed anew: in bfloat16, whose rounding a third one would multiply by three."""


class Muon(TimmMuon):
    """timm's Muon in less time: the same arguments, state and, to rounding, the same weights.

    A convolution's kernel counts as a matrix [out, in x height x width]. Its columns may stand in any order, so they
    stand as they do in memory, and nothing is copied for channels_last. The iteration runs in the square of the shorter
    side (for this network and three steps 0.8 of the multiplications), in bfloat16 where the device has it natively.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if is_matrix(p)]
        try:
            for p, grad, group in matrices:
                if grad is not None:
                    self._update(p, grad, group)
                p.grad = None  # done, for the step of the others
            super().step()
        finally:
            for p, grad, _ in matrices:
                p.grad = grad
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, rate = self.state[p], group["lr"]
        if not state:
            state["use_muon"] = True
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        momentum = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        towards = grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        if group["weight_decay"]:
            p.mul_(1 - rate * group["weight_decay"])
        flat = _flat(p, like=p)
        # As large as an update of AdamW's kind is (Liu et al. 2025, https://arxiv.org/abs/2502.16982).
        scale = 0.2 * max(flat.shape) ** 0.5
        flat.add_(orthogonal(_flat(towards, like=p), group["ns_steps"], eps=group["eps"]), alpha=-rate * scale)


def is_matrix(p: Tensor) -> bool:
    """Whether a parameter is updated as a matrix: at least 4 high and wide, and at most 128 times as long as short."""
    if p.ndim < 2 or min(p.shape[:2]) == 1:
        return False
    short, long = sorted((p.shape[0], p[0].numel()))
    return short >= 4 and long <= 128 * short


def _flat(x: Tensor, *, like: Tensor) -> Tensor:
    """[out, the rest] in the order that `like` has in memory; of `like` itself a view."""
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    return x.reshape(len(x), -1)


def orthogonal(matrix: Tensor, steps: int, *, eps: float = 1e-7) -> Tensor:
    """Roughly U V^T of a matrix U S V^T [m, n], by `steps` steps of a Newton-Schulz iteration X <- p(X X^T) X.

    p(A) = a + b A + c A^2 with a, b, c of its own in each step. As these commute, two steps run in the square A of the
    shorter side m, and X is multiplied once, by the product of their p: 2 m^2 n + 5 m^3 multiplications for two steps
    instead of 4 m^2 n + 2 m^3. Then A is computed anew.
    """
    x = matrix.to(_matrix_type(matrix.device.type))
    high = len(x) > x.shape[1]
    x = x.T.contiguous() if high else x
    scale: Tensor | float = 0.0
    for start in range(0, steps, _STEPS_IN_SQUARE):
        square = x @ x.T
        if not start:  # Frobenius' norm becomes 1, and no singular value is above it.
            scale = square.diagonal().sum(dtype=torch.float32).clamp_(min=eps**2).rsqrt_()
            square.mul_(scale.square())
        product = _product(square, range(start, min(start + _STEPS_IN_SQUARE, steps)))
        x = (product if start else product.mul_(scale)) @ x
    return x.T if high else x


def _product(square: Tensor, steps: range) -> Tensor:
    """p_k(A_k) ... p_1(A_1) with A_1 = `square` and A_(k + 1) = p_k A_k p_k."""
    product: Tensor | None = None
    for step in steps:
        a, b, c = _COEFFICIENTS[min(step, len(_COEFFICIENTS) - 1)]
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps.stop:
            square = factor @ square @ factor
    assert product is not None, "no step"
    return product


@cache
def _matrix_type(device: str) -> torch.dtype:
    return torch.bfloat16 if select(device).amp_support("bf16") == "native" else torch.float32
