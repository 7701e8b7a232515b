"""Small pictures with their heat, as they stand in a page."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from inception_v4.console import track
from inception_v4.data.pictures import CorruptImage
from inception_v4.data.sources import Source, open_source
from inception_v4.distributed import World
from inception_v4.inference.predict import Predictor
from inception_v4.pages.heat import grad_cam
from inception_v4.pages.overlays import as_picture, overlay
from inception_v4.pages.run_record import RunRecord

_SIDE = 150
_QUALITY = 80


@dataclass(frozen=True)
class Thumbnail:
    """A picture, and the heat of the answer on it, as data addresses; without them the picture could not be read."""

    name: str
    answer: str
    label: str
    confidence: float
    picture: str = ""
    heat: str = ""


class Thumbnails:
    """Makes the thumbnails of one run. Without its weights or its pictures they have captions alone."""

    def __init__(self, run: RunRecord, device: str) -> None:
        assert run.answers is not None
        self._run, self._answers = run, run.answers
        self._predictor = Predictor(str(run.weights), device=device, cache=False) if run.weights.is_file() else None
        self._source: Source | None = None
        self._numbers: dict[str, int] = {}

    def of(self, numbers: Sequence[int]) -> list[Thumbnail]:
        return [self._one(number) for number in track(numbers, "overlays")]

    def _one(self, number: int) -> Thumbnail:
        answers, path = self._answers, self._answers.paths[number]
        answer = int(answers.predicted[number])
        caption = Thumbnail(
            path, answers.classes[answer], answers.classes[answers.labels[number]], 100 * answers.confidence[number]
        )
        if self._predictor is None:
            return caption
        try:
            crop = self._predictor.crop(path if os.path.isfile(path) else self._from_memory(path))
        except (CorruptImage, OSError, ValueError, KeyError):
            return caption
        (heat,) = grad_cam(self._predictor.model, self._predictor.network_input(crop[None]), [answer])
        return Thumbnail(
            **{**vars(caption), "picture": as_address(as_picture(crop, _SIDE)),
               "heat": as_address(overlay(crop, heat, _SIDE))}
        )  # fmt: skip

    def _from_memory(self, name: str) -> Tensor:
        """A picture of data that lies in no files of its own."""
        if self._source is None:
            config = self._run.config
            self._source = open_source(config.data, "val", world=World(), seed=config.run.seed, alone=True)
            self._numbers = {self._source.name(index): index for index in range(len(self._source))}
        return self._source.load(self._numbers[name])


def as_address(image: Image.Image) -> str:
    """A JPEG inside a page."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
