"""Activation checkpointing that leaves BatchNorm's statistics as one forward pass leaves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpointed(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """`blocks` in a row, of which only the input is kept for the backward pass; the rest is computed again."""
    # No block draws random numbers, so that their state needs no saving.
    run = partial(checkpoint, _run, blocks, x, use_reentrant=False, preserve_rng_state=False)
    # torch.compile takes no contexts and needs none: its recomputation updates no buffer.
    return run() if torch.compiler.is_compiling() else run(context_fn=partial(_recompute_contexts, blocks))


def _run(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _recompute_contexts(
    blocks: Sequence[nn.Module],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _frozen_statistics(blocks)


@contextmanager
def _frozen_statistics(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """A second forward pass of the same batch must not enter BatchNorm's running statistics a second time.

    Momentum 0 rather than `track_running_stats=False`: the recomputation has to save the same tensors.
    """
    norms = [module for block in blocks for module in block.modules() if isinstance(module, _BatchNorm)]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
