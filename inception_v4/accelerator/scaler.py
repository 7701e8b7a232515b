"""Loss scaling for float16: torch's GradScaler, or a vendor's, with a constant scale and a count of skipped steps."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def counting(base: Any) -> Any:
    """A subclass of the GradScaler class `base`, for `inception_v4.accelerator.Accelerator.grad_scaler`."""

    class CountingScaler(base):
        """`loss_scale` "dynamic" is `base`; a number is kept, and steps that overflow are skipped all the same."""

        def __init__(self, loss_scale: float | str, **options: Any) -> None:
            self._constant = None if loss_scale == "dynamic" else float(loss_scale)
            self._skipped: Any = 0
            super().__init__(**({} if self._constant is None else {"init_scale": self._constant}), **options)

        def step(self, optimizer: Any, *args: Any, **options: Any) -> Any:
            # An optimizer that is not called has been skipped. One that is called anyway (torch's `fused=True`)
            # finds `found_inf`, a number on the device, and skips inside; adding it up costs no synchronisation.
            found: list[Any] = []
            hook = optimizer.register_step_post_hook(lambda *_: found.append(getattr(optimizer, "found_inf", None)))
            try:
                result = super().step(optimizer, *args, **options)
            finally:
                hook.remove()
            if not found:
                self._skipped = self._skipped + 1
            elif found[0] is not None:
                self._skipped = self._skipped + found[0].detach()
            return result

        def update(self, new_scale: Any = None) -> None:
            super().update(self._constant if new_scale is None else new_scale)

        def skipped(self) -> int:
            """Steps left out so far because of an infinite gradient. Waits for the device: not for every step."""
            return int(self._skipped)

        def state_dict(self) -> dict[str, Any]:
            state = super().state_dict()
            return {**state, "skipped": self.skipped()} if state else state

        def load_state_dict(self, state: dict[str, Any]) -> None:
            """Continue from `state`, whatever device it comes from. One saved while scaling was off is empty."""
            if not state or not self.is_enabled():
                return
            self._skipped = state.get("skipped", 0)
            kept = {} if self._constant is None else {"scale": self._constant}
            super().load_state_dict({"dynamic": True, **state, **kept})

    return CountingScaler
