"""What `inception-v4 benchmark` measures by default: tasks, batch sizes, contestants and precisions."""

from __future__ import annotations

from typing import NamedTuple

PEERS = ("timm", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")


class Part(NamedTuple):
    """A task of a suite: each batch size is a group of contestants."""

    task: str
    batch_sizes: tuple[int, ...]
    forms: tuple[str, ...]
    precisions: tuple[str, ...]


_TIMM = ("timm", "timm channels_last", "timm compiled")
_OURS = ("plain", "fused", "fused compiled")

SUITES: dict[str, tuple[Part, ...]] = {
    "quick": (Part("infer", (1, 8), ("timm", "timm channels_last", "plain", "fused"), ("fp32", "bf16")),),
    "cpu": (
        Part(
            "infer", (1, 8),
            (*_TIMM, "onnxruntime", "openvino", *_OURS, "fused in onnxruntime", "fused in openvino"),
            ("fp32", "bf16", "int8"),
        ),
        Part("train", (4,), (*_TIMM, "plain", "plain compiled"), ("fp32", "bf16")),
    ),
    "gpu": (
        Part(
            "infer", (32, 128, 512), (*_TIMM, "timm graphs", *_OURS, "fused graphs"), ("fp32", "tf32", "bf16", "fp16")
        ),
        Part("train", (32, 128, 256), (*_TIMM, "plain", "plain compiled"), ("tf32", "bf16", "fp16")),
    ),
    "memory": (Part("train", (32,), ("plain", "plain checkpointing"), ("bf16",)),),
}  # fmt: skip
"""What is measured by default, by the name of the suite."""
