"""Inception-v4 (Szegedy et al., arXiv 1602.07261), with the parameter names of timm and Cadene.

The network is a stem, four Inception-A blocks, a reduction, seven Inception-B blocks, a reduction and three
Inception-C blocks, then a global pool and one linear layer. Sizes in comments are for a 299x299 input.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.fx
from torch import Tensor, nn

from inception_v4.network.blocks import (
    ConvNormAct,
    InceptionA,
    InceptionB,
    InceptionC,
    Mixed3a,
    Mixed4a,
    Mixed5a,
    ReductionA,
    ReductionB,
)
from inception_v4.network.recompute import checkpointed
from inception_v4.preprocessing import MIN_IMAGE_SIZE, STEMS

POOLS = {"avg": 1, "max": 1, "avgmax": 1, "catavgmax": 2, "": 1}
"""Global pools by timm's names, and values per channel; "" keeps the feature map and is only for `num_classes=0`."""


def pooled(x: Tensor, pool: str) -> Tensor:
    """[B, C, H, W] -> [B, C * values per channel], one of `POOLS`; written so that `torch.jit.script` can read it."""
    if pool == "avg":
        return x.mean((2, 3))
    if pool == "max":
        return x.amax((2, 3))
    if pool == "avgmax":
        return 0.5 * (x.mean((2, 3)) + x.amax((2, 3)))
    if pool == "catavgmax":
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
    return x


INITS = ("torch", "tf", "xavier", "shallow")


