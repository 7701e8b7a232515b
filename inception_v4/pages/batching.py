"""Pictures of many requests in one pass of the network: dynamic batching with a bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor


class QueueFull(RuntimeError):
    """More pictures wait than may; to be asked again later."""


class NetworkFailed(RuntimeError):
    """What the network said of a batch, in place of its answers."""


class _Waiting(NamedTuple):
    crop: Tensor
    answer: asyncio.Future[Tensor]


class Batcher:
    """Collects crops for at most `wait` seconds, or until there are `batch_size`, and computes them together.

    Args:
        compute: crops [B, C, S, S] to outputs [B, K]; called in one thread of its own, one batch after another.
        capacity: pictures that may be under way at once, from their admission to their answer.
        observe: told the size of every batch.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        *,
        batch_size: int,
        wait: float,
        capacity: int,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._compute, self._batch_size, self._wait = compute, batch_size, wait
        self._capacity, self._observe = capacity, observe
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "network")
        self._task: asyncio.Task[None] | None = None
        self.under_way = 0

    def start(self) -> None:
        """In the event loop that is to ask."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Answer what waits, then end."""
        await self._queue.join()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown()

    def admit(self, count: int) -> None:
        """Take so many places; to be given back by `leave`. Raises QueueFull."""
        if self.under_way + count > self._capacity:
            raise QueueFull(f"{self.under_way} pictures wait and {self._capacity} may: ask again in a second")
        self.under_way += count

    def leave(self, count: int) -> None:
        self.under_way -= count

    async def outputs(self, crops: Sequence[Tensor]) -> list[Tensor]:
        """The output [K] of each crop."""
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(crop, loop.create_future()) for crop in crops]
        for one in waiting:
            self._queue.put_nowait(one)
        return await asyncio.gather(*(one.answer for one in waiting))

    async def _work(self) -> None:
        while True:
            batch = await self._collect()
            try:
                await self._answer(batch)
            finally:
                for _ in batch:
                    self._queue.task_done()

    async def _collect(self) -> list[_Waiting]:
        batch = [await self._queue.get()]
        loop = asyncio.get_running_loop()
        end = loop.time() + self._wait
        while len(batch) < self._batch_size:
            if not self._queue.empty():
                batch.append(self._queue.get_nowait())
                continue
            left = end - loop.time()
            if left <= 0:
                break
            with suppress(asyncio.TimeoutError):
                batch.append(await asyncio.wait_for(self._queue.get(), left))
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        batch = [one for one in batch if not one.answer.cancelled()]  # their clients have gone
        if not batch:
            return
        try:
            self._observe(len(batch))
            crops = torch.stack([one.crop for one in batch])
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, crops)
        except Exception as error:  # whatever the runtime raises: the requests of this batch fail, the service goes on
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(NetworkFailed(f"the network failed: {error}"))
            return
        for one, output in zip(batch, found, strict=True):
            if not one.answer.done():
                one.answer.set_result(output)
