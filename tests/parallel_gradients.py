"""One process of `test_distributed.py`: gradients of its share of a fixed batch, under torchrun.

torchrun --nproc-per-node 2 parallel_gradients.py OUTPUT.pt sync|apart
"""

from __future__ import annotations

import copy
import sys

import torch
import torch.nn.functional as F
from live import enliven

from inception_v4.accelerator import select
from inception_v4.distributed import World, average_buffers, session, share_gradients, synchronise_batch_norm
from inception_v4.model import InceptionV4


def fixed_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(8, 3, 75, 75, generator=generator, dtype=torch.float64), torch.arange(8) % 3


def gradients(world: World, *, sync: bool, micro: int = 1) -> dict[str, torch.Tensor]:
    """Gradients and BatchNorm statistics after one backward pass over every `world.size`-th picture."""
    model = enliven(InceptionV4(3, drop_rate=0.0)).double().train()
    if sync and world.size > 1:
        synchronise_batch_norm(model, select("cpu"))
    compute = share_gradients(model, select("cpu")) if world.size > 1 else model
    images, labels = (t[world.rank :: world.size] for t in fixed_batch())
    F.cross_entropy(compute(images), labels).backward()
    average_buffers(model, world)
    found = {f"gradient {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    found |= {f"buffer {n}": b.clone() for n, b in model.named_buffers()}
    # The average of equal statistics is those statistics; after it every process holds the same ones.
    copied = copy.deepcopy(dict(model.named_buffers()))
    average_buffers(model, world)
    assert all(torch.allclose(copied[n].double(), b.double()) for n, b in model.named_buffers())
    return found


def main() -> None:
    with session(select("cpu")) as world:
        found = gradients(world, sync=sys.argv[2] == "sync")
        assert world.any(world.rank == 1) and not world.any(False)
        assert [len(t) for t in world.gather(torch.arange(world.rank + 1))] == list(range(1, world.size + 1))
        assert world.sum(torch.tensor([2**53 + 1])).item() == world.size * (2**53 + 1)
        assert world.share(f"from {world.rank}") == "from 0"
        assert world.gather_objects(world.rank) == list(range(world.size))
        if world.is_main:
            torch.save(found, sys.argv[1])


if __name__ == "__main__":
    main()
