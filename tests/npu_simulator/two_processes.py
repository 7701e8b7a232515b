"""Run by tests/accelerator/test_npu.py under torchrun: what two processes learn from the halves of a batch, as numbers.

They are the two simulated NPUs of one machine. Synchronised batch statistics make it the same computation as one
process's with the whole batch, which the first of them does on the CPU.
"""

from __future__ import annotations

import os
import time

from inception_v4.accelerator import Accelerator, prepare_environment, select

prepare_environment("npu")
npu = select("npu")
npu.activate()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from live import enliven  # noqa: E402
from torch import nn  # noqa: E402

from inception_v4.distributed import World, session, share_gradients, synchronise_batch_norm  # noqa: E402
from inception_v4.training.optim import RMSpropTF  # noqa: E402

LATE = 1.5 * float(os.environ["HCCL_EXEC_TIMEOUT"])
"""Seconds: longer than HCCL waits in an operation."""


def learn(device: Accelerator, world: World, *, fused: bool = False, **ddp: object) -> torch.Tensor:
    """The network's state after three steps."""
    rank, size = world.rank, world.size
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(96, 3)]
    model: nn.Module = enliven(nn.Sequential(*layers)).to(device.device)
    wrapped = model
    if size > 1:
        model = synchronise_batch_norm(model, device)
        wrapped = share_gradients(model, device, **(device.ddp_options(fused_optimizer=fused) | ddp))
    rmsprop = device.fused_optimizer("rmsproptf") if fused else RMSpropTF
    optimizer = rmsprop(model.parameters(), lr=0.05, eps=1.0, momentum=0.9)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.randn(8, 3, 19, 19, generator=generator), torch.randint(3, (8,), generator=generator)
        loss = nn.functional.cross_entropy(
            wrapped(images[rank::size].to(device.device)), labels[rank::size].to(device.device)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.cat([value.detach().cpu().float().flatten() for value in model.state_dict().values()])


def refused(what: str, action: object, *arguments: object, **options: object) -> None:
    try:
        action(*arguments, **options)  # type: ignore[operator]
    except RuntimeError as error:
        show(f"REFUSED {what}: {error}")


def show(text: str) -> None:
    if os.environ["RANK"] == "0":
        print(text, flush=True)


def show_numbers(kind: str, values: torch.Tensor) -> None:
    show(f"{kind} {' '.join(f'{value:.9e}' for value in values.tolist())}")


def late(world: World) -> None:
    if world.rank == 1:
        time.sleep(LATE)


def main() -> None:
    show_numbers("ALONE", learn(select("cpu"), World()))
    with session(npu) as world:
        for kind in ("PLAIN", "FUSED"):
            learnt = learn(npu, world, fused=kind == "FUSED")
            everybody = [torch.zeros_like(learnt).to(npu.device) for _ in range(world.size)]
            dist.all_gather(everybody, learnt.to(npu.device))
            assert torch.equal(everybody[0].cpu(), everybody[1].cpu()), "the processes have drifted apart"
            show_numbers(kind, learnt)
        shared = torch.tensor([world.rank + 2**53])
        dist.all_reduce(shared)
        show(f"HOST {shared.item()} {dist.group.WORLD.bound_device_id}")
        refused("float64", dist.all_reduce, torch.ones(1, dtype=torch.float64).to(npu.device))
        refused("bucket views", learn, npu, world, fused=True, gradient_as_bucket_view=True)
        late(world)
        world.barrier()
        show("PATIENT")
        late(world)
        refused("a late process", dist.all_reduce, torch.ones(1, device=npu.device))


main()
