"""`torch_npu.npu.amp`: a scaler without torch's `device`, with the vendor's `dynamic` and its state."""

from __future__ import annotations

from typing import Any

import torch


class GradScaler(torch.amp.GradScaler):
    """Knows optimizers that keep all gradients in one buffer: they are combined before the first unscaling."""

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        dynamic: bool = True,
        enabled: bool = True,
    ) -> None:
        super().__init__("npu", init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self._dynamic = dynamic

    def unscale_(self, optimizer: Any) -> None:
        if hasattr(optimizer, "is_fused_optimizer"):
            optimizer.combine()
        super().unscale_(optimizer)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return {**state, "dynamic": self._dynamic} if state else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._dynamic = state_dict["dynamic"]
        super().load_state_dict(state_dict)
