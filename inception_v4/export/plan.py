"""What is exported: the fused network with its ends, and the pictures that it is compared on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inception_v4.console import track
from inception_v4.data.labelled import Source
from inception_v4.data.normalise import Normalise
from inception_v4.data.pictures import Decoding, read_picture
from inception_v4.data.splits import balanced
from inception_v4.data.views import eval_transform
from inception_v4.export.quantization import draw_pictures
from inception_v4.export.target import ExportError, Target
from inception_v4.inference.network import Signature, as_pixels, export_description
from inception_v4.network.fusion import fuse
from inception_v4.network.model import InceptionV4
from inception_v4.storage.fetch import local_copy
from inception_v4.weights import WeightsInfo
from inception_v4.weights.record import probabilities_of


@dataclass
class Plan:
    """A network and what is to be written of it."""

    network: InceptionV4
    info: WeightsInfo
    signature: Signature
    target: Target
    messages: list[str] = field(default_factory=list)
    calibration: Tensor | None = None  # uint8 [N, C, S, S]
    compared: Tensor | None = None  # the same, of other pictures

    @property
    def size(self) -> int:
        return self.info.preprocessing.image_size

    def describe(self) -> str:
        return export_description(self.info, self.signature)

    def inputs(self, pictures: Tensor) -> Tensor:
        """uint8 [N, C, S, S] as the file takes them."""
        return (as_pixels if self.signature.preprocess else Normalise(self.info.preprocessing))(pictures)

    def module(self) -> Deployed:
        return Deployed(self.network, self.info, self.signature).eval()


class Deployed(nn.Module):
    """What is exported: the fused network, with normalisation before and probabilities behind it where asked for."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: InceptionV4, info: WeightsInfo, signature: Signature) -> None:
        super().__init__()
        self.network, self.signature, self.multi_label = fuse(network, join=False), signature, info.multi_label
        if signature.preprocess:
            self.register_buffer("mean", torch.tensor(info.preprocessing.mean).mul(255).view(1, -1, 1, 1))
            self.register_buffer("std", torch.tensor(info.preprocessing.std).mul(255).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        if self.signature.preprocess:
            image = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std
        maps = self.network.forward_features(image)
        # Not a mean, nor flattened: those become operators that differ between versions of ONNX.
        logits = self.network.get_classifier()(F.avg_pool2d(maps, maps.shape[-2:]).squeeze((2, 3)))
        return probabilities_of(logits, multi_label=self.multi_label) if self.signature.softmax else logits


CALIBRATION, COMPARED = 256, 64
"""Most pictures that ranges are taken from, as more change them little, and that an 8-bit file is compared on."""


def calibration_pictures(pictures: str | Source, info: WeightsInfo) -> tuple[Tensor, Tensor]:
    """Up to `CALIBRATION` pictures of all classes, and up to `COMPARED` others, uint8 [N, C, S, S].

    Args:
        pictures: a folder or its address, or labelled pictures.

    Raises:
        ExportError, CorruptImage: there are fewer than two, or one cannot be read.
    """
    resize, rotation = eval_transform(info.preprocessing), info.preprocessing.exif_rotation
    if isinstance(pictures, Source):
        drawn = np.random.default_rng(0).permutation(balanced(pictures.labels, CALIBRATION + COMPARED, 0)).tolist()
        compared = len(drawn) * COMPARED // (CALIBRATION + COMPARED) or len(drawn) // 2
        others, ranges = drawn[:compared], drawn[compared:]
        load: Callable[[Any], Tensor] = partial(pictures.load, exif_rotation=rotation)
    else:
        ranges, others = draw_pictures(Path(local_copy(pictures)), ranges=CALIBRATION, compared=COMPARED)
        load = partial(read_picture, how=Decoding(rotation))
    if not others:
        raise ExportError(f"--int8 {pictures} holds no pictures, or one: give some hundred like those to come")
    read = [resize(load(picture)) for picture in track([*ranges, *others], "reading pictures")]
    return torch.stack(read[: len(ranges)]), torch.stack(read[len(ranges) :])
