"""What is found out and kept of a validation beside its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inception_v4.inference.confusion import check_confusion, write_confusion
from inception_v4.inference.evaluate import Evaluation
from inception_v4.inference.metrics import confusion
from inception_v4.inference.predictions import check_predictions, save_predictions
from inception_v4.inference.real_labels import RealLabels, imagenet_numbers
from inception_v4.storage.fetch import local_copy
from inception_v4.storage.outgoing import check_target, outgoing


@dataclass(frozen=True)
class ResultOptions:
    """Files to write, and other ways to count. They are looked at at once: not only after hours of work.

    Files are paths or addresses.

    Attributes:
        confusion: .csv or .png of the confusion matrix.
        predictions: .jsonl, .csv or .parquet with a row for each picture.
        real_labels: ImageNet's reassessed labels, to count by too.
        data_classes_only: the network may answer with the classes of the data alone.

    Raises:
        ValueError: a suffix that is none of these, no pyarrow for .parquet, or no such labels.
    """

    confusion: Path | str | None = None
    predictions: Path | str | None = None
    real_labels: Path | str | None = None
    data_classes_only: bool = False
    real: RealLabels | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for target in filter(None, (self.confusion, self.predictions)):
            check_target(str(target))
        if self.confusion:
            check_confusion(Path(self.confusion))
        if self.predictions:
            check_predictions(Path(self.predictions))
        if self.real_labels:
            object.__setattr__(self, "real", RealLabels.read(Path(local_copy(str(self.real_labels)))))

    def check_classes(self, classes: tuple[str, ...] | None, *, multi_label: bool = False) -> None:
        """Raises ValueError where the network's classes are not those of the labels, or cannot be counted so."""
        counted = ("confusion", "real_labels", "data_classes_only")
        if multi_label and (asked := [name for name in counted if getattr(self, name)]):
            raise ValueError(
                f"{asked[0]} is for pictures of one class each, and these weights give several: leave it out"
            )
        if self.real:
            imagenet_numbers(classes)

    def further_figures(
        self, result: Evaluation, name: Callable[[int], str], classes: tuple[str, ...] | None
    ) -> dict[str, Any]:
        """Those that were asked for."""
        return self.real.score(result, name, classes) if self.real else {}

    def write(
        self,
        result: Evaluation,
        name: Callable[[int], str],
        *,
        classes: tuple[str, ...] | None,
        weights_sha256: str | None = None,
    ) -> list[str]:
        """The files that were asked for, each whole or not at all; returns where they are."""
        if self.confusion:
            with outgoing(str(self.confusion)) as file:
                write_confusion(file.path, confusion(result), classes)
        if self.predictions:
            with outgoing(str(self.predictions)) as file:
                save_predictions(file.path, result, name, classes=classes, weights_sha256=weights_sha256)
        return [str(target) for target in (self.confusion, self.predictions) if target]


PLAIN = ResultOptions()
"""Nothing but the figures."""
