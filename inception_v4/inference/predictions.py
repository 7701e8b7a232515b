"""What a network said of each labelled picture, kept in a file of JSON lines.

The first line describes the rest: `{"classes": [name, ...] or null, "weights_sha256": ..., "top1": percent, "samples":
N}`. Every further line is a picture, in the order of the data: `{"path": ..., "label": index, "top": [[index,
probability], ...], "prob_label": probability}` with up to five classes, the most probable first.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inception_v4.data.lists import BETWEEN
from inception_v4.files import atomic_write, parse_json
from inception_v4.inference.evaluate import Evaluation
from inception_v4.weights.record import METADATA_KEY

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
        labels: of several classes all of them, where a picture may have several; `label` is the most probable of these.
    """

    path: str
    label: int
    top: tuple[tuple[int, float], ...]
    prob_label: float
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Predictions:
    """The content of a file of predictions: `Answers` of N pictures, k classes of each.

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

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all classes; where they have none, the numbers of those up to the last one met."""
        return self.classes or tuple(map(str, range(1 + max(int(self.labels.max()), int(self.top.max())))))

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def several(self) -> bool:
        """Whether pictures may have several classes each."""
        return self.pictures[0].labels is not None

    @cached_property
    def labels(self) -> Tensor:
        """int64 [N]"""
        return torch.tensor([picture.label for picture in self.pictures])

    @cached_property
    def top(self) -> Tensor:
        """int64 [N, k]"""
        return torch.tensor([[k for k, _ in picture.top] for picture in self.pictures])

    @property
    def predicted(self) -> Tensor:
        """int64 [N]"""
        return self.top[:, 0]

    @cached_property
    def probabilities(self) -> Tensor:
        """float64 [N, k]"""
        return torch.tensor([[p for _, p in picture.top] for picture in self.pictures], dtype=torch.float64)

    @property
    def top5(self) -> float:
        """Percent of the pictures whose label is among their classes here."""
        return 100 * float((self.top == self.labels[:, None]).any(1).double().mean())


def predicted_pictures(result: Evaluation, name: Callable[[int], str]) -> Iterator[PredictedPicture]:
    """A row for each picture that was counted; `name` says what the data calls the one at a position."""
    several = result.several
    if several is None:
        probable = torch.exp(-result.losses.double()).tolist()
    else:
        probable = several.logits.sigmoid().gather(1, result.labels[:, None])[:, 0].tolist()
    columns = (result.indices.tolist(), result.labels.tolist(), result.top.tolist(), result.probabilities.tolist())
    for row, (index, label, top, probabilities, own) in enumerate(zip(*columns, probable, strict=True)):
        labels = None if several is None else tuple(several.targets[row].nonzero()[:, 0].tolist())
        yield PredictedPicture(_place(name(index)), label, tuple(zip(top, probabilities, strict=True)), own, labels)


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
    head = _head(result, classes, weights_sha256)
    with atomic_write(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write(json.dumps(head) + "\n")
        for picture in predicted_pictures(result, name):
            file.write(json.dumps(_row(picture)) + "\n")


def _head(result: Evaluation, classes: tuple[str, ...] | None, weights_sha256: str | None) -> dict[str, Any]:
    return {"classes": classes, "weights_sha256": weights_sha256, "top1": result.top1, "samples": result.samples}


def _row(picture: PredictedPicture) -> dict[str, Any]:
    # Seven digits say a float32's first six exactly; a JSON without the rest is half as long.
    top = [[index, float(f"{p:.7g}")] for index, p in picture.top]
    labels = {} if picture.labels is None else {"labels": picture.labels}
    own = float(f"{picture.prob_label:.7g}")
    return {"path": picture.path, "label": picture.label, **labels, "top": top, "prob_label": own}


def check_predictions(path: Path) -> None:
    """Raises ValueError for a suffix of no such file, and where pyarrow is needed and not installed."""
    if path.suffix not in _WRITERS:
        raise ValueError(f"predictions {path}: give a file that ends in {', '.join(_WRITERS)}")
    if path.suffix == ".parquet":
        _parquet()


def save_predictions(
    path: Path,
    result: Evaluation,
    name: Callable[[int], str],
    *,
    classes: tuple[str, ...] | None,
    weights_sha256: str | None,
) -> None:
    """Write a row for each picture, whole or not at all: .jsonl as `write_predictions`, .csv or .parquet."""
    check_predictions(path)
    _WRITERS[path.suffix](path, result, name, classes=classes, weights_sha256=weights_sha256)


def _called(classes: tuple[str, ...] | None, index: int) -> str:
    return classes[index] if classes and index < len(classes) else str(index)


def _write_csv(
    path: Path, result: Evaluation, name: Callable[[int], str], *, classes: tuple[str, ...] | None, **_: Any
) -> None:
    """Classes by name, with the rank in the names of the columns; the index of the label beside its name."""
    ranks = range(1, result.top.shape[1] + 1)
    header = [
        "path",
        "label",
        "label_index",
        "prob_label",
        *(["labels"] if result.several else []),
        *(f"{what}{k}" for k in ranks for what in ("class", "prob")),
    ]
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in predicted_pictures(result, name):
            ranked = [value for k, p in row.top for value in (_called(classes, k), f"{p:.7g}")]
            labels = [] if row.labels is None else [BETWEEN.join(_called(classes, k) for k in row.labels)]
            own = [_called(classes, row.label), row.label, f"{row.prob_label:.7g}"]
            writer.writerow([row.path, *own, *labels, *ranked])


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f".parquet needs pyarrow ({error}): pip install 'inception-v4[parquet]'") from error
    return pyarrow


