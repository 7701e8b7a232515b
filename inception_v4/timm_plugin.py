"""The network in timm: `import inception_v4.timm_plugin`, then `timm.create_model("inception_v4_joined")`.

The parameter names and the published weights are those of timm's own `inception_v4`. What comes on top: evaluation
runs the convolutions that `inception_v4.fuse` has joined, and there are gradient checkpointing, TF-Slim's and MindCV's
initialisation and BatchNorm settings. timm's train.py imports it when told to: `python train.py --device-modules
inception_v4.timm_plugin --model inception_v4_joined ...`.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from inception_v4.network.fusion import fuse
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import INCEPTION_MEAN, INCEPTION_STD

__all__ = ["JoinedInceptionV4", "inception_v4_joined"]


class _Joined(NamedTuple):
    """Fused blocks, and the tensors they were made of with the number of changes each had seen by then."""

    blocks: nn.Module
    tensors: list[Tensor]
    changes: list[int]


class JoinedInceptionV4(InceptionV4):
    """`InceptionV4` that evaluates with joined convolutions, with the arguments and methods that timm expects.

    In `eval()` and without gradients, a fused copy of the blocks (see `inception_v4.fuse`; as much memory again) gives
    the same outputs in less time. It is made when first needed, and anew when a weight has changed: by an optimizer,
    a moving average, `load_state_dict`, `to`, `half`. Only writing through `tensor.data` cannot be noticed: call
    `eval()` afterwards. Everything else is the plain network: training, gradients, saved weights, hooks on blocks,
    `torch.compile`, `torch.export` and feature maps.

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
        self._joined: _Joined | None = None
        super().__init__(num_classes, in_chans, drop_rate, **options)
        self.in_chans = in_chans
        self.to(device=device, dtype=dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # TorchScript has no super()
            features = self.features(x)
        else:
            blocks = self._joined_blocks(x)
            features = super().forward_features(x) if blocks is None else blocks(x)
        return features

    def _joined_blocks(self, x: Tensor) -> nn.Module | None:
        """The fused blocks of the weights as they are now, or None where the plain network is to run."""
        if not self._may_join(x):
            return None
        tensors = [*self.features.parameters(), *self.features.buffers()]
        if any(tensor.is_inference() for tensor in tensors):  # these do not count their changes
            return None
        changes = [tensor._version for tensor in tensors]
        joined = self._joined
        if joined is None or joined.changes != changes or any(map(operator.is_not, joined.tensors, tensors)):
            self._joined = None  # the copy to come is of the network alone
            joined = self._joined = _Joined(fuse(self).features, tensors, changes)
        return joined.blocks

    def _may_join(self, x: Tensor) -> bool:
        """Whether only the outputs matter: not gradients, hooks or a graph of the blocks."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or type(x) is not Tensor:
            return False
        return not any(
            module.training or module._forward_hooks or module._forward_pre_hooks for module in self.features.modules()
        )

    def train(self, mode: bool = True) -> JoinedInceptionV4:
        self._joined = None
        super().train(mode)
        return self

    def _apply(self, *args: Any, **options: Any) -> JoinedInceptionV4:
        self._joined = None  # `to` and the like exchange what a tensor holds without counting it as a change
        return super()._apply(*args, **options)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_joined": None}  # copies and files are of the network

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


default_cfgs = generate_default_cfgs({"inception_v4_joined.tf_in1k": _settings(hf_hub_id="timm/inception_v4.tf_in1k")})


@register_model
def inception_v4_joined(pretrained: bool = False, **options: Any) -> InceptionV4:
    """Inception-v4 with the options of `inception_v4.InceptionV4` (init, bn_momentum, bn_eps) beside timm's own."""
    return build_model_with_cfg(
        JoinedInceptionV4, "inception_v4_joined", pretrained, feature_cfg={"flatten_sequential": True}, **options
    )
