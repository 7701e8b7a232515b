"""What a network said of each labelled picture, kept in a file of JSON lines.

The first line describes the rest: `{"classes": [name, ...] or null, "weights_sha256": ..., "top1": percent, "samples":
N}`. Every further line is a picture, in the order of the data: `{"path": ..., "label": index, "top": [[index,
probability], ...], "prob_label": probability}` with up to five classes, the most probable first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inception_v4.files import atomic_write
from inception_v4.inference.evaluate import Evaluation

PREDICTIONS = "predictions.jsonl"
"""In a run directory: of its best.safetensors."""


@dataclass(frozen=True)
class PredictedPicture:
    """A picture's row.

    Attributes:
        path: its file, or what its data calls it where it lies in none.
        label: index of its class.
        top: (class, probability) of up to five classes, the most probable first.
        prob_label: probability of its label.
    """

    path: str
    label: int
    top: tuple[tuple[int, float], ...]
    prob_label: float


@dataclass(frozen=True)
class Predictions:
    """The content of a file of predictions.

    Attributes:
        classes: names, where the network has them.
        weights_sha256: of the weights file that they are of.
        top1: percent.
        pictures: in the order of the data.
    """

    classes: tuple[str, ...] | None
    weights_sha256: str | None
    top1: float
    pictures: list[PredictedPicture]


def predicted_pictures(result: Evaluation, name: Callable[[int], str]) -> Iterator[PredictedPicture]:
    """A row for each picture that was counted; `name` says what the data calls the one at a position."""
    probable = torch.exp(-result.losses.double()).tolist()
    columns = (result.indices.tolist(), result.labels.tolist(), result.top.tolist(), result.probabilities.tolist())
    for index, label, top, probabilities, own in zip(*columns, probable, strict=True):
        yield PredictedPicture(_place(name(index)), label, tuple(zip(top, probabilities, strict=True)), own)


def _place(name: str) -> str:
    """A file's path from the root, so that it is found from anywhere; another name as it is."""
    return os.path.abspath(name) if os.path.isfile(name) else name


def write_predictions(
    path: Path,
    result: Evaluation,
    name: Callable[[int], str],
    *,
    classes: tuple[str, ...] | None,
    weights_sha256: str | None,
) -> None:
    """Write the file, whole or not at all."""
    head = {"classes": classes, "weights_sha256": weights_sha256, "top1": result.top1, "samples": result.samples}
    with atomic_write(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write(json.dumps(head) + "\n")
        for picture in predicted_pictures(result, name):
            file.write(json.dumps(_row(picture)) + "\n")


def _row(picture: PredictedPicture) -> dict[str, Any]:
    # Seven digits say a float32's first six exactly; a JSON without the rest is half as long.
    top = [[index, float(f"{p:.7g}")] for index, p in picture.top]
    return {"path": picture.path, "label": picture.label, "top": top, "prob_label": float(f"{picture.prob_label:.7g}")}


def read_predictions(path: Path) -> Predictions:
    """What `write_predictions` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file, or damaged or incomplete.
    """
    try:
        with path.open(encoding="ascii") as file:
            head, *rows = [json.loads(line) for line in file]
        pictures = [
            PredictedPicture(
                str(row["path"]), int(row["label"]), tuple((int(k), float(p)) for k, p in row["top"]),
                float(row["prob_label"]),
            )
            for row in rows
        ]  # fmt: skip
        found = Predictions(
            None if head["classes"] is None else tuple(map(str, head["classes"])), head["weights_sha256"],
            float(head["top1"]), pictures,
        )  # fmt: skip
        if len(pictures) != head["samples"]:
            raise ValueError(f"{len(pictures)} of {head['samples']} rows")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no predictions, or is damaged ({error}): validate again") from error
    return found
