"""`torch.hub` entry points: `torch.hub.load("OWNER/REPOSITORY", "inception_v4", pretrained=True)`."""

from __future__ import annotations

from typing import Any

dependencies = ["torch", "torchvision", "timm", "safetensors", "pydantic", "yaml", "rich", "huggingface_hub"]


def inception_v4(num_classes: int | None = None, **options: Any) -> Any:
    """An Inception-v4; the arguments are those of `inception_v4.create_model`.

    Args:
        num_classes: size of the head; 0 gives embeddings [B, 1536]. Default: that of the weights, or 1000.
        options: `pretrained=True` for the published ImageNet weights, `ckpt_path=FILE` for others, and the network's.

    Returns:
        A `torch.nn.Module` in training mode: normalised pictures [B, 3, H, W] to logits [B, num_classes].
    """
    from inception_v4 import create_model

    return create_model(num_classes, **options)
