"""The network together with its weights and what they say about themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inception_v4.network.model import InceptionV4
from inception_v4.weights import Weights, WeightsInfo, load_weights, read_weights
from inception_v4.weights.source import PRETRAINED, Located


@dataclass
class Opened:
    """A network with weights, what they say about their use, and messages about what was adapted."""

    model: InceptionV4
    info: WeightsInfo
    messages: list[str]


def create_model(
    num_classes: int | None = None,
    *,
    pretrained: bool = False,
    ckpt_path: str | None = None,
    **options: Any,
) -> InceptionV4:
    """An Inception-v4, with weights when asked.

    Args:
        num_classes: size of the head; 0 gives embeddings [B, 1536]. Default: that of the weights, or 1000.
        pretrained: load the published ImageNet weights. Another `num_classes` gets a new head.
        ckpt_path: load a weights file or run directory instead.
        options: of `InceptionV4` (in_channels, drop_rate, init, bn_eps, bn_momentum, ...). The stem is that of the
            weights unless it is given.
    """
    if pretrained and ckpt_path:
        raise ValueError(f"pretrained and ckpt_path {ckpt_path!r} exclude each other: give one of them")
    source = PRETRAINED if pretrained else ckpt_path
    if source is None:
        return InceptionV4(1000 if num_classes is None else num_classes, **options)
    weights = read_weights(source)
    model = InceptionV4(
        weights.info.num_classes if num_classes is None else num_classes, **{"stem": weights.info.stem} | options
    )
    load_weights(model, weights.with_stem(model.stem))
    return model


def open_model(source: str | Located | Weights, *, num_classes: int | None = None, drop_rate: float = 0.0) -> Opened:
    """The network that a weights file was made for, loaded, in evaluation mode.

    Args:
        source: a weights file, a run directory, a hub name, or `pretrained`; what `locate` made of it;
            or weights that were read.
        num_classes: must equal the file's when given: a new head would only guess.
    """
    weights = source if isinstance(source, Weights) else read_weights(source)
    info = weights.info
    # TensorFlow's class 0, "background", is nobody's label: 1001 outputs become ImageNet's 1000 unless asked for.
    wanted = num_classes or (1000 if info.may_have_background else info.num_classes)
    if wanted != info.num_classes and not (wanted == 1000 and info.may_have_background):
        named = source if isinstance(source, str) else source.origin if isinstance(source, Located) else info.source
        raise ValueError(f"{named} has {info.num_classes} classes, not {wanted}: leave num_classes out")
    model = InceptionV4(wanted, info.in_channels, drop_rate, bn_eps=info.bn_eps, stem=info.stem)
    report = load_weights(model, weights, head="load")
    return Opened(model.eval(), report.info, report.messages)
