"""What the classes of weights are called."""

from __future__ import annotations

import csv
import functools
import importlib.util
from pathlib import Path

from inception_v4.weights.record import WeightsInfo


def class_names_of(info: WeightsInfo) -> tuple[str, ...] | None:
    """The names of the classes: those in the file, else ImageNet's synsets for 1000 or 1001 unnamed classes."""
    if info.class_names is not None:
        return info.class_names
    if info.num_classes not in (1000, 1001):
        return None
    synsets, _ = imagenet_words()
    return synsets if info.num_classes == 1000 else ("background", *synsets)


def describe_class(name: str) -> str:
    """Words for an ImageNet synset ("n01440764" -> "tench"); other names as they are."""
    if not (len(name) == 9 and name[0] == "n" and name[1:].isdigit()):
        return name
    return imagenet_words()[1].get(name, name).split(",")[0]


@functools.cache
def imagenet_words() -> tuple[tuple[str, ...], dict[str, str]]:
    """ImageNet's 1000 synsets in order, and words for each synset of WordNet that has pictures.

    They are timm's, from its files where these are known: importing timm takes as long as importing torch.
    """
    spec = importlib.util.find_spec("timm")
    folder = Path(spec.origin or "").parent / "data" / "_info" if spec else Path()
    files = folder / "imagenet_synsets.txt", folder / "imagenet_synset_to_lemma.txt"
    if all(file.is_file() for file in files):
        synsets = tuple(files[0].read_text(encoding="utf-8").splitlines())
        return synsets, dict(csv.reader(files[1].read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    from timm.data import ImageNetInfo

    words = ImageNetInfo()
    return tuple(words.label_names()), {name: words.label_name_to_description(name) for name in words.label_names()}
