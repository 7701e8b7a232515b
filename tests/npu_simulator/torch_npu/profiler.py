"""`torch_npu.profiler` with torch's own profiler of the host behind it."""

from __future__ import annotations

import enum
from typing import Any

import torch.profiler
from torch.profiler import schedule, tensorboard_trace_handler

__all__ = ["ProfilerActivity", "profile", "schedule", "tensorboard_trace_handler"]


class ProfilerActivity(enum.Enum):
    CPU = 0
    NPU = 1


class profile(torch.profiler.profile):
    """The simulated device has no events of its own: NPU is accepted and records nothing."""

    def __init__(self, *, activities: Any = None, **options: Any) -> None:
        assert all(isinstance(activity, ProfilerActivity) for activity in activities or ())
        super().__init__(activities=[torch.profiler.ProfilerActivity.CPU], **options)
