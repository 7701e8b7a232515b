"""Where a network is computed, and in what number type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inception_v4.accelerator.base import Accelerator

if TYPE_CHECKING:
    import torch

AMP_WORDS = {"off": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Number types by the setting's words."""


def choose_amp(accelerator: Accelerator, amp: str) -> tuple[str, str]:
    """`amp`, and for "auto" what is native on this device and faster; with the reason, empty where it was given."""
    if amp != "auto":
        return amp, ""
    label = accelerator.label
    if not accelerator.bf16_pays:
        return "off", f"bfloat16 has not been measured on this kind of {label}"
    if accelerator.amp_support("bf16") != "native":
        return "off", f"this {label} has no native bfloat16"
    return "bf16", f"native on this {label}, and faster"


@dataclass
class Precision:
    """Where and in what number type a network is computed."""

    accelerator: Accelerator
    amp_dtype: torch.dtype | None = None

    def autocast(self) -> Any:
        return self.accelerator.autocast(self.amp_dtype)
