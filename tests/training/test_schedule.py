"""Learning rates against closed forms written independently of the implementation."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest

from inception_v4.settings.recipes import load_config
from inception_v4.settings.schema import Schedule
from inception_v4.training.schedule import LearningRate


def test_cosine_is_mindcvs_step_for_step() -> None:
    steps, warm, epochs, lr, low = 7, 5, 20, 0.045, 1e-4
    rate = LearningRate("cosine", lr, steps, epochs, warmup_epochs=warm, min_lr=low)
    expected = [lr * i / (warm * steps) for i in range(warm * steps)]
    decay = (epochs - warm) * steps
    expected += [low + 0.5 * (lr - low) * (1 + math.cos(math.pi * t / decay)) for t in range(decay)]
    assert [rate(s) for s in range(epochs * steps)] == pytest.approx(expected, abs=1e-17, rel=1e-14)
    assert rate(0) == 0.0, "MindCV's first step has no learning rate at all"
    assert rate(warm * steps - 1) < lr == rate(warm * steps)
    assert rate(epochs * steps - 1) > low


def test_modelzoo_cosine_reaches_its_peak_at_the_end_of_warmup() -> None:
    steps, epochs = 5, 4
    rate = LearningRate("cosine_modelzoo", 0.4, steps, epochs, warmup_epochs=1, warmup_lr=4e-5, min_lr=4e-6)
    expected = [4e-5 + (0.4 - 4e-5) * (i + 1) / steps for i in range(steps)]
    rest = (epochs - 1) * steps
    expected += [4e-6 + 0.5 * (0.4 - 4e-6) * (1 + math.cos(math.pi * t / rest)) for t in range(rest)]
    assert [rate(s) for s in range(epochs * steps)] == pytest.approx(expected, rel=1e-14)
    assert rate(steps - 1) == 0.4


def test_paper_multiplies_by_094_every_two_epochs() -> None:
    rate = LearningRate("exponential", 0.045, 10, 8, decay_rate=0.94, decay_epochs=2, stair=True)
    assert [rate(s) for s in (0, 19, 20, 39, 40, 79)] == pytest.approx(
        [0.045, 0.045, 0.045 * 0.94, 0.045 * 0.94, 0.045 * 0.94**2, 0.045 * 0.94**3]
    )
    smooth = LearningRate("exponential", 0.045, 10, 8, decay_rate=0.94, decay_epochs=2)
    assert smooth(10) == pytest.approx(0.045 * 0.94**0.5)


def test_the_papers_recipe_rises_from_its_second_step_on_and_then_falls_every_two_epochs() -> None:
    config, _ = load_config("imagenet_rmsprop", {"data_dir": "imagenet"})
    rate = LearningRate.from_settings(config.schedule, 0.045, 10, base=config.optimizer.lr)
    assert [rate(s) for s in range(21)] == pytest.approx([0.045 * s / 20 for s in range(21)])
    assert [rate(s) for s in (39, 40, 59, 60)] == pytest.approx([0.045 * 0.94**n for n in (0, 1, 1, 2)])


def test_milestones_count_after_warmup() -> None:
    rate = LearningRate("multi_step", 1.0, 4, 12, warmup_epochs=2, decay_rate=0.1, milestones=(3, 6))
    by_epoch = [rate(4 * e) for e in range(12)]
    assert by_epoch[2:] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])


def test_step_holds_for_whole_periods_and_constant_for_ever() -> None:
    rate = LearningRate("step", 1.0, 3, 9, decay_rate=0.5, decay_epochs=2)
    assert [rate(s) for s in range(12)] == [1.0] * 6 + [0.5] * 6
    assert LearningRate("constant", 0.3, 3, 9)(26) == 0.3


def test_cosine_shorter_and_longer_than_the_run() -> None:
    short = LearningRate("cosine", 1.0, 2, 10, warmup_epochs=1, min_lr=0.01, decay_epochs=3)
    assert short(2 + 6) == 0.01 and short(19) == 0.01
    cut = LearningRate("cosine", 1.0, 2, 4, decay_epochs=8)
    assert cut(7) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 16)))


def test_stair_changes_between_epochs_only() -> None:
    rate = LearningRate("cosine", 1.0, 5, 4, warmup_epochs=2, stair=True)
    values = [rate(s) for s in range(20)]
    assert values[:10] == [0.0] * 5 + [0.5] * 5
    assert all(len(set(values[e * 5 : e * 5 + 5])) == 1 for e in range(4))
    assert values[10] > values[15]


@pytest.mark.parametrize("kind", get_args(Schedule.model_fields["scheduler"].annotation))
def test_every_length_of_run_has_a_rate_at_every_step(kind: str) -> None:
    for steps, epochs, cycles, period in itertools.product((1, 3), (1, 2, 7), (1, 2, 8, 50), (None, 0.1, 2)):
        how = {"decay_epochs": period, "num_cycles": cycles, "cycle_decay": 0.5, "milestones": (1,)}
        rate = LearningRate(kind, 0.5, steps, epochs, **how)
        rates = [rate(step) for step in range(steps * epochs)]
        assert all(0 <= r <= 0.5 for r in rates), (steps, epochs, cycles, period, rates)


def test_more_cycles_than_steps_start_one_at_every_step() -> None:
    rate = LearningRate("cosine", 1.0, 3, 1, num_cycles=10, cycle_decay=0.5)
    assert [rate(step) for step in range(3)] == [1.0, 0.5, 0.25]
