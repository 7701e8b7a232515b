"""The processes of a run: who am I, exact sums over all of them, and main-process-first sections.

A run started by `torchrun` has RANK, WORLD_SIZE and LOCAL_RANK in its environment; without them the world has
one process and every operation here is free.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from inception_v4.accelerator import Accelerator


@dataclass(frozen=True)
class World:
    """`size` processes, of which this is number `rank` (`local_rank` on its machine).

    `meeting` distinguishes them, once they are in touch, from those before a restart.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    meeting: str = ""

    @classmethod
    def from_environment(cls) -> World:
        """What `torchrun` says, before or after there is a process group; only with one may its methods be called."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
        return cls(rank, size, local_rank, local_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here. Not `dist.barrier`, which would make the device wait."""
        self.any(False)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """One process of each machine runs the body first (a download, a cache), then the others."""
        if self.local_rank != 0:
            self.barrier()
        try:
            yield
        finally:
            # The barrier is reached after an error too: the others must not wait for a process that has died.
            if self.local_rank == 0:
                self.barrier()

    def any(self, flag: bool) -> bool:
        """True when it is true in at least one process."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes)
        return bool(votes.item())

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, on the host (int64 or float64 stay what they are)."""
        total = values.detach().cpu().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def gather(self, values: Tensor) -> list[Tensor]:
        """Every process's tensor, by rank, on the host. The first dimension may differ."""
        mine = values.detach().cpu().contiguous()
        if self.size == 1:
            return [mine]
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]))
        longest = max(int(length) for length in lengths)
        padded = mine.new_zeros((longest, *mine.shape[1:]))
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every process's picklable value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[[], Any] | None) -> None:
        """Do `work` in the main process while the others wait; an error of it is raised in every process."""
        failure = None
        if self.is_main and work is not None:
            try:
                work()
            except Exception as error:
                if self.size == 1:
                    raise
                failure = error
        failure = self.share(failure)
        if failure is not None:
            raise failure

    def share(self, value: Any) -> Any:
        """The main process's picklable value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def session(accelerator: Accelerator, *, timeout: float = 3600) -> Iterator[World]:
    """The `World` of this process; the process group lives as long as the block.

    The time limit, in seconds, is generous because one process may decode, write or compile while the others wait.
    """
    world = World.from_environment()
    if world.size == 1:
        yield world
        return
    limit = timedelta(seconds=timeout)
    # Its functions take the group of the moment of their import as a default. DistributedDataParallel imports them, and
    # a group that they keep outlives its end: its threads then meet an interpreter that is gone, and abort the process.
    importlib.import_module("torch.distributed.nn.functional")
    # Host tensors travel over gloo and device tensors over the device's back end, so that small messages between the
    # hosts never wait for the device.
    store = connect(world)  # kept: without torchrun the main process's is the server
    world = replace(world, meeting=_meet(world, store, timeout))
    dist.init_process_group(
        accelerator.backend, store=dist.PrefixStore(world.meeting, store), rank=world.rank, world_size=world.size,
        timeout=limit, **accelerator.process_group_options(),
    )  # fmt: skip
    try:
        yield world
    finally:
        dist.destroy_process_group()


def connect(world: World) -> dist.Store:
    """A connection of its own to the store through which the processes find each other; a part of it per meeting."""
    store, _, _ = next(dist.rendezvous("env://", world.rank, world.size))
    return dist.PrefixStore(f"inception_v4/{world.meeting}", store)


def _meet(world: World, store: dist.Store, timeout: float) -> str:
    """A name for this meeting of processes, known to all of them once all of them are there.

    torchrun keeps one store over restarts, and back ends find in it the addresses of processes that have died. So
    each process leaves a number of its own, the main one proposes the list of them, the others confirm a list with
    their number in it, and it holds when all have confirmed the same.

    Raises:
        TimeoutError: after `timeout` seconds not all of them are there.
    """
    joined, confirmed = ([f"{word}/{rank}" for rank in range(world.size)] for word in ("joined", "confirmed"))
    mine, deadline = uuid4().hex, time.monotonic() + timeout
    store.set(joined[world.rank], mine)
    while time.monotonic() < deadline:
        key = "agreed"
        if world.is_main:
            key = "none"
            if store.check(joined):
                proposal = b" ".join(store.multi_get(joined)).decode()
                store.set("proposal", proposal)
                others = confirmed[1:]
                if store.check(others) and {word.decode() for word in store.multi_get(others)} == {proposal}:
                    store.set("agreed", proposal)
                    key = "agreed"
        elif store.check(["proposal"]) and mine in (proposal := store.get("proposal").decode()).split():
            store.set(confirmed[world.rank], proposal)
        if store.check([key]) and (agreed := store.get(key).decode()).split()[world.rank : world.rank + 1] == [mine]:
            return hashlib.sha256(agreed.encode()).hexdigest()[:16]
        time.sleep(0.02)
    absent = [rank for rank, name in enumerate(joined) if not store.check([name])]
    raise TimeoutError(
        f"after {timeout:g} s not all of {world.size} processes are in touch with process {world.rank}: missing "
        + (f"{', '.join(map(str, absent))}" if absent else "are some that were there before a restart")
    )


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class HostSyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over all processes for devices where torch.nn.SyncBatchNorm refuses to run (the CPU)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        count = wide.new_tensor([wide.numel() / wide.shape[1]])
        # Two passes: subtracting the mean first keeps the variance exact where E[x^2] - E[x]^2 would cancel.
        sums = _SumOverProcesses.apply(torch.cat([wide.sum((0, 2, 3)), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = wide - mean[None, :, None, None]
        variance = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / total
        self._track(mean.detach(), variance.detach() * total / (total - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[None, :, None, None] + self.bias[None, :, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        # Momentum None is torch's cumulative average.
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), weight)


def synchronise_batch_norm(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """`model` with batch statistics taken over all processes; parameters and names stay as they are."""
    if accelerator.can_sync_bn_natively:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = HostSyncBatchNorm
    return model


def share_gradients(network: nn.Module, accelerator: Accelerator, **options: Any) -> DistributedDataParallel:
    """`network` whose gradients are averaged over the processes; each keeps its own buffers (`average_buffers`).

    `options` are DistributedDataParallel's, beside the device's.
    """
    # torch 2.13 gave the switch another name, and later versions warn of the old one.
    names = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    devices = None if accelerator.device.index is None else [accelerator.device.index]
    settings: dict[str, Any] = {"device_ids": devices, switch: False, **options}
    return DistributedDataParallel(network, **settings)


@torch.no_grad()
def average_buffers(model: nn.Module, world: World) -> None:
    """BatchNorm statistics become their mean over the processes, so that all of them validate one network."""
    if world.size == 1:
        return
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    flat = torch.cat([b.flatten().cpu().double() for b in buffers]) if buffers else torch.zeros(0)
    mean = world.sum(flat) / world.size
    offset = 0
    for buffer in buffers:
        buffer.copy_(mean[offset : offset + buffer.numel()].view_as(buffer).to(buffer.dtype))
        offset += buffer.numel()
