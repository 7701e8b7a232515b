"""What the classes of weights are called."""

from __future__ import annotations

from inception_v4.weights.record import WeightsInfo


def class_names_of(info: WeightsInfo) -> tuple[str, ...] | None:
    """The names of the classes: those in the file, else ImageNet's synsets for 1000 or 1001 unnamed classes."""
    if info.class_names is not None:
        return info.class_names
    if info.num_classes not in (1000, 1001):
        return None
    from timm.data import ImageNetInfo

    synsets = tuple(ImageNetInfo().label_names())
    return synsets if info.num_classes == 1000 else ("background", *synsets)


def describe_class(name: str) -> str:
    """Words for an ImageNet synset ("n01440764" -> "tench"); other names as they are."""
    if not (len(name) == 9 and name[0] == "n" and name[1:].isdigit()):
        return name
    from timm.data import ImageNetInfo

    return ImageNetInfo().label_name_to_description(name).split(",")[0]
