"""`torch_npu.npu.utils`, as far as it is used."""

from __future__ import annotations


def is_support_inf_nan() -> bool:
    """Whether float16 overflows to infinity; on the first Ascend 910 it saturates."""
    from torch_npu import npu

    return not npu.FIRST_910
