"""Which blocks of the network learn, and from when on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from inception_v4.network.model import InceptionV4
from inception_v4.settings.schema import Optimizer, frozen_blocks
from inception_v4.training.step import Learner


class AllLearn:
    """The off state."""

    def begin_epoch(self, learner: Learner, epoch: int) -> str | None: ...


@dataclass
class Frozen:
    """Blocks at the input that do not learn, or not before an epoch.

    Attributes:
        blocks: how many.
        thaw_at: the epoch, counted from 0, from which they learn; None: never.
        callable_form: what a step calls, made anew when other parameters learn (several processes share gradients of
            those that learned when it was made).
    """

    blocks: int
    thaw_at: int | None
    callable_form: Callable[[nn.Module], nn.Module]

    def begin_epoch(self, learner: Learner, epoch: int) -> str | None:
        """Before the first step of an epoch that a process takes; a line for people where something changes."""
        if self.thaw_at is None or epoch < self.thaw_at or not learner.model.frozen_blocks:
            return None
        assert isinstance(learner.model, InceptionV4)
        learner.model.freeze(0)
        learner.compute = self.callable_form(learner.model)
        return f"all blocks learn from epoch {epoch + 1} on"


def freeze_layers(
    network: nn.Module, settings: Optimizer, callable_form: Callable[[nn.Module], nn.Module]
) -> Frozen | AllLearn:
    """Freezes what the settings say; what to ask at the beginning of each epoch."""
    blocks = frozen_blocks(settings.freeze)
    if not blocks:
        return AllLearn()
    assert isinstance(network, InceptionV4)
    network.freeze(blocks)
    return Frozen(blocks, settings.unfreeze_at, callable_form)
