"""ImageNet's reassessed labels: several classes for a validation picture, or none.

"Are we done with ImageNet?" (Beyer et al. 2020); their `real.json` is a list of lists of class indices, the first of
ILSVRC2012_val_00000001.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inception_v4.files import parse_json
from inception_v4.inference.evaluate import Evaluation

_PICTURES = 50_000
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class RealLabels:
    """The labels of each validation picture, by its number less one."""

    file: Path
    labels: list[list[int]]

    @classmethod
    def read(cls, file: Path) -> RealLabels:
        """Raises ValueError where the file is no such list, FileNotFoundError where there is none."""
        try:
            content = parse_json(file.read_text(encoding="utf-8"))
            labels = [[int(label) for label in row] for row in content]
        except (ValueError, TypeError) as error:
            raise ValueError(f"real_labels {file}: not the JSON list of ReaL's labels ({error})") from error
        if len(labels) != _PICTURES or any(not 0 <= label < 1000 for row in labels for label in row):
            raise ValueError(
                f"real_labels {file}: {len(labels)} rows of labels, not ImageNet's {_PICTURES} of classes 0 to 999: "
                "fetch real.json again"
            )
        return cls(file, labels)

    def score(self, result: Evaluation, name: Callable[[int], str], classes: tuple[str, ...] | None) -> dict[str, Any]:
        """Percent of the pictures with labels whose first class, or one of the first five, is among them.

        Args:
            name: of the picture at a position, which holds its number.
            classes: of the network.

        Raises:
            ValueError: the classes or the pictures are not ImageNet's.
        """
        numbers = imagenet_numbers(classes)
        samples = first = fifth = 0
        for index, top in zip(result.indices.tolist(), result.top.tolist(), strict=True):
            found = _NUMBER.search(name(index))
            if found is None or not 1 <= int(found[1]) <= _PICTURES:
                raise ValueError(
                    f"real_labels: {name(index)} is no validation picture of ImageNet (ILSVRC2012_val_...)"
                )
            if real := set(self.labels[int(found[1]) - 1]):
                hits = [numbers[k] in real for k in top]
                samples, first, fifth = samples + 1, first + hits[0], fifth + any(hits)
        if not samples:
            raise ValueError(f"real_labels {self.file}: none of the {result.samples} pictures has a label in it")
        return {"real_top1": 100 * first / samples, "real_top5": 100 * fifth / samples, "real_samples": samples}


def imagenet_numbers(classes: tuple[str, ...] | None) -> list[int | None]:
    """ImageNet's number of each of the network's classes, None for "background".

    Raises:
        ValueError: they are others.
    """
    from timm.data import ImageNetInfo

    numbers = {name: number for number, name in enumerate(ImageNetInfo().label_names())}
    found = [numbers.get(name) for name in classes or ()]
    if len({number for number in found if number is not None}) < len(numbers):
        raise ValueError("real_labels: the network's classes are not ImageNet's 1000 synsets (n01440764, ...)")
    return found
