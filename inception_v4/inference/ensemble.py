"""One network or several, on one view of a picture or several: the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inception_v4.accelerator.precision import Precision
from inception_v4.data.views import ONE, Views
from inception_v4.distributed import World
from inception_v4.inference.engines import Opener, Wanted
from inception_v4.inference.network import OpenNetwork, accelerator_for, runtime_for
from inception_v4.preprocessing import Preprocessing, check_size
from inception_v4.weights import WeightsInfo
from inception_v4.weights.class_names import class_names_of
from inception_v4.weights.source import local_weights

_PER_NETWORK = ("mean", "std")
"""What is done to the same pixels for each network by itself."""


class Ready(NamedTuple):
    """What it takes from a batch of uint8 pictures, as `EvalLoader` gives it, to one row of outputs for each.

    Attributes:
        model: of prepared pictures; gives logits [B, K], or the logarithm of their mean probabilities.
        prepare: pictures for `model`.
        precision: where and in what type it computes.
        pictures: in a batch.
        preprocessing: how pictures become uint8.
        networks: their number.
        crop_pct_is_idle: it was given, and the views are not cut by it.
    """

    model: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor]
    precision: Precision
    pictures: int
    preprocessing: Preprocessing
    networks: int = 1
    crop_pct_is_idle: bool = False


@dataclass(frozen=True)
class FurtherNetwork:
    """A further network of an ensemble.

    Attributes:
        opener: what has opened it.
        columns: where its outputs have the classes of the first network; None: in the same places.
    """

    opener: Opener
    network: OpenNetwork
    columns: list[int] | None

    @property
    def opened(self) -> OpenNetwork:
        """With its outputs in the order of the first network's classes."""
        if self.columns is None:
            return self.network
        return replace(self.network, model=_reordered(self.network.model, self.columns))

    def for_many(self, pictures: int) -> FurtherNetwork:
        """In what is fastest for so many pictures."""
        return replace(self, network=self.opener.for_many(self.network, pictures))


def engines_of(networks: Sequence[OpenNetwork]) -> str:
    """What runs them, each kind once, for people."""
    return " and ".join(dict.fromkeys(network.engine for network in networks))


def open_others(
    sources: Sequence[str], given: dict[str, Any], *, beside: OpenNetwork, wanted: Wanted, world: World | None = None
) -> list[FurtherNetwork]:
    """The other networks of an ensemble.

    Args:
        sources: as `open_network` takes them.
        given: fields of `Preprocessing` that win over what the networks say.
        beside: the first network.
        wanted: as for the first, with the runtime that was given.
        world: all of its processes open the same.

    Raises:
        ValueError: other classes, other channels, pictures that are resized or cropped otherwise, another place to run.
    """
    others = []
    for source in map(local_weights, sources):
        chosen = runtime_for(source, wanted.runtime, cache=wanted.cache)
        accelerator = accelerator_for(chosen, wanted.device)
        if accelerator.device != beside.accelerator.device:
            raise ValueError(
                f"{source} runs on {accelerator.device} and the first network of the ensemble on "
                f"{beside.accelerator.device}: give --device cpu, or files of one kind"
            )
        opener = Opener(source, accelerator, replace(wanted, runtime=chosen), world=world or World())
        network = opener.open()
        if network.info.in_channels != beside.info.in_channels:
            raise ValueError(
                f"{source} takes {network.info.in_channels} channels and the first network of the ensemble "
                f"{beside.info.in_channels}: their pictures are not the same"
            )
        if network.info.multi_label != beside.info.multi_label:
            raise ValueError(
                f"{source} and the first network of the ensemble differ in whether a picture has one class or several: "
                "give weights of one kind"
            )
        _check_alike(source, network.info.preprocessing.replace(**given), beside.info.preprocessing.replace(**given))
        others.append(FurtherNetwork(opener, network, _columns(source, network.info, beside.info)))
    return others


