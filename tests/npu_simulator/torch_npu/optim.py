"""torch-npu's fused optimizers as far as their conditions go: one buffer for parameters and one for gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch


class _Flat(torch.optim.Optimizer):
    is_fused_optimizer = True

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self.flat: list[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]] | None = None

    @torch.no_grad()
    def combine(self) -> None:
        if self.flat is not None:
            return
        groups = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if not any(groups):
            return
        self.flat = [(_join(params), _join([p.grad for p in params]), {}) for params in groups]

    @torch.no_grad()
    def zero_grad(self, set_to_none: bool = False) -> None:
        if set_to_none:
            raise ValueError("set_to_none is not supported in fused optimizers")
        self.combine()
        if self.flat is not None:
            for _, gradient, _ in self.flat:
                gradient.zero_()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.combine()
        assert self.flat is not None
        for group, (params, gradient, joined) in zip(self.param_groups, self.flat, strict=True):
            members = [p for p in group["params"] if p.grad is not None]
            if not joined:
                for name, start in self.state_names.items():
                    states = [self._own(self.state[p], name, torch.full_like(p, start)) for p in members]
                    joined[name] = _join(states)
            if group["weight_decay"]:
                gradient = gradient.add(params, alpha=group["weight_decay"])
            self.update(group, params, gradient, joined)

    state_names: ClassVar[dict[str, float]] = {}

    def _own(self, state: dict[str, Any], name: str, start: torch.Tensor) -> torch.Tensor:
        """The state of one parameter in memory of its own, to be joined with the others'."""
        state[name] = start.copy_(state[name]) if name in state else start
        return state[name]

    update: Callable[[dict[str, Any], torch.Tensor, torch.Tensor, dict[str, torch.Tensor]], None]
    """A subclass's rule: of a group's settings, all its parameters, their gradient and state, each as one tensor."""


def _join(tensors: list[Any]) -> torch.Tensor:
    import torch_npu

    for tensor in tensors:
        if tensor.device.type != "npu" or not tensor.is_contiguous():
            raise RuntimeError("Tensors to combine must be contiguous and on NPU")
        if torch_npu.get_storage_size(tensor) != tensor.numel():
            raise RuntimeError(f"size {torch_npu.get_storage_size(tensor)} vs {tensor.numel()}")  # DDP's bucket views
        if tensor.dtype not in (torch.float32, torch.float16):
            raise TypeError("Fused optimizer's parameters must be either float32 or float16")
    buffer = torch.cat([tensor.flatten() for tensor in tensors])
    offset = 0
    for tensor in tensors:
        torch_npu.npu_change_data_ptr(tensor, buffer, offset)
        offset += tensor.numel()
    return buffer


class NpuFusedRMSpropTF(_Flat):
    state_names: ClassVar[dict[str, float]] = {"square_avg": 1.0, "momentum_buffer": 0.0}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.9,
        eps: float = 1e-10,
        weight_decay: float = 0,
        momentum: float = 0.0,
        centered: bool = False,
        decoupled_decay: bool = False,
        lr_in_momentum: bool = True,
    ) -> None:
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, options | {"lr_in_momentum": lr_in_momentum})

    def _own(self, state: dict[str, Any], name: str, start: torch.Tensor) -> torch.Tensor:
        if not state:
            state["step"] = 0
        state["step"] += 0  # the real one needs it wherever there is a state
        return super()._own(state, name, start)

    def update(self, group: Any, params: Any, gradient: Any, state: Any) -> None:
        square, moment = state["square_avg"], state["momentum_buffer"]
        square.add_(gradient.pow(2) - square, alpha=1 - group["alpha"])
        root = square.add(group["eps"]).sqrt_()
        inside = group.get("lr_in_momentum")  # as the real one: an option that is missing is off
        moment.mul_(group["momentum"]).addcdiv_(gradient, root, value=group["lr"] if inside else 1)
        params.sub_(moment, alpha=1 if inside else group["lr"])


class NpuFusedSGD(_Flat):
    state_names: ClassVar[dict[str, float]] = {"momentum_buffer": 0.0}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, options | {"nesterov": nesterov})

    def update(self, group: Any, params: Any, gradient: Any, state: Any) -> None:
        moment = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(moment, alpha=group["momentum"]) if group["nesterov"] else moment
        params.add_(direction, alpha=-group["lr"])
