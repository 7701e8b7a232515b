"""What is known about a set of weights besides the numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from inception_v4.preprocessing import STEMS, Preprocessing, check_size

BACKGROUND = "background"
"""Name of class 0 in 1001-class weights: TensorFlow counts ImageNet's classes from 1."""


METADATA_KEY = "inception_v4"
"""Of the description, JSON, among a file's own metadata."""

State = dict[str, Tensor]
"""Tensors by name."""

DAMAGED = "truncated or damaged: copy or download it again"


class WeightsError(ValueError):
    """Weights that cannot be used; one line that names the file, the value and the remedy."""


@dataclass(frozen=True)
class WeightsInfo:
    """How to use a set of weights; it travels with them, as JSON.

    Attributes:
        num_classes: rows of the classifier.
        class_names: in the order of the rows, or None where they are unknown.
        preprocessing: what a picture goes through before the network.
        in_channels: of the first convolution.
        bn_eps: BatchNorm epsilon that the statistics belong to.
        stem: how the network begins, one of `STEMS`. Other programs know the standard one alone.
        class_order: how the class folders were sorted to number them, `text` (1, 10, 2) or `natural` (1, 2, 10). It
            decides where no names do.
        multi_label: whether a picture may have several classes: the sigmoid of an output is its class's probability.
            Else the softmax of all of them is.
        source: where the numbers come from, for people.
        extra: anything else that JSON can hold (accuracy, recipe, epoch, ...).
    """

    num_classes: int = 1000
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    in_channels: int = 3
    bn_eps: float = 1e-3
    stem: str = "standard"
    class_order: str = "text"
    multi_label: bool = False
    source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(_in_utf8(str(name)) for name in self.class_names))
            if len(self.class_names) != self.num_classes:
                raise WeightsError(
                    f"{len(self.class_names)} class names for {self.num_classes} classes: give one per class, or none"
                )
        if self.class_order not in ("text", "natural"):
            raise WeightsError(f"class_order {self.class_order!r} is not one of text, natural")
        if not isinstance(self.multi_label, bool):
            raise WeightsError(f"multi_label {self.multi_label!r} is not true or false")
        if self.stem not in STEMS:
            raise WeightsError(f"stem {self.stem!r} is not one of {', '.join(STEMS)}")
        try:
            check_size(self.preprocessing.image_size, self.stem)
        except ValueError as error:
            raise WeightsError(str(error)) from None

    def replace(self, **changes: Any) -> WeightsInfo:
        """A copy with the given fields changed."""
        return replace(self, **changes)

    def with_head(self, num_classes: int) -> WeightsInfo:
        """For a classifier of `num_classes`; names survive only where their number still fits."""
        if num_classes == self.num_classes:
            return self
        return replace(self, num_classes=num_classes, class_names=None, multi_label=False)

    def with_channels(self, in_channels: int) -> WeightsInfo:
        """For `in_channels` input channels; mean and std are repeated, or averaged for a single channel."""
        if in_channels == self.in_channels:
            return self
        old = self.preprocessing
        changed = old.replace(mean=_spread(old.mean, in_channels), std=_spread(old.std, in_channels))
        return replace(self, in_channels=in_channels, preprocessing=changed)

    def with_stem(self, stem: str) -> WeightsInfo:
        """For a network that begins otherwise; pictures stay large enough for it."""
        size = max(self.preprocessing.image_size, STEMS[stem].smallest)
        return replace(self, stem=stem, preprocessing=self.preprocessing.replace(image_size=size))

    def without_background(self) -> WeightsInfo:
        """After class 0 of a 1001-class head was dropped."""
        names = None if self.class_names is None else self.class_names[1:]
        return replace(self, num_classes=self.num_classes - 1, class_names=names)

    @property
    def may_have_background(self) -> bool:
        """True for 1001 classes whose first is TensorFlow's background, as far as the names tell."""
        return self.num_classes == 1001 and (self.class_names is None or self.class_names[0].lower() == BACKGROUND)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        return {
            "num_classes": self.num_classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "preprocessing": self.preprocessing.to_dict(),
            "in_channels": self.in_channels,
            "bn_eps": self.bn_eps,
            "class_order": self.class_order,
            **({"multi_label": True} if self.multi_label else {}),
            **({"stem": self.stem} if self.stem != "standard" else {}),
            "source": self.source,
            "extra": self.extra,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WeightsInfo:
        """The record from JSON; unknown keys are ignored so that newer files stay readable.

        Raises:
            WeightsError: a field has a value that cannot be meant.
        """
        try:
            known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__ and v is not None}
            known["preprocessing"] = Preprocessing.from_dict(known.get("preprocessing", {}))
            return cls(**known)
        except (TypeError, ValueError, AttributeError) as error:
            raise WeightsError(f"the description of the weights is not usable ({error})") from error

    def to_json(self) -> str:
        """One line of JSON, keys in a fixed order."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


@dataclass
class Weights:
    """Parameters under the canonical names (timm's), and where they came from.

    Attributes:
        state: 896 tensors on the CPU; they may be views of the file, so do not change them in place.
        info: how to use them.
        layout: the row of `LAYOUTS` that the file follows.
        dropped: lines for people: what the file held and was not taken.
        notes: lines for people: what was changed on the way in.
        training: optimizer state as it was found, in PyTorch's form; empty where there is none.
        tensors: how many tensors of the file these are.
        described: whether the preprocessing came with the file; otherwise it is the usual one of the layout.
    """

    state: dict[str, Tensor]
    info: WeightsInfo
    layout: str = "torch"
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    tensors: int = 0
    described: bool = True

    @property
    def parameters(self) -> int:
        """Trainable numbers: 42,679,816 for 1000 classes and 3 channels."""
        return sum(tensor.numel() for name, tensor in self.state.items() if name.endswith(("weight", "bias")))

    def with_stem(self, stem: str) -> Weights:
        """For a network that begins otherwise: the same numbers."""
        return replace(self, info=self.info.with_stem(stem))

    def drop_background(self) -> Weights:
        """Without class 0 of TensorFlow's 1001 classes."""
        state = dict(self.state)
        for name in ("last_linear.weight", "last_linear.bias"):
            state[name] = state[name][1:]
        line = "class 0 (background) of 1001: dropped, the other 1000 classes move up by one"
        return replace(self, state=state, info=self.info.without_background(), dropped=[*self.dropped, line])


@dataclass
class Raw:
    """The content of one file, still under its own names.

    Attributes:
        state: parameters; ema: their moving average, where the file has one.
        prefers_ema: whether the average is what the files of this kind are meant to be used with.
        info: our own description, where the file has one.
        training: optimizer state in the file's own form, by entry.
        extras: name -> short description of everything else.
    """

    state: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    prefers_ema: bool = False
    info: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)


def probabilities_of(logits: Tensor, *, multi_label: bool) -> Tensor:
    """Probabilities [B, K] of outputs [B, K]: of each class by itself, or of one among all."""
    return logits.sigmoid() if multi_label else logits.softmax(1)


def _in_utf8(name: str) -> str:
    """`name`, which is a folder's in most cases; JSON, and with it every file of weights, holds no other bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise WeightsError(
            f"class name {shown} is not UTF-8: rename its folder, as with convmv -f latin1 -t utf-8 --notest FOLDER"
        ) from None
    return name


def _spread(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    """`values` per channel for another number of channels."""
    if count == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(count))
