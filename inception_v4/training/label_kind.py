"""Whether the pictures of a run have one class or several each, and the settings that go with it."""

from __future__ import annotations

from inception_v4.data.sources import Source
from inception_v4.settings.schema import Config


def with_monitor(config: Config, source: Source) -> tuple[Config, list[str]]:
    """`config` for the pictures of `source`, and lines for people.

    Of several classes mAP says which weights are the best, unless something else was asked for.

    Raises:
        ValueError: settings that need pictures of the other kind.
    """
    _check(config, source)
    if source.label_sets is None:
        return config, []
    each = sum(map(len, source.label_sets)) / len(source)
    lines = [f"pictures have several classes, {each:.2f} on average: each class is learnt and answered by itself"]
    if "monitor" not in config.schedule.model_fields_set:
        config = config.model_copy(update={"schedule": config.schedule.model_copy(update={"monitor": "map"})})
        lines.append("monitor map: mean average precision says which weights are the best; --monitor says another")
    return config, lines


def _check(config: Config, source: Source) -> None:
    if source.label_sets is None and config.schedule.monitor == "map":
        raise ValueError(
            "monitor map: every picture has one class: give a list with several classes for a picture and --loss bce, "
            "or --monitor top1 or f1"
        )
    if source.label_sets is not None and config.augmentation.aug_splits:
        raise ValueError(
            f"aug_splits {config.augmentation.aug_splits} compares softmax probabilities, and pictures with several "
            "classes have none: leave it out"
        )
    if source.label_sets is not None and config.training.teacher:
        raise ValueError(
            f"teacher {config.training.teacher} teaches softmax probabilities, and pictures with several classes have "
            "none: leave it out"
        )
    if source.label_sets is not None and config.data.balanced_sampling:
        raise ValueError(
            "balanced_sampling draws every class equally often, and pictures with several classes cannot be drawn for "
            "one of them: use --class-weights balanced"
        )
