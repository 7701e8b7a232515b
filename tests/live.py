"""Weights with live signals: with PyTorch's default initialisation two pictures change this network's logits
by about 1e-11, so a comparison of outputs would prove nothing."""

from __future__ import annotations

import torch
from torch import nn

from inception_v4.network.model import InceptionV4, quieten_deep_branches


def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """He-scaled weights and randomised BatchNorm parameters and statistics, in place; returns `model`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                noise = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
                module.weight.copy_(noise * (2.0 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
            elif isinstance(module, nn.BatchNorm2d):
                shape = module.weight.shape
                module.weight.copy_(0.8 + 0.4 * torch.rand(shape, generator=generator))
                module.bias.copy_(0.2 * torch.randn(shape, generator=generator))
                module.running_mean.copy_(0.2 * torch.randn(shape, generator=generator))
                module.running_var.copy_(0.7 + 0.6 * torch.rand(shape, generator=generator))
    return model


def enliven_gently(model: InceptionV4, seed: int = 0) -> InceptionV4:
    """`enliven` with quiet deep branches, for float32 gradients that can be compared; in place.

    At full scale, with few values per channel, one process's own float32 gradients of this network are 9 % away from
    float64's (75 px, batch 8); so are 0.3 %.
    """
    enliven(model, seed)
    quieten_deep_branches(model.features)
    return model
