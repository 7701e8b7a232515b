"""A run that goes on with another number of processes: no sample twice, none lost, and the documented learning rate."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import LIVELY, as_flags, final_state, run, tiny

from inception_v4.data.order import EpochSampler, Key
from inception_v4.distributed import World
from inception_v4.settings.schema import Data, Optimizer, Schedule
from inception_v4.training.checkpoint import CheckpointError
from inception_v4.training.job import position_of
from inception_v4.training.schedule import Course, LearningRate
from inception_v4.training.train import train


class Machines:
    """So many processes that read an epoch's samples together, as their loaders and the loop do."""

    def __init__(self, samples: int, data: Data, *, processes: int, accum_steps: int, repeats: int) -> None:
        worlds = [World(rank=rank, size=processes) for rank in range(processes)]
        self.samplers = [EpochSampler(samples, data, repeats, world=world, seed=3) for world in worlds]
        batch = self.samplers[0].batch
        self.course = Course(samples, batch, accum_steps, data.drop_last, epochs=2)

    def steps(self, epoch: int, done: int) -> Iterator[list[Key]]:
        """The samples of each optimizer step from this place on, of all processes."""
        course = self.course
        course.epoch, course.done = epoch, done
        if not course.rest:
            course.end_epoch()
        while course.epoch == epoch:
            for sampler in self.samplers:
                sampler.epoch, sampler.start = epoch, course.done
            streams = [list(itertools.islice(sampler, course.accum_steps)) for sampler in self.samplers]
            batches = len(streams[0])
            assert {len(stream) for stream in streams} == {batches}, "all processes make the same steps"
            course.advance(batches)
            yield [key for stream in streams for batch in stream for key in batch]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize("accum_steps", [1, 3])
