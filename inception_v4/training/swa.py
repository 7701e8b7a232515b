"""Stochastic weight averaging: the uniform mean of the weights at the ends of a run's last epochs.

Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization".
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inception_v4.accelerator.precision import Precision
from inception_v4.data.normalise import Normalise
from inception_v4.distributed import World
from inception_v4.settings.schema import Schedule
from inception_v4.training.batch_statistics import recompute_statistics
from inception_v4.training.checkpoint import CheckpointError


@dataclass
class WeightMean:
    """The mean so far; nothing is kept before the first of the epochs.

    Attributes:
        first: the first epoch whose end counts, from 0.
        module: the averaged network, of which BatchNorm's statistics are nobody's before `ready`; None: no epoch yet.
        count: epochs in it.
        ready: whether the statistics are of these weights.
    """

    first: int
    module: nn.Module | None = None
    count: int = 0
    ready: bool = False

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The averaged network, once it can be validated, by the prefix of its figures in a record."""
        return {"swa_": self.module} if self.module is not None and self.ready else {}

    @torch.no_grad()
    def end_epoch(self, model: nn.Module, epoch: int) -> None:
        """Takes in the weights at the end of `epoch`, as `torch.optim.swa_utils.AveragedModel` does."""
        if epoch < self.first:
            return
        if self.module is None:
            self.module = copy.deepcopy(model).eval()
        ours: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(model.parameters())
        self.count, self.ready = self.count + 1, False
        torch._foreach_lerp_(ours, theirs, 1 / self.count)

    def finish(
        self, model: nn.Module, batches: Iterable[Any], *, normalise: Normalise, precision: Precision, world: World
    ) -> str | None:
        """BatchNorm's statistics anew from `batches`; a line for people, None where there is no average.

        Those of blocks that do not learn in `model`, the run's network, stay.
        """
        if self.module is None:
            return None
        # The copy may be from before its blocks learnt.
        for ours, theirs in zip(self.module.parameters(), model.parameters(), strict=True):
            ours.requires_grad_(theirs.requires_grad)
        recompute_statistics(self.module, batches, normalise=normalise, precision=precision, world=world)
        self.ready = True
        return f"the mean of the weights after the last {self.count} epochs has BatchNorm statistics of its own"

    def state_dict(self) -> dict[str, Any] | None:
        return None if self.module is None else {"count": self.count, "model": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None, model: nn.Module, *, epoch: int) -> None:
        """Go on with `state`, of a run that has done `epoch` epochs; `model` is its network.

        Raises:
            CheckpointError: it is the mean of other epochs.
        """
        expected = max(epoch - self.first, 0)
        if not expected:
            return
        found = state["count"] if state else 0
        if state is None or found != expected:
            raise CheckpointError(
                f"the checkpoint has the mean of {found} epochs' weights, this run would have one of {expected}: "
                "resume with the same swa_epochs and epochs, or with swa_epochs 0"
            )
        self.module = copy.deepcopy(model).eval()
        self.module.load_state_dict(state["model"])
        self.count = found


class NoWeightMean:
    """The off state."""

    count = 0

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {}

    def end_epoch(self, model: nn.Module, epoch: int) -> None: ...

    def finish(self, model: nn.Module, batches: Iterable[Any], **how: Any) -> str | None: ...

    def state_dict(self) -> dict[str, Any] | None: ...

    def load_state_dict(self, state: Any, model: nn.Module, *, epoch: int) -> None: ...


def weight_mean(swa_epochs: int, schedule: Schedule) -> WeightMean | NoWeightMean:
    """Of the last `swa_epochs` of the schedule's epochs, or the off state."""
    first = max(schedule.epochs - swa_epochs, schedule.start_epoch)
    return WeightMean(first) if swa_epochs else NoWeightMean()
