"""The building blocks of Inception-v4, with the names of timm and Cadene. Sizes in comments are for a 299x299 input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inception_v4.network.average_pool import AvgPool
from inception_v4.network.small_maps import Conv2d

Kernel = int | tuple[int, int]


class ConvNormAct(nn.Module):
    """Convolution without bias, BatchNorm, ReLU. `padding` is "same" (n pixels become ceil(n / stride)) or "valid"."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Kernel = 1, stride: int = 1, padding: str = "same"
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        pads = (height // 2, width // 2) if padding == "same" else (0, 0)
        self.conv = Conv2d(in_channels, out_channels, (height, width), stride, pads, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Concat(nn.Module):
    """Gives the same input to every child and joins their outputs along the channels, in order."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


def _chain(channels: int, *layers: tuple[Any, ...]) -> nn.Sequential:
    """ConvNormActs in a row: `channels` in, then for each layer (out_channels, kernel, stride, padding)."""
    convs = []
    for layer in layers:
        convs.append(ConvNormAct(channels, *layer))
        channels = layer[0]
    return nn.Sequential(*convs)


def _max_pool(padding: str) -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, padding=1 if padding == "same" else 0)


class Mixed3a(Concat):  # 147x147x64 -> 73x73x160
    def __init__(self, padding: str = "valid") -> None:
        super().__init__(maxpool=_max_pool(padding), conv=ConvNormAct(64, 96, 3, 2, padding))


class Mixed4a(Concat):  # 73x73x160 -> 71x71x192
    def __init__(self, padding: str = "valid") -> None:
        super().__init__(
            branch0=_chain(160, (64,), (96, 3, 1, padding)),
            branch1=_chain(160, (64,), (64, (1, 7)), (64, (7, 1)), (96, 3, 1, padding)),
        )


class Mixed5a(Concat):  # 71x71x192 -> 35x35x384
    def __init__(self, padding: str = "valid") -> None:
        super().__init__(conv=ConvNormAct(192, 192, 3, 2, padding), maxpool=_max_pool(padding))


class InceptionA(Concat):  # 35x35x384
    def __init__(self) -> None:
        super().__init__(
            branch0=ConvNormAct(384, 96),
            branch1=_chain(384, (64,), (96, 3)),
            branch2=_chain(384, (64,), (96, 3), (96, 3)),
            branch3=nn.Sequential(AvgPool(), ConvNormAct(384, 96)),
        )


class ReductionA(Concat):  # 35x35x384 -> 17x17x1024
    def __init__(self, padding: str = "valid") -> None:
        super().__init__(
            branch0=ConvNormAct(384, 384, 3, 2, padding),
            branch1=_chain(384, (192,), (224, 3), (256, 3, 2, padding)),
            branch2=_max_pool(padding),
        )


class InceptionB(Concat):  # 17x17x1024
    def __init__(self) -> None:
        super().__init__(
            branch0=ConvNormAct(1024, 384),
            branch1=_chain(1024, (192,), (224, (1, 7)), (256, (7, 1))),
            branch2=_chain(1024, (192,), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
            branch3=nn.Sequential(AvgPool(), ConvNormAct(1024, 128)),
        )


class ReductionB(Concat):  # 17x17x1024 -> 8x8x1536
    def __init__(self, padding: str = "valid") -> None:
        super().__init__(
            branch0=_chain(1024, (192,), (192, 3, 2, padding)),
            branch1=_chain(1024, (256,), (256, (1, 7)), (320, (7, 1)), (320, 3, 2, padding)),
            branch2=_max_pool(padding),
        )


class InceptionC(nn.Module):  # 8x8x1536
    """The only block whose branches fork, so its convolutions carry flat names."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = ConvNormAct(1536, 256)
        self.branch1_0 = ConvNormAct(1536, 384)
        self.branch1_1a = ConvNormAct(384, 256, (1, 3))
        self.branch1_1b = ConvNormAct(384, 256, (3, 1))
        self.branch2_0 = ConvNormAct(1536, 384)
        self.branch2_1 = ConvNormAct(384, 448, (3, 1))
        self.branch2_2 = ConvNormAct(448, 512, (1, 3))
        self.branch2_3a = ConvNormAct(512, 256, (1, 3))
        self.branch2_3b = ConvNormAct(512, 256, (3, 1))
        self.branch3 = nn.Sequential(AvgPool(), ConvNormAct(1536, 256))

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.branch1_0(x)
        x2 = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        forks = (self.branch1_1a(x1), self.branch1_1b(x1), self.branch2_3a(x2), self.branch2_3b(x2))
        return torch.cat([self.branch0(x), *forks, self.branch3(x)], 1)
