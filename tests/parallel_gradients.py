"""One process of `test_distributed.py` and `test_npu.py`: gradients of its share of a fixed batch, under torchrun.

torchrun --nproc-per-node 2 parallel_gradients.py OUTPUT.pt sync|apart cpu|npu float64|float32
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

from inception_v4.accelerator import Accelerator, prepare_environment, select

if __name__ == "__main__":
    prepare_environment(sys.argv[3])

import torch
import torch.nn.functional as F
from live import enliven_gently

from inception_v4.distributed import World, average_buffers, session, share_gradients, synchronise_batch_norm
from inception_v4.network.model import InceptionV4


def fixed_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(8, 3, 75, 75, generator=generator, dtype=torch.float64), torch.arange(8) % 3


def gradients(
    world: World, device: Accelerator, *, sync: bool, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """Gradients and BatchNorm statistics after one backward pass over every `world.size`-th picture."""
    model: torch.nn.Module = enliven_gently(InceptionV4(3, drop_rate=0.0)).to(dtype).to(device.device).train()
    if sync and world.size > 1:
        model = synchronise_batch_norm(model, device)
    compute = share_gradients(model, device) if world.size > 1 else model
    images, labels = (t[world.rank :: world.size] for t in fixed_batch())
    F.cross_entropy(compute(images.to(dtype).to(device.device)), labels.to(device.device)).backward()
    average_buffers(model, world)
    found = {f"gradient {n}": p.grad.cpu().double() for n, p in model.named_parameters() if p.grad is not None}
    found |= {f"buffer {n}": b.cpu().double() for n, b in model.named_buffers()}
    # The average of equal statistics is those statistics; after it every process holds the same ones.
    copied = copy.deepcopy(dict(model.named_buffers()))
    average_buffers(model, world)
    assert all(torch.allclose(copied[n].double(), b.double()) for n, b in model.named_buffers())
    return found


def gloo_threads() -> list[str]:
    """Of this process, by their names in Linux."""
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def main() -> None:
    output, mode, kind, dtype = sys.argv[1:]
    device = select(kind)
    device.activate()
    with session(device) as world:
        found = gradients(world, device, sync=mode == "sync", dtype=getattr(torch, dtype))
        assert world.any(world.rank == 1) and not world.any(False)
        assert [len(t) for t in world.gather(torch.arange(world.rank + 1))] == list(range(1, world.size + 1))
        assert world.sum(torch.tensor([2**53 + 1])).item() == world.size * (2**53 + 1)
        assert world.share(f"from {world.rank}") == "from 0"
        assert world.gather_objects(world.rank) == list(range(world.size))
        if world.is_main:
            torch.save(found, output)
        assert gloo_threads() or sys.platform != "linux"
    # One that is left may abort the process when Python ends.
    assert not gloo_threads()


if __name__ == "__main__":
    main()