def _write_parquet(
    path: Path,
    result: Evaluation,
    name: Callable[[int], str],
    *,
    classes: tuple[str, ...] | None,
    weights_sha256: str | None,
) -> None:
    """Lists of up to five in `top`, `top_classes` and `probabilities`; classes and top-1 in the file's metadata."""
    arrow = _parquet()
    rows = list(predicted_pictures(result, name))
    columns = {
        # Names that are no Unicode are written as Python escapes them.
        "path": arrow.array([row.path.encode("utf-8", "backslashreplace").decode() for row in rows], arrow.string()),
        "label": arrow.array([row.label for row in rows], arrow.int64()),
        "label_class": arrow.array([_called(classes, row.label) for row in rows], arrow.string()),
        "prob_label": arrow.array([row.prob_label for row in rows], arrow.float32()),
        "top": arrow.array([[k for k, _ in row.top] for row in rows], arrow.list_(arrow.int64())),
        "top_classes": arrow.array(
            [[_called(classes, k) for k, _ in r.top] for r in rows], arrow.list_(arrow.string())
        ),
        "probabilities": arrow.array([[p for _, p in row.top] for row in rows], arrow.list_(arrow.float32())),
    }
    if result.several:
        columns["labels"] = arrow.array([row.labels for row in rows], arrow.list_(arrow.int64()))
    head = json.dumps(_head(result, classes, weights_sha256))
    with atomic_write(path) as temporary:
        arrow.parquet.write_table(arrow.table(columns, metadata={METADATA_KEY: head}), temporary)


_WRITERS: dict[str, Callable[..., None]] = {
    ".jsonl": write_predictions,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def read_predictions(path: Path) -> Predictions:
    """What `write_predictions` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file, or damaged or incomplete.
    """
    try:
        with path.open(encoding="ascii") as file:
            head, *rows = [parse_json(line) for line in file]
        pictures = [
            PredictedPicture(
                str(row["path"]), int(row["label"]), tuple((int(k), float(p)) for k, p in row["top"]),
                float(row["prob_label"]), tuple(map(int, row["labels"])) if "labels" in row else None,
            )
            for row in rows
        ]  # fmt: skip
        found = Predictions(
            None if head["classes"] is None else tuple(map(str, head["classes"])), head["weights_sha256"],
            float(head["top1"]), pictures,
        )  # fmt: skip
        if not pictures or len(pictures) != head["samples"]:
            raise ValueError(f"{len(pictures)} of {head['samples']} rows")
        _check_classes(found)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no predictions, or is damaged ({error}): validate again") from error
    return found


def _check_classes(found: Predictions) -> None:
    """Raises ValueError where a row has fewer classes than another, or one that does not exist."""
    widths = sorted({len(picture.top) for picture in found.pictures})
    if len(widths) > 1 or not widths[0]:
        raise ValueError(f"rows of {' and '.join(map(str, widths))} classes")
    numbers = torch.cat([found.labels, found.top.flatten()])
    least, most = int(numbers.min()), int(numbers.max())
    if least < 0 or most >= found.num_classes:
        raise ValueError(f"class {least if least < 0 else most} of {found.num_classes}")
