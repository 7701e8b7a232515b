"""BatchNorm statistics anew: those of averaged weights are not the average of their statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from inception_v4.accelerator.precision import Precision
from inception_v4.data.loader import on_device
from inception_v4.data.normalise import Normalise
from inception_v4.distributed import World, average_buffers


@torch.no_grad()
def recompute_statistics(
    model: nn.Module, batches: Iterable[Any], *, normalise: Normalise, precision: Precision, world: World
) -> int:
    """Mean and variance of every BatchNorm become their plain mean over `batches`, all of one network as it is.

    Those of BatchNorms that do not learn stay: what they normalise has not changed.

    Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization", section 3.2. The model
    comes back in evaluation mode; its dropout is off throughout. Each process takes its own batches.

    Returns:
        The pictures that this process saw.
    """
    found = [module for module in model.eval().modules() if isinstance(module, _BatchNorm)]
    norms = [norm for norm in found if norm.weight is None or norm.weight.requires_grad]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average
        norm.train()
    pictures = 0
    try:
        for batch in on_device(batches, precision.accelerator):
            with precision.autocast():
                model(normalise(batch.images))
            pictures += len(batch)
    finally:
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum
        model.eval()
    average_buffers(model, world)
    return pictures
