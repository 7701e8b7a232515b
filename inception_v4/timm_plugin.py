"""The network in timm: `import inception_v4.timm_plugin`, then `timm.create_model("inception_v4_plus")`.

The parameter names and the published weights are those of timm's own `inception_v4`; what comes on top is gradient
checkpointing, TF-Slim's and MindCV's initialisation, BatchNorm settings, and `inception_v4.fuse` for inference.
timm's scripts import it when told to: `python train.py --device-modules inception_v4.timm_plugin --model
inception_v4_plus ...`.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from inception_v4.model import InceptionV4
from inception_v4.preprocessing import INCEPTION_MEAN, INCEPTION_STD

__all__ = ["TimmInceptionV4", "inception_v4_plus"]


class TimmInceptionV4(InceptionV4):
    """`InceptionV4` with timm's argument names and the few methods that only timm calls.

    Raises:
        ValueError: an `output_stride` other than 32, the only one this network has.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        drop_rate: float = 0.0,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        if output_stride != 32:
            raise ValueError(f"output_stride {output_stride} is not offered: Inception-v4 has 32")
        super().__init__(num_classes, in_chans, drop_rate, **options)
        self.in_chans = in_chans
        self.to(device=device, dtype=dtype)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Which parameters belong to which layer, for timm's layer-wise learning rates."""
        return {"stem": r"^features\.[012]\.", "blocks": r"^features\.(\d+)"}


def _settings(**more: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000, "input_size": (3, 299, 299), "pool_size": (8, 8), "crop_pct": 0.875,
        "interpolation": "bicubic", "mean": INCEPTION_MEAN, "std": INCEPTION_STD,
        "first_conv": "features.0.conv", "classifier": "last_linear", "license": "apache-2.0", **more,
    }  # fmt: skip


default_cfgs = generate_default_cfgs({"inception_v4_plus.tf_in1k": _settings(hf_hub_id="timm/inception_v4.tf_in1k")})


@register_model
def inception_v4_plus(pretrained: bool = False, **options: Any) -> InceptionV4:
    """Inception-v4 with the options of `inception_v4.InceptionV4` (init, bn_momentum, bn_eps) beside timm's own."""
    return build_model_with_cfg(
        TimmInceptionV4, "inception_v4_plus", pretrained, feature_cfg={"flatten_sequential": True}, **options
    )
