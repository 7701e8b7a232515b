"""Run by tests/test_npu.py: what one process learns from a batch, or two from its halves, printed as numbers.

Synchronised batch statistics make both the same computation. Under torchrun the two processes are the two simulated
NPUs of one machine.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

from inception_v4.accelerator import prepare_environment, select

prepare_environment(sys.argv[1])
device = select(sys.argv[1])
device.activate()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from live import enliven  # noqa: E402
from timm.optim import RMSpropTF  # noqa: E402
from torch import nn  # noqa: E402

from inception_v4.distributed import synchronise_batch_norm  # noqa: E402

size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


def learn(*, fused: bool = False, **ddp: object) -> torch.Tensor:
    """The network's state after three steps."""
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(96, 3)]
    model: nn.Module = enliven(nn.Sequential(*layers)).to(device.device)
    wrapped = model
    if size > 1:
        model = synchronise_batch_norm(model, device)
        options = device.ddp_options(fused_optimizer=fused) | ddp
        wrapped = nn.parallel.DistributedDataParallel(model, **options)
    optimizer = (device.fused_optimizer("rmsproptf") if fused else RMSpropTF)(model.parameters(), lr=0.05, eps=1.0)
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
    if rank == 0:
        print(text, flush=True)


if size > 1:
    dist.init_process_group(device.backend, timeout=timedelta(seconds=60), **device.process_group_options())
for kind in ("plain", "fused") if device.type == "npu" else ("plain",):
    learnt = learn(fused=kind == "fused")
    if size > 1:
        everybody = [torch.zeros_like(learnt).to(device.device) for _ in range(size)]
        dist.all_gather(everybody, learnt.to(device.device))
        assert torch.equal(everybody[0].cpu(), everybody[1].cpu()), "the processes have drifted apart"
    show(f"{kind.upper()} {' '.join(f'{value:.9e}' for value in learnt.tolist())}")
if size > 1:
    refused("host tensor", dist.all_reduce, torch.ones(1))
    refused("float64", dist.all_reduce, torch.ones(1, dtype=torch.float64).to(device.device))
    refused("bucket views", learn, fused=True, gradient_as_bucket_view=True)
    dist.barrier()
    dist.destroy_process_group()
