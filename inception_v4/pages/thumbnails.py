"""Small pictures with their heat, as they stand in a page."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from inception_v4.console import track
from inception_v4.data.pictures import CorruptImage
from inception_v4.data.sources import Source, open_source
from inception_v4.distributed import World
from inception_v4.inference.predict import Predictor
from inception_v4.inference.predictions import Predictions
from inception_v4.pages.heat import grad_cam
from inception_v4.pages.overlays import as_picture, overlay
from inception_v4.pages.run_record import RunRecord

_PARTS = 3  # of a path: split, class and file
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

    @property
    def short_name(self) -> str:
        """Of a file the last folders, which tell pictures apart: whole paths would fill a page."""
        parts = Path(self.name).parts
        return self.name if len(parts) <= _PARTS else "/".join(("…", *parts[-_PARTS:]))


class RunPictures:
    """The validation pictures of a run, by the names that its answers have for them."""

    def __init__(self, run: RunRecord) -> None:
        self._run = run
        self._source: Source | None = None
        self._numbers: dict[str, int] = {}

    def find(self, name: str) -> str | Tensor:
        """The file, or the picture itself, [3, H, W] uint8, where the data lies in no files of its own."""
        if os.path.isfile(name):
            return name
        if self._source is None:
            config = self._run.config
            several = config.training.several
            self._source = open_source(
                config.data, "val", world=World(), seed=config.run.seed, alone=True, several=several
            )
            self._numbers = {self._source.name(index): index for index in range(len(self._source))}
        return self._source.load(self._numbers[name])


class Thumbnails:
    """Makes the thumbnails of one run. Without its weights or its pictures they have captions alone."""

    def __init__(self, run: RunRecord, device: str) -> None:
        assert run.answers is not None
        self._answers, self._pictures = run.answers, RunPictures(run)
        self._predictor = Predictor(str(run.weights), device=device, cache=False) if run.weights.is_file() else None

    def of(self, numbers: Sequence[int]) -> list[Thumbnail]:
        return [self._one(number) for number in track(numbers, "overlays")]

    def _one(self, number: int) -> Thumbnail:
        names, picture = self._answers.names, self._answers.pictures[number]
        answer, confidence = picture.top[0]
        right = picture.label == answer or picture.labels is None
        label = names[picture.label] if right else ", ".join(names[k] for k in picture.labels or ())
        caption = Thumbnail(picture.path, names[answer], label, 100 * confidence)
        if self._predictor is None:
            return caption
        try:
            crop = self._predictor.crop(self._pictures.find(picture.path))
        except (CorruptImage, OSError, ValueError, KeyError):
            return caption
        (heat,) = grad_cam(self._predictor.model, self._predictor.network_input(crop[None]), [answer])
        return Thumbnail(
            **{**vars(caption), "picture": as_address(as_picture(crop, _SIDE)),
               "heat": as_address(overlay(crop, heat, _SIDE))}
        )  # fmt: skip


def confident_mistakes(answers: Predictions, limit: int) -> list[int]:
    """Numbers of pictures that were named wrong, the surest first."""
    return _by_confidence(answers, answers.predicted != answers.labels, descending=True)[:limit]


def unsure_hits(answers: Predictions, limit: int) -> list[int]:
    """Numbers of pictures that were named right, the least sure first."""
    return _by_confidence(answers, answers.predicted == answers.labels, descending=False)[:limit]


def _by_confidence(answers: Predictions, chosen: Tensor, *, descending: bool) -> list[int]:
    numbers = chosen.nonzero()[:, 0]
    order = answers.probabilities[numbers, 0].argsort(descending=descending, stable=True)
    return [int(number) for number in numbers[order]]


def as_address(image: Image.Image) -> str:
    """A JPEG inside a page."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
