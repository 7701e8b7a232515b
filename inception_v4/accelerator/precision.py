"""Where a network is computed, and in what number type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inception_v4.accelerator.base import Accelerator

if TYPE_CHECKING:
    import torch


@dataclass
class Precision:
    """Where and in what number type a network is computed."""

    accelerator: Accelerator
    amp_dtype: torch.dtype | None = None

    def autocast(self) -> Any:
        return self.accelerator.autocast(self.amp_dtype)