@pytest.mark.parametrize("repeats", [0, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_no_sample_twice_and_none_lost(
    before: int, after: int, accum_steps: int, repeats: int, drop_last: bool
) -> None:
    """The multiset of an epoch's samples, for an interruption after each of its steps."""
    data = Data(batch_size=4, drop_last=drop_last)
    for samples in (48, 61, 86):
        how = {"accum_steps": accum_steps, "repeats": repeats}
        whole = Counter(tuple(key) for key in first_samples(samples, data, repeats))
        length = len(list(Machines(samples, data, processes=before, **how).steps(0, 0)))
        for stop in range(1, length):
            first = Machines(samples, data, processes=before, **how)
            seen = [key for step in itertools.islice(first.steps(0, 0), stop) for key in step]
            second = Machines(samples, data, processes=after, **how)
            seen += [key for step in second.steps(0, first.course.done) for key in step]
            assert second.course.epoch == 1 and second.course.done == 0
            counts = Counter(tuple(key) for key in seen)
            if drop_last:
                assert counts <= whole and max(counts.values()) == 1, "no sample twice"
                assert samples - len(seen) < 4 * after, "what is left out is less than a batch"
            else:
                # Only a last batch of fewer samples than processes is filled up.
                assert set(counts) == set(whole) and len(seen) - samples < after
                assert max(counts.values()) == 1 or len(seen) > samples


def first_samples(samples: int, data: Data, repeats: int) -> list[Key]:
    """Those of a whole epoch, by one process in batches of one."""
    one_by_one = data.model_copy(update={"batch_size": 1})
    return [key for (key,) in EpochSampler(samples, one_by_one, repeats, world=World(), seed=3)]


def test_a_position_in_steps_would_lose_samples() -> None:
    """The comparison above can fail: two steps by two processes are four batches of one process."""
    data = Data(batch_size=4, drop_last=False)
    first = Machines(48, data, processes=2, accum_steps=1, repeats=0)
    seen = [key for step in itertools.islice(first.steps(0, 0), 2) for key in step]
    second = Machines(48, data, processes=1, accum_steps=1, repeats=0)
    seen += [key for step in second.steps(0, 2 * second.course.batch) for key in step]
    assert Counter(map(tuple, seen)) != Counter(map(tuple, first_samples(48, data, 0)))


def test_the_course_counts_steps_as_long_as_nothing_changes() -> None:
    for samples, batch, accum_steps, drop_last in itertools.product((24, 25, 31), (4, 5), (1, 4), (True, False)):
        course = Course(samples, batch, accum_steps, drop_last, epochs=3, max_steps=40)
        planned, seen = course.total, []
        while not course.finished:
            assert course.moment == course.step and course.total == planned
            assert isinstance(course.moment, float) and course.rest > 0
            seen.append(course.epoch)
            before = samples - course.done
            batches = before // batch if drop_last else -(-before // batch)
            course.advance(min(batches, accum_steps))
        assert course.step == planned == len(seen) and (course.epoch == 3 or planned == 40)


def test_a_larger_batch_ends_an_epoch_that_has_no_whole_one_left() -> None:
    course = Course(24, 16, epochs=2, epoch=0, done=12, step=3)
    assert course.rest == 0 and course.total == 4 and not course.finished
    course.end_epoch()
    assert (course.epoch, course.done, course.rest, course.total) == (1, 0, 1, 4)


@pytest.mark.parametrize("base", [None, 8])
def test_the_learning_rate_follows_the_batch_only_where_lr_base_batch_says_so(base: int | None) -> None:
    """Half of the second epoch by two processes, then by one: the schedule goes on where it was."""
    opt, schedule = Optimizer(lr=0.1, lr_base_batch=base), Schedule(epochs=4, scheduler="cosine", warmup_epochs=1)
    two = Course(48, 8, epochs=4, epoch=1, done=24, step=9)
    one = Course(48, 4, epochs=4, epoch=1, done=24, step=9)
    assert (two.moment, one.moment) == (9, 18) and (two.per_epoch, one.per_epoch) == (6, 12)

    def rate(course: Course) -> float:
        peak = opt.peak_lr(course.batch)
        return LearningRate.from_settings(schedule, peak, course.per_epoch, base=opt.lr)(course.moment)

    assert rate(one) == pytest.approx(rate(two) * (0.5 if base else 1.0), rel=1e-12)
    uneven = Course(48, 20, epochs=4, epoch=1, done=24, step=9)  # between two steps of its own
    assert uneven.moment == 3.2
    assert 0.1 * (20 / base if base else 1) > rate(uneven) > 0


def test_earlier_formats_go_on_where_their_steps_still_mean_something() -> None:
    course = Course(24, 8, epochs=4)
    state = {"version": 2, "steps_per_epoch": 6, "step": 12}
    assert position_of(state, course) == (2, 0), "the end of an epoch is the same for all"
    with pytest.raises(CheckpointError, match="format 2, is 1 of 6 steps into an epoch, which has 3 here"):
        position_of(state | {"step": 13}, course)
    assert position_of(state | {"step": 13}, Course(24, 4, epochs=4)) == (2, 4)
    with pytest.raises(CheckpointError, match="epochs have 24 samples, this run's 30"):
        position_of({"version": 3, "position": {"epoch": 1, "done": 4, "samples": 24}}, Course(30, 4))


@pytest.mark.slow
def test_two_processes_go_on_from_one_and_one_from_two(finished_run: Path, tmp_path: Path) -> None:
    """From 8 of 24 samples into the second epoch: a step of 8 by two processes, then 8 by one in batches of 5."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(finished_run / "checkpoints" / "step-00000008.pt", folder / "checkpoints")
    flags = as_flags({"resume": "auto", "output_dir": str(folder), "max_steps": 9})
    run("train", "-c", str(finished_run / "config.yaml"), *flags, processes=2)
    assert final_state(folder)["position"] == {"epoch": 1, "done": 16, "samples": 24}
    train(tiny(folder, **LIVELY, resume="auto", batch_size=5))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [(r["step"], r["epoch"], r["progress"]) for r in records if r["kind"] == "train"]
    assert steps == [(9, 1, pytest.approx(1 + 16 / 24)), (10, 1, 2.0)]
    assert final_state(folder)["position"] == {"epoch": 2, "done": 0, "samples": 24}