def ready(
    networks: Sequence[OpenNetwork], given: dict[str, Any], views: Views = ONE, *, amp: str, batch_size: int
) -> Ready:
    """The mean of the probabilities of `networks` over `views`; what one network gives of one view is left as it is.

    Args:
        networks: of one device, channels and classes (`open_others`).
        given: fields of `Preprocessing` that win over what the networks say.
        amp: `off`, `bf16` or `fp16`.
        batch_size: views that go through a network at a time; a picture may have more.
    """
    preprocessings = [network.info.preprocessing.replace(**given) for network in networks]
    for network, own in zip(networks, preprocessings, strict=True):
        check_size(own.image_size, network.info.stem)
    how, precisions = preprocessings[0], [network.precision(amp) for network in networks]
    prepared = [network.prepare(own) for network, own in zip(networks, preprocessings, strict=True)]
    if len(networks) == len(views) == 1:
        return Ready(networks[0].model, prepared[0], precisions[0], batch_size, how)
    models = [
        _prepared(network.model, prepare, precision)
        for network, prepare, precision in zip(networks, prepared, precisions, strict=True)
    ]
    multi_label = networks[0].info.multi_label
    model = _mean(models, mirrored=views.mirrored, batch_size=batch_size, multi_label=multi_label)
    pictures, idle = max(1, batch_size // len(views)), views.crops > 1 and given.get("crop_pct") is not None
    # The networks may run in different engines, so that each has a precision of its own.
    return Ready(model, _as_they_are, Precision(networks[0].accelerator), pictures, how, len(networks), idle)


def _as_they_are(images: Tensor) -> Tensor:
    return images


def _prepared(
    model: Callable[[Tensor], Tensor], prepare: Callable[[Tensor], Tensor], precision: Precision
) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor) -> Tensor:
        with precision.autocast():
            return model(prepare(images))

    return run


def _mean(
    models: Sequence[Callable[[Tensor], Tensor]], *, mirrored: bool, batch_size: int, multi_label: bool
) -> Callable[[Tensor], Tensor]:
    """Pictures [B, C, S, S] or [B, V, C, S, S] uint8 to float32 [B, K], whose probabilities are the mean ones.

    That is their logarithm, or of several classes the logarithm of their odds.
    """

    def model(images: Tensor) -> Tensor:
        views = images if images.dim() == 5 else images[:, None]
        if mirrored:
            views = torch.cat([views, views.flip(-1)], dim=1)
        flat = views.flatten(0, 1)
        # Parts of one size, so that none is a rest that costs as much as a whole one.
        parts = flat.tensor_split(-(-len(flat) // batch_size))
        outputs = torch.stack([torch.cat([network(part).float() for part in parts]) for network in models], dim=1)
        each = outputs.unflatten(0, views.shape[:2]).flatten(1, 2)  # [B, views x networks, K]
        if multi_label:
            # From both ends: 1 minus a probability near 1 has no digits left.
            count = math.log(each.shape[1])
            yes, no = (F.logsigmoid(signed).logsumexp(1) - count for signed in (each, -each))
            return yes - no
        return each.log_softmax(-1).logsumexp(1) - math.log(each.shape[1])

    return model


def _check_alike(source: str, how: Preprocessing, first: Preprocessing) -> None:
    ours, theirs = how.to_dict(), first.to_dict()
    differing = [
        f"{name} {value} and {theirs[name]}"
        for name, value in ours.items()
        if name not in _PER_NETWORK and value != theirs[name]
    ]
    if differing:
        raise ValueError(
            f"the pictures of {source} and of the first network of the ensemble are prepared in different ways "
            f"({', '.join(differing)}), and an ensemble sees the same ones: give these settings"
        )


def _columns(source: str, info: WeightsInfo, first: WeightsInfo) -> list[int] | None:
    """Where the outputs of another network have the classes of the first; None: in the same places."""
    if info.num_classes != first.num_classes:
        raise ValueError(
            f"{source} has {info.num_classes} classes and the first network of the ensemble {first.num_classes}: "
            "give weights of the same classes"
        )
    names, own = class_names_of(first), class_names_of(info)
    if names is None or own is None or own == names:
        return None
    if sorted(own) != sorted(names) or len(set(own)) < len(own):
        differing = next(f"{a!r} and {b!r}" for a, b in zip(own, names, strict=True) if a != b)
        raise ValueError(
            f"{source} and the first network of the ensemble have different classes ({differing}): give weights of "
            "the same classes"
        )
    return [own.index(name) for name in names]


def _reordered(model: Callable[[Tensor], Tensor], columns: list[int]) -> Callable[[Tensor], Tensor]:
    return lambda images: model(images)[:, columns]
