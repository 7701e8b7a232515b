"""When a run is validated, when it ends before its planned steps, and which figure says that weights are better."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from inception_v4.settings.schema import Run, Schedule

FIGURES = {"f1": "macro_f1"}
"""What a record calls a figure that `monitor` has a shorter word for."""


@dataclass
class EarlyEnd:
    """Watches the figures of validations and the clock.

    Attributes:
        figure: of a validation's record; a loss is better when lower, every other figure when higher.
        patience: validations in a row that may pass without a better figure; None: any number.
        seconds: from `started` on, after which no further step is begun; None: no limit.
        reason: why the run ends now; empty while it goes on.
    """

    figure: str = "top1"
    patience: int | None = None
    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    reason: str = ""
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @classmethod
    def of(cls, schedule: Schedule) -> EarlyEnd:
        return cls(FIGURES.get(schedule.monitor, schedule.monitor), schedule.patience, schedule.max_time)

    def score(self, record: Mapping[str, Any]) -> float:
        """A number that is higher for better weights; of no validation, or of a figure that is no number, the least."""
        value = record.get(self.figure)
        if value is None or math.isnan(value):
            return -math.inf
        return -float(value) if self.figure == "loss" else float(value)

    def out_of_time(self) -> bool:
        """Whether this process's time is over; one process's clock decides for all."""
        return self.seconds is not None and self.clock() - self.started >= self.seconds

    def stop_for_time(self, step: int) -> None:
        self.reason = f"max_time was reached at step {step}"

    def count(self, waited: int) -> None:
        """After so many validations in a row without a better figure."""
        if self.patience is not None and waited >= self.patience:
            self.reason = f"{self.figure} was not better for {waited} validations in a row (patience {self.patience})"


def is_validated(run: Run, epoch: int) -> bool:
    """Whether an epoch (from 0) is one of those that val_start and val_interval choose."""
    since = epoch + 1 - (run.val_start or run.val_interval)
    return since >= 0 and since % run.val_interval == 0
