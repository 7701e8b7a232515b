"""A run of several processes that stands still ends with an error that names the process it waits for."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from inception_v4.distributed import World, connect

_KEY = "watchdog/"


class NoWatchdog:
    """The off state: a run of one process waits for nobody."""

    def beat(self, doing: str) -> None: ...

    def alive(self) -> None: ...

    def stop(self) -> None: ...


@dataclass
class _Other:
    """What is known of a process: its last words, and when they were new."""

    words: str = ""
    heard: float = 0.0


@dataclass
class Watchdog:
    """Of one process: it tells the others that it lives and how far it is, and looks at them when it stands still.

    Two threads, because the one that asks the store may wait for ever when the network is cut: the other one then
    ends the process all the same.

    Attributes:
        limit: seconds without progress after which this process ends.
    """

    world: World
    store: Any
    limit: float
    _count: int = 0
    _doing: str = "starting"
    _since: float = field(default_factory=time.monotonic)
    _answered: float = field(default_factory=time.monotonic)
    _others: dict[int, _Other] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def interval(self) -> float:
        """Seconds between two signs of life."""
        return min(self.limit / 8, 10.0)

    def beat(self, doing: str) -> None:
        """The process goes on to the next thing: all processes do the same things in the same order."""
        self._count, self._doing, self._since = self._count + 1, doing, time.monotonic()

    def alive(self) -> None:
        """The process is still doing the same thing, and gets on with it."""
        self._since = time.monotonic()

    def start(self) -> None:
        self._tell(0)
        self.world.barrier()  # from here on there is a word of everyone
        for work in (self._talk, self._watch):
            threading.Thread(target=work, name=f"watchdog {work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """From now on this process waits for no other one."""
        self._over.set()

    def _talk(self) -> None:
        number = 0
        while not self._over.wait(self.interval):
            number += 1
            try:
                self._tell(number)
                if time.monotonic() - self._since > self.limit / 3:
                    self._ask()
            except (RuntimeError, OSError):
                continue  # the store does not answer, which `_answered` tells
            self._answered = time.monotonic()

    def _tell(self, number: int) -> None:
        self.store.set(f"{_KEY}{self.world.rank}", f"{self._count}|{number}|{socket.gethostname()}|{self._doing}")

    def _ask(self) -> None:
        now = time.monotonic()
        ranks = [rank for rank in range(self.world.size) if rank != self.world.rank]
        for rank, words in zip(ranks, self.store.multi_get([f"{_KEY}{rank}" for rank in ranks]), strict=True):
            other = self._others.setdefault(rank, _Other(heard=now))
            if words.decode() != other.words:
                other.words, other.heard = words.decode(), now

    def _watch(self) -> None:
        while not self._over.wait(self.interval / 4):
            if time.monotonic() - self._since > self.limit:
                # From a thread nothing else ends a process whose main thread waits in a collective operation.
                print(f"error (process {self.world.rank}): {self.explain()}", file=sys.stderr, flush=True)
                # The others are about to say the same: they would see a closed connection instead.
                time.sleep(2 * self.interval)
                os._exit(1)

    def explain(self) -> str:
        """Whom this process waits for, in one line."""
        return (
            f"no progress for {self.limit:g} s (--hang-timeout) while {self._doing}: {self._missing()}; start again "
            "with --resume auto, or let torchrun do it (--max-restarts)"
        )

    def _missing(self) -> str:
        now = time.monotonic()
        if now - self._answered > 3 * self.interval:
            where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
            return f"process 0 is missing: its store at {where} has not answered for {now - self._answered:.0f} s"
        silent = [rank for rank, other in self._others.items() if now - other.heard > 3 * self.interval]
        if silent:
            return f"{self._named(silent)} missing: not a sign of life, its machine, link or process has stopped"
        counts = {rank: int(other.words.partition("|")[0]) for rank, other in self._others.items()}
        least = min([self._count, *counts.values()])
        if self._count == least < max(counts.values(), default=least):
            return f"process {self.world.rank} itself is missing to the others"
        if least < self._count:
            late = [rank for rank, count in counts.items() if count == least]
            return f"{self._named(late)} missing: still {self._others[late[0]].words.split('|', 3)[3]}"
        return "every process gives signs of life and waits in the same place"

    def _named(self, ranks: list[int]) -> str:
        names = [f"{rank} ({self._others[rank].words.split('|')[2]})" for rank in ranks]
        return f"process {names[0]} is" if len(names) == 1 else f"processes {', '.join(names)} are"


@contextlib.contextmanager
def watching(world: World, limit: float) -> Iterator[Watchdog | NoWatchdog]:
    """The watchdog of this process while the block runs. It has a connection to the store of its own."""
    if world.size == 1:
        yield NoWatchdog()
        return
    watchdog = Watchdog(world, connect(world), limit)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()
