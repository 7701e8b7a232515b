"""Honest timings: contestants interleaved in one process, medians, spread, and whether their outputs agree."""

from __future__ import annotations

import gc
import json
import multiprocessing
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inception_v4.accelerator import Accelerator, select
from inception_v4.benchmark.conditions import seconds_per_call
from inception_v4.benchmark.contestants import FORMS, Entry, Pass, Setup
from inception_v4.console import progress, track
from inception_v4.network.model import InceptionV4


@dataclass(frozen=True)
class Group:
    """Contestants that are measured against each other; the first one is what the others are compared with."""

    task: str
    batch_size: int
    image_size: int
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        return f"{self.task}, batch {self.batch_size}, {self.image_size} px"

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether a row, as plain values, is one of this group's."""
        return all(row[name] == getattr(self, name) for name in ("task", "batch_size", "image_size"))


@dataclass(frozen=True)
class Row:
    """What was measured of one contestant.

    Attributes:
        ms: milliseconds per pass, median of the rounds; low, high: quartiles.
        images_per_second: from the median.
        ratio: how many times faster than the first contestant of the group.
        first_seconds: from nothing to the first result: building, exporting, compiling.
        tflops: arithmetic done per second, 2 operations per multiplication and addition; a training step counts 3
            forward passes.
        difference: of the output from the first contestant's, relative to its norm.
        memory: bytes, the peak of building and a pass above what was in use before: of a device's tensors, of the
            whole process on the CPU; None where nobody counts.
        tensors: bytes, that peak of tensors alone on the CPU, to compare with a device's; None for other runtimes.
        error: why there are no figures.
    """

    task: str
    batch_size: int
    image_size: int
    form: str
    precision: str
    ms: float | None = None
    low: float | None = None
    high: float | None = None
    images_per_second: float | None = None
    ratio: float | None = None
    first_seconds: float | None = None
    tflops: float | None = None
    difference: float | None = None
    memory: int | None = None
    tensors: int | None = None
    error: str | None = None


class Timing(NamedTuple):
    """How long to measure.

    Attributes:
        repeats: rounds; in each every contestant runs once, in rotating order.
        seconds: least time of a contestant's turn in a round.
        memory: measure peak memory too; on the CPU that starts a process for each contestant.
    """

    repeats: int = 7
    seconds: float = 0.3
    memory: bool = False


