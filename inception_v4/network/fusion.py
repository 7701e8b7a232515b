"""Turns a trained Inception-v4 into an equal one that runs faster: for inference only.

Two exact rewrites. BatchNorm in evaluation mode is a scale and a shift per channel, which the convolution before it
absorbs. And the 1x1 convolutions that read the input of a block become one convolution, the average pool moved behind
its own: both are linear, and the pool leaves padding out of its average, so that it keeps constants (the bias) and
then works on 96 to 256 channels instead of 384 to 1536.

On CPUs the convolutions keep their weights as oneDNN reads them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from inception_v4.accelerator import onednn
from inception_v4.network.blocks import AvgPool, Concat, ConvNormAct, InceptionA, InceptionB, InceptionC
from inception_v4.network.model import InceptionV4, check_images, feature_maps, pooled

_DESCRIPTION = (
    "num_classes", "in_channels", "num_features", "head_hidden_size", "drop_rate", "global_pool", "feature_info",
    "stem", "smallest",
)  # fmt: skip


class FusedInceptionV4(nn.Module):
    """What `fuse` returns: the fused blocks and the classifier of a network, with the methods that evaluation needs.

    Its parameters have other names than `InceptionV4`'s, take no gradients, and are neither saved nor loaded.

    Raises:
        RuntimeError: in `train()`, `state_dict()` and `load_state_dict()`.
    """

    global_pool: str
    in_channels: int
    smallest: int

    def __init__(self, model: InceptionV4, *, join: bool) -> None:
        super().__init__()
        plain = copy.deepcopy(model)
        for name in _DESCRIPTION:
            setattr(self, name, getattr(plain, name))
        self.features = nn.Sequential(*(_fuse_block(block, join=join) for block in plain.features))
        self.last_linear = plain.get_classifier()
        self.eval().requires_grad_(False)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity when `num_classes` is 0."""
        return self.last_linear

    def forward_features(self, x: Tensor) -> Tensor:
        """As `InceptionV4`'s."""
        check_images(x, self.in_channels, self.smallest)
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """As `InceptionV4`'s, without dropout."""
        x = pooled(x, self.global_pool)
        return x if pre_logits else self.last_linear(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, *, intermediates_only: bool = False
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """As `InceptionV4`'s."""
        check_images(x, self.in_channels, self.smallest)
        last, maps = feature_maps(self.features, x, indices)
        return maps if intermediates_only else (last, maps)

    def train(self, mode: bool = True) -> FusedInceptionV4:
        if mode:
            raise RuntimeError("a fused model cannot be trained: train the plain model and call fuse() again")
        super().train(False)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError("a fused model has no Inception-v4 weights to save: save the model given to fuse()")

    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError("a fused model cannot take Inception-v4 weights: load them before calling fuse()")


class FusedConv(nn.Conv2d):
    """A convolution, and ReLU if `relu`, with fixed weights: where it helps they are laid out for the device once."""

    relu: bool
    _laid_out: tuple[Any, tuple[Tensor, Tensor | None]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        kind = onednn.type_for(x, self)
        if kind is None:
            y = super().forward(x)
            return torch.relu_(y) if self.relu else y
        # Tensors made in inference mode do not count their changes.
        changes = [None if t is None or t.is_inference() else t._version for t in (self.weight, self.bias)]
        state = (kind, x.shape, changes)
        if self._laid_out is None or self._laid_out[0] != state:
            self._laid_out = state, onednn.lay_out(self, kind, x.shape)
        return onednn.convolve(self, x.to(kind), *self._laid_out[1], relu=self.relu)

    def _apply(self, *args: Any, **options: Any) -> FusedConv:
        self._laid_out = None
        return super()._apply(*args, **options)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_laid_out": None}


class JoinedBlock(nn.Module):
    """A block whose first 1x1 convolutions are one; each slice of its output goes through the rest of a branch."""

    def __init__(self, heads: Sequence[ConvNormAct], tails: Sequence[nn.Module]) -> None:
        super().__init__()
        self.fused = _absorb_norms(heads, relu=False)
        self.widths = [head.conv.out_channels for head in heads]
        self.tails = nn.ModuleList(tails)

    def forward(self, x: Tensor) -> Tensor:
        slices = self.fused(x).split(self.widths, 1)
        return torch.cat([tail(part) for tail, part in zip(self.tails, slices, strict=True)], 1)


def fuse(model: InceptionV4, *, join: bool = True) -> FusedInceptionV4:
    """A copy of `model` for inference that gives the same outputs up to rounding; `model` stays as it is.

    Folding is computed in float64, so that changing the type afterwards loses least:
    `fuse(model).to(torch.bfloat16)`. Device, type and memory format are those of `model`; on CPUs
    channels_last is the faster format. There the weights are laid out for the kernels at the first batch, and again
    for batches of another shape or type, or changed weights; they take twice the memory.

    Args:
        model: in any mode.
        join: the 1x1 convolutions of a block too. Programs that read an exported network run it faster without: to them
            the slices are copies.

    Raises:
        ValueError: if `model` is not a plain `InceptionV4` (fused already, or wrapped by DDP or torch.compile).
    """
    if not isinstance(model, InceptionV4):
        raise ValueError(f"cannot fuse a {type(model).__name__}: give the plain InceptionV4, before any wrapping")
    return FusedInceptionV4(model, join=join)


def _fuse_block(block: nn.Module, *, join: bool) -> nn.Module:
    """The fused form of one entry of `features`; takes `block` apart."""
    branches = _branches(block)
    if not branches:
        return _fuse_layers(block)
    heads = [next(layer for layer in branch if isinstance(layer, ConvNormAct)) for branch in branches]
    if not join:
        pooled = nn.Sequential(_absorb_norms(heads[-1:], relu=False), AvgPool(), nn.ReLU(inplace=True))
        apart = [*(nn.Sequential(*map(_fuse_layers, branch)) for branch in branches[:-1]), pooled]
        return Concat(**{f"branch{index}": branch for index, branch in enumerate(apart)})
    # ReLU out of place: its input is a slice with gaps, which it packs for the next convolution on the way.
    tails = [nn.Sequential(nn.ReLU(), *map(_fuse_layers, branch[1:])) for branch in branches[:-1]]
    return JoinedBlock(heads, [*tails, nn.Sequential(AvgPool(), nn.ReLU(inplace=True))])


def _branches(block: nn.Module) -> list[list[nn.Module]]:
    """The branches of an Inception block as lists of layers, the pooled one last; nothing for other blocks."""
    if isinstance(block, (InceptionA, InceptionB)):
        branch0, *others = block.children()
        return [[branch0], *([*branch] for branch in others if isinstance(branch, nn.Sequential))]
    if isinstance(block, InceptionC):
        fork1 = Concat(a=block.branch1_1a, b=block.branch1_1b)
        fork2 = Concat(a=block.branch2_3a, b=block.branch2_3b)
        branch2 = [block.branch2_0, block.branch2_1, block.branch2_2, fork2]
        return [[block.branch0], [block.branch1_0, fork1], branch2, [*block.branch3]]
    return []


def _fuse_layers(module: nn.Module) -> nn.Module:
    """Replaces every ConvNormAct in `module`."""
    if isinstance(module, ConvNormAct):
        return _absorb_norms([module], relu=True)
    for name, child in module.named_children():
        setattr(module, name, _fuse_layers(child))
    return module


def _absorb_norms(layers: Sequence[ConvNormAct], *, relu: bool) -> FusedConv:
    """One convolution with bias for `layers`, which read the same input with kernels of the same size."""
    weights, biases = [], []
    for layer in layers:
        norm = layer.bn
        scale = _exact(norm.weight) * (_exact(norm.running_var) + norm.eps).rsqrt()
        weights.append(_exact(layer.conv.weight) * scale.view(-1, 1, 1, 1))
        biases.append(_exact(norm.bias) - _exact(norm.running_mean) * scale)
    first = layers[0].conv
    # On the device meta: its weights are not drawn, but replaced.
    shape: dict[str, Any] = {"kernel_size": first.kernel_size, "stride": first.stride, "padding": first.padding}
    conv = FusedConv(first.in_channels, sum(map(len, biases)), **shape, device="meta")
    conv.weight, conv.bias = (nn.Parameter(torch.cat(parts).to(first.weight)) for parts in (weights, biases))
    conv.relu = relu
    return conv


def _exact(tensor: Tensor | None) -> Tensor:
    """In float64, and on the CPU because not every accelerator has that type."""
    assert tensor is not None
    return tensor.detach().to("cpu", torch.float64)