class InceptionV4(nn.Module):
    """Inception-v4: images [B, in_channels, H, W], H and W at least 75 (see `stem`), to logits [B, num_classes].

    The state dict has the 896 entries of timm's `inception_v4`, in its order.

    Args:
        num_classes: outputs; 0 leaves the classifier out, so that the model returns embeddings [B, 1536].
        in_channels: channels of the images.
        drop_rate: dropout before the classifier.
        init: one of `INITS`. "torch" is PyTorch's default; "tf" is TF-Slim's: convolutions with He's variance
            2 / fan-in from a normal truncated at two deviations, the classifier Glorot uniform with bias 0;
            "xavier" is MindCV's: convolutions Glorot uniform, the classifier as in PyTorch; "shallow" is PyTorch's
            with scale 0.1 in the last BatchNorm of every deep branch, much as residual networks start (Goyal et al.
            2017): some 25 layers in a row instead of 75 carry most of the signal, and learn several times faster.
        bn_eps, bn_momentum: of every BatchNorm; momentum in PyTorch's meaning, the weight of the new batch.
        global_pool: one of `POOLS`.
        stem: one of `STEMS`: "standard" is the paper's; "stride1" (from 39 pixels) and "padded" (from 16) are for small
            pictures. Names and shapes stay, so weights fit all three, and mean something else in each.

    Raises:
        ValueError: for a setting outside its range, and in `forward` for images of the wrong shape.
    """

    num_features = 1536

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_rate: float = 0.2,
        *,
        init: str = "torch",
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.1,
        global_pool: str = "avg",
        stem: str = "standard",
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels {in_channels} must be at least 1")
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate {drop_rate} must be at least 0 and below 1")
        if init not in INITS:
            raise ValueError(f"init {init!r} is not one of {', '.join(INITS)}")
        if stem not in STEMS:
            raise ValueError(f"stem {stem!r} is not one of {', '.join(STEMS)}")
        stride, padding, self.smallest = STEMS[stem]
        self.stem = stem
        self.in_channels = in_channels
        self.drop_rate = drop_rate
        self.init = init
        self.grad_checkpointing = False
        self.frozen_blocks = 0
        self.feature_info = [
            {"num_chs": channels, "reduction": reduction * stride // 2, "module": f"features.{index}"}
            for index, channels, reduction in _LEVELS
        ]
        self.features = nn.Sequential(
            ConvNormAct(in_channels, 32, 3, stride, padding),  # 149x149x32
            ConvNormAct(32, 32, 3, 1, padding),  # 147x147x32
            ConvNormAct(32, 64, 3),  # 147x147x64
            Mixed3a(padding),
            Mixed4a(padding),
            Mixed5a(padding),
            *(InceptionA() for _ in range(4)),
            ReductionA(padding),
            *(InceptionB() for _ in range(7)),
            ReductionB(padding),
            *(InceptionC() for _ in range(3)),
        )
        for module in self.features.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = bn_eps, bn_momentum
            elif isinstance(module, nn.Conv2d):
                _initialise(module, init)
        if init == "shallow":
            quieten_deep_branches(self.features)
        self.head_drop = nn.Dropout(drop_rate)
        self.global_pool = global_pool
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new, initialised classifier in place; 0 classes for none. `global_pool` None keeps the pool."""
        pool = self.global_pool if global_pool is None else global_pool
        if num_classes < 0:
            raise ValueError(f"num_classes {num_classes} must be 0 (embeddings) or more")
        if pool not in POOLS:
            raise ValueError(f"global_pool {pool!r} is not one of {', '.join(map(repr, POOLS))}")
        if not pool and num_classes:
            raise ValueError(f"global_pool '' leaves no vector for {num_classes} classes: use 'avg' or num_classes 0")
        self.num_classes = num_classes
        self.global_pool = pool
        self.head_hidden_size = self.num_features * POOLS[pool]
        self.last_linear: nn.Module = nn.Identity()
        if num_classes:
            like = next(self.parameters())
            self.last_linear = nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
            _initialise(self.last_linear, self.init)
        self.last_linear.train(self.training)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity when `num_classes` is 0."""
        return self.last_linear

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keeps the inputs of some blocks for the backward pass and computes the rest again: less memory, more time."""
        self.grad_checkpointing = enable

    def freeze(self, blocks: int) -> None:
        """Stops the first `blocks` of `features` from learning, and lets everything behind them learn.

        Frozen blocks take no gradients and are in evaluation mode, also after `train()`: BatchNorm uses its running
        statistics and leaves them as they are. Nothing of them is kept for a backward pass.

        Raises:
            ValueError: more blocks than `features` has.
        """
        if not 0 <= blocks <= len(self.features):
            raise ValueError(f"freeze {blocks}: the network has {len(self.features)} blocks before its classifier")
        self.frozen_blocks = blocks
        for index, block in enumerate(self.features):
            block.requires_grad_(index >= blocks)
        self.train(self.training)

    def train(self, mode: bool = True) -> InceptionV4:
        """As `torch.nn.Module.train`, for the blocks that are not frozen."""
        super().train(mode)
        for block in list(self.features)[: self.frozen_blocks]:
            block.eval()
        return self

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to the last feature map [B, 1536, h, w] (8x8 for 299x299)."""
        if not torch.jit.is_scripting():  # TorchScript has no module constants and no checkpointing
            check_images(x, self.in_channels, self.smallest)
            if self.grad_checkpointing and torch.is_grad_enabled():
                return self._frugal_features(x)
        return self.features(x)

    def _frugal_features(self, x: Tensor) -> Tensor:
        blocks = list(self.features)
        for block in blocks[: self.frozen_blocks]:  # nothing of these is kept, so nothing is computed again
            x = block(x)
        bounds = sorted({self.frozen_blocks, *(k for k in _KEPT if k > self.frozen_blocks), len(blocks)})
        for start, end in itertools.pairwise(bounds):
            x = checkpointed(blocks[start:end], x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map [B, 1536, h, w] to logits, or to the classifier's input [B, 1536] if `pre_logits`."""
        x = self.head_drop(pooled(x, self.global_pool))
        return x if pre_logits else self.last_linear(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The feature maps at the five levels of `feature_info`, with timm's arguments and meaning.

        Args:
            x: images [B, in_channels, H, W].
            indices: levels to return: None for all, n for the last n, or a list (negative counts from the end).
            norm: no effect, this network ends without a normalisation layer.
            stop_early: leave out the blocks after the last level asked for.
            output_fmt: "NCHW".
            intermediates_only: return the list alone, without the output of the last block run.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r} is not supported: use 'NCHW'")
        check_images(x, self.in_channels, self.smallest)
        frugal = self.grad_checkpointing and torch.is_grad_enabled()
        run = _checkpointed_block if frugal else _block
        last, maps = feature_maps(self.features, x, indices, stop_early=stop_early, run=run)
        return maps if intermediates_only else (last, maps)


def _block(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


def _checkpointed_block(block: nn.Module, x: Tensor) -> Tensor:
    return checkpointed([block], x)


def feature_maps(
    blocks: nn.Sequential,
    x: Tensor,
    indices: int | Sequence[int] | None,
    *,
    stop_early: bool = False,
    run: Callable[[nn.Module, Tensor], Tensor] = _block,
) -> tuple[Tensor, list[Tensor]]:
    """The output of the last block run, and the maps at the levels of `feature_info` that are asked for."""
    ends = [index for index, _, _ in _LEVELS]
    wanted = {ends[level] for level in _levels(indices, len(ends))}
    maps = []
    for index, block in enumerate(blocks):
        if stop_early and index > max(wanted):
            break
        x = run(block, x)
        if index in wanted:
            maps.append(x)
    return x, maps


def _levels(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Absolute level numbers in 0..count-1."""
    chosen = range(count) if indices is None else indices
    if isinstance(chosen, int):
        chosen = range(count - chosen, count) if 0 < chosen <= count else []
    levels = [level + count if level < 0 else level for level in chosen]
    if not levels or not all(0 <= level < count for level in levels):
        raise ValueError(f"indices {indices} must name some of the {count} feature levels")
    return levels


@torch.fx.wrap
def check_images(x: Tensor, in_channels: int, smallest: int = MIN_IMAGE_SIZE) -> None:
    """Raise ValueError unless `x` is [B, in_channels, H, W] of at least `smallest` pixels a side."""
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f"input has shape {list(x.shape)}: give images as [batch, {in_channels}, height, width]")
    height, width = x.shape[2:]
    if height < smallest or width < smallest:
        raise ValueError(f"input is {height}x{width} pixels: Inception-v4 needs at least {smallest} a side")


_LEVELS = ((2, 64, 2), (3, 160, 4), (9, 384, 8), (17, 1024, 16), (21, 1536, 32))
"""The feature levels: index of the block, channels, pixels of the image to one of the map."""


_KEPT = (0, 2, 4, 6, 8, 10, 12, 14, 16, 18)
"""Blocks whose inputs activation checkpointing keeps. Found by counting the bytes of a training step: to keep more maps
or fewer takes more memory at the peak, and every choice computes each block twice."""


@torch.no_grad()
def quieten_deep_branches(blocks: nn.Sequential) -> None:
    """The last BatchNorm of every deep branch starts at scale 0.1, in place: every block keeps its shortest branches.

    Not scale 0: behind it ReLU would stop the gradient for good.
    """
    for block in blocks:
        ends = [getattr(block, name, None) for name in ("branch1", "branch2")]
        if isinstance(block, InceptionC):
            ends = [[getattr(block, f"branch{name}")] for name in ("1_1a", "1_1b", "2_3a", "2_3b")]
        for branch in ends:
            if branch is not None and not isinstance(branch, nn.MaxPool2d):
                nn.init.constant_(branch[-1].bn.weight, 0.1)


@torch.no_grad()
def _initialise(layer: nn.Module, init: str) -> None:
    if isinstance(layer, nn.Conv2d) and init == "tf":
        std = math.sqrt(1.3 * 2.0 / layer.weight[0].numel())  # 1.3: TF-Slim's correction for the lost tails
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    elif isinstance(layer, nn.Conv2d) and init == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    elif isinstance(layer, nn.Linear) and init == "tf":
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