def measure(
    group: Group, accelerator: Accelerator, options: Timing, say: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """One row per contestant of the group; a contestant that cannot run here has an `error`."""
    setup = Setup(accelerator, task=group.task, batch_size=group.batch_size, image_size=group.image_size)
    torch.compiler.reset()  # after a second batch size torch would compile for any
    rows, passes, outputs = {}, {}, {}
    try:
        for entry in track(group.entries, f"{group.title}: preparing"):
            say(f"  preparing {entry.form} {entry.precision}")
            if FORMS[entry.form].compiles:
                say(f"  {accelerator.compile_notice(entry.form)}")
            row = Row(group.task, group.batch_size, group.image_size, entry.form, entry.precision)
            try:
                passes[entry], outputs[entry], rows[entry] = _prepare(setup, entry, row)
            except Exception as error:
                # A contestant may lack its package, its kernels or the memory: the others still run.
                rows[entry] = replace(row, error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        say(f"  {options.repeats} rounds")
        with progress(f"{group.title}: rounds", options.repeats * len(passes)) as count_on:
            times = _interleave(accelerator, passes, options, count_on)
    finally:
        setup.close()
    passes.clear()
    gc.collect()
    if options.memory and accelerator.type == "cpu":
        for entry, row in track(rows.items(), f"{group.title}: memory"):
            if row.error:
                continue
            try:
                memory, tensors = _alone(group, entry)
                rows[entry] = replace(row, memory=memory, tensors=tensors)
            except BrokenProcessPool:
                rows[entry] = replace(row, error="its process was killed while its memory was measured: out of memory?")
    return _completed(group, rows, times, outputs)


def _prepare(setup: Setup, entry: Entry, row: Row) -> tuple[Pass, Tensor, Row]:
    """The contestant after some passes, its first output, and its row so far."""
    accelerator = setup.accelerator
    _set_mode(accelerator, entry)
    setup.share(FORMS[entry.form])
    gc.collect()
    accelerator.reset_peak_memory()
    before = accelerator.used_memory()
    started = time.perf_counter()
    run = FORMS[entry.form].build(setup, entry.precision)
    output = run().detach().float().cpu().clone()
    accelerator.synchronize()
    seconds = time.perf_counter() - started + setup.spared
    for _ in range(2):
        run()
    accelerator.synchronize()
    peak = accelerator.peak_memory()
    # On a CPU contestants share what the process has: see `_alone`.
    memory = None if peak is None or before is None or accelerator.type == "cpu" else peak - before
    return run, output, replace(row, first_seconds=seconds, memory=memory)


def _set_mode(accelerator: Accelerator, entry: Entry) -> None:
    accelerator.activate(tf32=entry.precision != "fp32")


def _interleave(
    accelerator: Accelerator, passes: dict[Entry, Pass], options: Timing, count_on: Callable[[], None]
) -> dict[Entry, list[float]]:
    """Seconds per pass, for each round."""
    times: dict[Entry, list[float]] = {entry: [] for entry in passes}
    order = list(passes)
    for number in range(options.repeats):
        shift = number % max(1, len(order))
        for entry in order[shift:] + order[:shift]:
            _set_mode(accelerator, entry)
            passes[entry]()  # caches and clocks are this contestant's again
            accelerator.synchronize()
            times[entry].append(seconds_per_call(accelerator, passes[entry], options.seconds))
            count_on()
    return times


def _completed(
    group: Group, rows: dict[Entry, Row], times: dict[Entry, list[float]], outputs: dict[Entry, Tensor]
) -> list[Row]:
    flops = flops_per_image(group.image_size) * (3 if group.task == "train" else 1)
    first = group.entries[0]
    for entry, seconds in times.items():
        median = statistics.median(seconds)
        low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median,) * 3
        rate = group.batch_size / median
        ratio = statistics.median(times[first]) / median if first in times else None
        difference = None
        if first in outputs:
            difference = float((outputs[entry] - outputs[first]).norm() / outputs[first].norm())
        rows[entry] = replace(
            rows[entry], ms=1e3 * median, low=1e3 * low, high=1e3 * high, images_per_second=rate, ratio=ratio,
            tflops=rate * flops / 1e12, difference=difference,
        )  # fmt: skip
    return [rows[entry] for entry in group.entries]


def flops_per_image(image_size: int) -> float:
    """Of a forward pass, counted by torch: 24.6e9 at 299 px."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model, image = InceptionV4(), torch.empty(1, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    return float(counter.get_total_flops())


def _alone(group: Group, entry: Entry) -> tuple[int | None, int | None]:
    """`memory` and `tensors` of a contestant in a process of its own, beyond what torch itself takes."""
    # Ctrl-C is this process's to answer.
    ignoring = (signal.SIGINT, signal.SIG_IGN)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=signal.signal, initargs=ignoring) as pool:
        return pool.submit(_peak_of, replace(group, entries=(entry,))).result()


def _peak_of(group: Group) -> tuple[int | None, int | None]:
    accelerator = select("cpu")
    accelerator.activate()
    setup = Setup(accelerator, task=group.task, batch_size=group.batch_size, image_size=group.image_size)
    setup.network  # noqa: B018  the weights and pictures are everyone's
    before = accelerator.used_memory()
    entry = group.entries[0]
    form = FORMS[entry.form]

    def build_and_run() -> None:
        run = form.build(setup, entry.precision)
        for _ in range(2):  # the optimizer's state exists from the end of the first step on
            run()

    build_and_run()
    peak = accelerator.peak_memory()
    gc.collect()
    tensors = _peak_of_tensors(build_and_run) if form.torch else None
    setup.close()
    return None if before is None or peak is None else peak - before, tensors


def _peak_of_tensors(work: Callable[[], None]) -> int:
    """Most bytes that tensors on the CPU take at a time, counted by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory(prefix="inception-v4-benchmark-") as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return max((event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"), default=0)


def chosen(
    forms: Iterable[str], precisions: Iterable[str], *, task: str, peers: Iterable[str] | None = None
) -> tuple[Entry, ...]:
    """Every form in every precision that exists for the task; of other programs only `peers`, unless None."""
    wanted = None if peers is None else set(peers)
    return tuple(
        Entry(name, precision)
        for precision in precisions
        for name in forms
        if task in FORMS[name].tasks and precision in FORMS[name].precisions
        if not FORMS[name].peer or wanted is None or name.split()[0] in wanted
    )
