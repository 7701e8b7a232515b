"""When a run ends early, which weights are its best, and which learning rate a range test proposes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from running import differing, final_state, tiny

from inception_v4.accelerator import select
from inception_v4.data.sizes import ImageSizes
from inception_v4.distributed import World
from inception_v4.settings.recipes import ConfigError, build_config
from inception_v4.settings.schema import Schedule
from inception_v4.storage.lock import FolderLock
from inception_v4.training.range_test import find_rate, of_first_epoch, propose, smooth
from inception_v4.training.stopping import EarlyEnd
from inception_v4.training.train import prepare, train

SMALL = {"shapes_train": 8, "shapes_val": 4}


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28800), ("1h30m", 5400), ("90m", 5400), ("1.5d", 129600), ("45s", 45), ("20", 20)]
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert build_config({"max_time": text}).schedule.max_time == seconds


@pytest.mark.parametrize("text", ["8 hours", "h", "0s", "-1h"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="max_time="):
        build_config({"max_time": text})


def test_a_lower_loss_and_a_higher_accuracy_are_better() -> None:
    worse, better = {"top1": 50.0, "loss": 2.0}, {"top1": 40.0, "loss": 1.0}
    assert EarlyEnd("loss").score(better) > EarlyEnd("loss").score(worse)
    assert EarlyEnd("top1").score(better) < EarlyEnd("top1").score(worse)
    assert EarlyEnd("loss").score({"loss": math.nan}) == EarlyEnd("loss").score({}) == -math.inf
    assert EarlyEnd.of(Schedule(monitor="f1")).score({"macro_f1": 30.0, "top1": 90.0}) == 30.0


@pytest.mark.slow
def test_patience_ends_a_run_that_no_longer_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All weights and statistics are frozen but for the classifier's, which a rate of 1e-30 does not move."""
    still = {**SMALL, "shapes_train": 4, "freeze": "backbone", "lr": 1e-30, "epochs": 4, "drop_rate": 0.0}
    summary = train(tiny(tmp_path / "run", **still, patience=2))
    assert summary["steps"] == 3 and summary["best"]["epoch"] == 0, "the first epoch and two that were no better"
    assert "top1 was not better for 2 validations in a row (patience 2)" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.safetensors").is_file() and final_state(tmp_path / "run")["waited"] == 2
    again = train(tiny(tmp_path / "run", **still, patience=2, resume="auto"))
    assert again["steps"] == 3, "it was over"
    assert train(tiny(tmp_path / "run", **still, patience=3, resume="auto"))["steps"] == 4


@pytest.mark.slow
def test_time_ends_a_run_with_its_weights_and_it_goes_on_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SMALL, "freeze": "reduction_b", "epochs": 1}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tiny(whole, **settings))
    summary = train(tiny(parts, **settings, max_time="0.001s"))
    assert summary["steps"] == 1 and (parts / "best.safetensors").is_file()
    assert "ended early: max_time was reached at step 1" in capsys.readouterr().err
    records = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert [r["progress"] for r in records if r["kind"] == "val"] == [0.5]
    assert train(tiny(parts, **settings, resume="auto", max_time="1d"))["steps"] == 2
    names = ("model", "optimizer", "step")
    assert differing({n: final_state(whole)[n] for n in names}, {n: final_state(parts)[n] for n in names}) == []


def test_the_best_weights_are_those_of_the_monitored_figure(tmp_path: Path) -> None:
    loop = prepare(tiny(tmp_path, **SMALL, monitor="loss"), select("cpu"), World(), FolderLock(print))
    figures = iter([(50.0, 2.0), (40.0, 1.0), (60.0, 3.0)])

    class Measured:
        """Figures of a validation, as they come."""

        skipped: tuple[str, ...] = ()
        several: None = None

        def __init__(self) -> None:
            self.top1, self.loss = next(figures)
            self.top5 = 100.0

        def record(self, prefix: str = "") -> dict[str, float]:
            return {f"{prefix}top1": self.top1, f"{prefix}top5": 100.0, f"{prefix}loss": self.loss, "samples": 4}

    class Measuring:
        loader = SimpleNamespace(source=None)

        def __call__(self, network: torch.nn.Module, goes_on: Callable[[], bool]) -> Measured:
            return Measured()

    loop.validator, loop._write = Measuring(), lambda work: ""  # figures, and no files
    for epoch in range(3):
        loop.job.learner.course.epoch, loop.job.learner.course.step = epoch + 1, 2 * epoch + 2
        loop._validate(epoch)
    loop.log.close()
    assert loop.job.best["loss"] == 1.0 and loop.job.best["epoch"] == 1 and loop.job.waited == 1


def test_the_steepest_fall_is_proposed_and_no_fall_is_an_error() -> None:
    rates = [10.0 ** (-6 + i / 10) for i in range(61)]
    losses = [2.0 - 1.5 / (1 + math.exp(-(i - 35) / 3)) + (max(0, i - 48) ** 2) / 20 for i in range(61)]
    assert propose(rates, losses) == pytest.approx(rates[35])
    with pytest.raises(ValueError, match="the loss fell at no learning rate"):
        propose(rates, sorted(losses))
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0] * 3) and len(smooth([1.0, math.nan, 1.0])) == 1


def test_a_range_test_has_the_first_of_growing_sizes_throughout() -> None:
    config = of_first_epoch(build_config({"image_size": "75-139", "epochs": 4, "start_epoch": 2}))
    sizes = ImageSizes.of(config.augmentation, config.schedule.epochs)
    assert config.schedule.start_epoch == 0 and {sizes(epoch) for epoch in range(9)} == {107}, "of epoch 2"
    one = of_first_epoch(build_config({"image_size": 107}))
    assert one.augmentation.image_size == 107 and one.augmentation.first_image_size is None


@pytest.mark.slow
def test_a_range_test_leaves_a_curve_and_the_runs_directory_free(tmp_path: Path) -> None:
    run = tiny(tmp_path / "run", **SMALL, freeze="backbone", lr_base_batch=32, start_epoch=1, drop_rate=0.0)
    result = find_rate(run, 40)
    assert not (tmp_path / "run").exists() and result["output_dir"].startswith(f"{tmp_path / 'run'}-lr-find-")
    assert (Path(result["output_dir"]) / "lr_find.png").read_bytes().startswith(b"\x89PNG")
    assert result["rates"][0] == 1e-6 and result["lr"] in result["rates"][1:-1], "as a step used it, for these batches"
    assert json.loads((Path(result["output_dir"]) / "lr_find.json").read_text()) == result
