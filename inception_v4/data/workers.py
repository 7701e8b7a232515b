"""Loader processes: how many, how they begin, and what to say when one dies."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from inception_v4.accelerator.containers import cpu_limits
from inception_v4.accelerator.glibc import give_back_large_blocks

if TYPE_CHECKING:
    from inception_v4.distributed import World


class WorkerDied(RuntimeError):
    """A loader process ended without being asked to."""


def worker_count(wanted: int | None, world: World) -> int:
    """Up to 8 loader processes, from this process's share of the CPUs."""
    if wanted is not None:
        return wanted
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpus = min([cpus, *map(math.ceil, cpu_limits())])
    return min(8, max(1, cpus // world.local_size))


def start_worker(number: int) -> None:
    """In a loader process, before its first picture."""
    # Ctrl-C reaches the whole process group; the main process ends the workers, so one message is printed, not many.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # likewise from a batch system; the main process saves
    if hasattr(signal, "sigwaitinfo"):
        # torchrun, `timeout` and batch systems send SIGTERM to the whole group too: the main process saves, and the
        # step under way needs its pictures.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, name="SIGTERM", daemon=True).start()
    give_back_large_blocks()  # else one huge picture would stay in the memory of each of them
    # Interrupted, it may hang up on the thread here that hands over shared memory, which would print a traceback.
    sys.excepthook = partial(_unless_hung_up, sys.excepthook)


def _end_when_told() -> None:
    """By the main process, and by nobody else."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _unless_hung_up(otherwise: Any, kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    if not isinstance(error, (ConnectionError, EOFError)):
        otherwise(kind, error, traceback)


def received_batches(batches: Iterator[Any], skipped: list[str]) -> Iterator[Any]:
    """A `DataLoader`'s batches; an exception in place of one is raised, unreadable pictures are added to `skipped`."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if re.search(r"DataLoader worker \(pid", str(error)):
                raise WorkerDied(
                    f"{' '.join(str(error).split())}: probably out of memory or shared memory; lower workers or "
                    "batch_size, or in a container raise --shm-size"
                ) from error
            raise
        if isinstance(batch, Exception):
            raise batch
        skipped += batch.skipped
        yield batch
