"""The mean of several sets of weights of one network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from inception_v4.weights.names import preview
from inception_v4.weights.record import State, Weights, WeightsError

_SAME = ("num_classes", "in_channels", "bn_eps", "stem", "preprocessing")
_OF_ONE = ("top1", "top5", "step")
"""What a file says of its own numbers, which are not those of a mean."""


@dataclass(frozen=True)
class WeightsSum:
    """Added weights, in float64: their mean is timm's (`avg_checkpoints.py`), rounded once to float32.

    BatchNorm statistics are averaged like everything else; integers (how many batches they are of) are the largest.

    Attributes:
        first: the weights that say what the mean is of.
        state: sums.
        names: of the weights added, for people.
    """

    first: Weights
    state: State
    names: tuple[str, ...]

    @classmethod
    def of(cls, weights: Weights, name: str) -> WeightsSum:
        """The sum of one."""
        return cls(weights, {k: v.double() if v.is_floating_point() else v for k, v in weights.state.items()}, (name,))

    def plus(self, weights: Weights, name: str) -> WeightsSum:
        """With one more; this sum stays what it is.

        Raises:
            WeightsError: it is of another network, or wants other pictures.
        """
        _check_alike(self, weights, name)
        state = {
            k: total + weights.state[k] if total.is_floating_point() else torch.maximum(total, weights.state[k])
            for k, total in self.state.items()
        }
        return replace(self, state=state, names=(*self.names, name))

    def mean(self) -> Weights:
        """Float32, without what the files said of their own accuracy; `averaged` names them."""
        count, limit = len(self.names), torch.finfo(torch.float32).max
        state = {
            k: (total / count).clamp(-limit, limit).float() if total.is_floating_point() else total
            for k, total in self.state.items()
        }
        info = self.first.info
        extra = {k: v for k, v in info.extra.items() if k not in _OF_ONE} | {"averaged": count}
        return Weights(state, info.replace(extra=extra), tensors=len(state), described=self.first.described)


def _check_alike(total: WeightsSum, weights: Weights, name: str) -> None:
    ours, theirs = total.first.info, weights.info
    differing = [f"{what} {getattr(theirs, what)} and {getattr(ours, what)}" for what in _SAME
                 if getattr(ours, what) != getattr(theirs, what)]  # fmt: skip
    if None not in (ours.class_names, theirs.class_names) and ours.class_names != theirs.class_names:
        differing.append("other class names, or another order of them")
    wrong = [k for k, v in weights.state.items() if v.shape != total.state[k].shape]
    if wrong:
        differing.append(f"other shapes: {preview(wrong)}")
    if differing:
        raise WeightsError(
            f"{name} and {total.names[0]} are not of one network ({'; '.join(differing)}): a mean of weights is of use "
            "for runs that started from the same ones; validate them as an ensemble instead"
        )
