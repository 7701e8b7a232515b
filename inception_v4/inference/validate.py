"""Validation of anyone's weights on a folder of pictures."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inception_v4.accelerator import Accelerator
from inception_v4.console import say, track
from inception_v4.data.folders import in_order
from inception_v4.data.loader import EvalLoader
from inception_v4.data.local import local_data
from inception_v4.data.sources import Source, open_source
from inception_v4.data.views import ONE, Views
from inception_v4.distributed import World, session
from inception_v4.files import sha256_of
from inception_v4.inference.data_record import validation_data
from inception_v4.inference.engines import Opener, Wanted, precision_for
from inception_v4.inference.ensemble import Ready, engines_of, open_others, ready
from inception_v4.inference.evaluate import Evaluation, evaluate
from inception_v4.inference.network import AUTO, OpenNetwork, accelerator_for, runtime_for
from inception_v4.inference.results import PLAIN, ResultOptions
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.schema import Config, Data, Network, Training
from inception_v4.weights.class_names import class_names_of
from inception_v4.weights.record import WeightsInfo
from inception_v4.weights.source import PRETRAINED, local_weights, locate


def validate(
    config: Config,
    *,
    runtime: str | None = None,
    cache: bool = True,
    views: Views = ONE,
    others: Sequence[str] = (),
    options: ResultOptions = PLAIN,
) -> dict[str, Any]:
    """Loss, top-1 and top-5 (percent) of a weights or exported file over the validation pictures, each counted once.

    The file says how its pictures are prepared and, where no data is given, which they were in its run; settings given
    explicitly win over it.

    Args:
        runtime: what runs the file; default: by its suffix, and for weights the fastest that is installed.
        cache: whether weights may be exported into the user's cache; without they run in PyTorch.
        views: of each picture, over which probabilities are averaged.
        others: more files like it, over which they are averaged too. The first says which pictures and classes.
        options: files to write, and other ways to count.
    """
    source = local_weights(_source(config.network))
    chosen = runtime_for(source, runtime, cache=cache)
    accelerator = accelerator_for(chosen, config.run.device)
    accelerator.activate(deterministic=config.training.deterministic, tf32=config.training.tf32)
    with session(accelerator) as world:
        wanted = _wanted(config, source, chosen, accelerator, cache=cache)
        given = config.augmentation.given_preprocessing()
        opener = Opener(source, accelerator, wanted, world=world)
        network = opener.open()
        check_per_channel(network.info.preprocessing.replace(**given), network.info)
        labelled = labelled_pictures(config, source, network.info, world)
        more = open_others(others, given, beside=network, wanted=replace(wanted, runtime=runtime or AUTO), world=world)
        expected = len(labelled.pictures) * len(views)
        networks = [opener.for_many(network, expected), *(member.for_many(expected).opened for member in more)]
        batch_size = config.data.val_batch_size or config.data.batch_size
        it = ready(networks, given, views, amp=wanted.amp, batch_size=batch_size)
        options.check_classes(labelled.names, multi_label=network.info.multi_label)
        loader = EvalLoader(
            labelled.pictures, it.preprocessing, batch_size=it.pictures, workers=config.data.workers, world=world,
            on_corrupt=config.data.on_corrupt, pin_memory=accelerator.pin_memory, views=views,
        )  # fmt: skip
        if world.is_main:
            _introduce(networks, it, labelled, str(views), processes=world.size)
        started = time.perf_counter()
        result = evaluate_ready(it, loader, world, labelled.numbers if options.data_classes_only else None)
        seconds = time.perf_counter() - started
        if world.is_main:
            _warn_and_write(result, labelled, options, source=None if others else source)
    return {
        **result.figures(labelled.names),
        **options.further_figures(result, labelled.pictures.name, labelled.names),
        "skipped": len(result.skipped), "images_per_second": result.samples / seconds,
        "weights": [source, *others] if others else source, "preprocessing": it.preprocessing.to_dict(),
        "crops": views.crops, "flip": views.flip,
    }  # fmt: skip


def evaluate_ready(it: Ready, loader: EvalLoader, world: World, labels: Sequence[int] | None = None) -> Evaluation:
    """Figures of `it`, which may answer with the classes `labels` alone where these are given."""
    return evaluate(
        it.model if labels is None else only_classes(it.model, labels),
        track(loader, "validating", len(loader)) if world.is_main else loader,
        prepare=it.prepare,
        precision=it.precision,
        world=world,
        batch_size=it.pictures,
    )


def _wanted(config: Config, source: str, runtime: str, accelerator: Accelerator, *, cache: bool) -> Wanted:
    """How the settings say that a network is to run."""
    training, size = config.training, config.augmentation.given_preprocessing().get("image_size")
    amp, _ = precision_for(source, runtime, accelerator, asked_precision(training))
    return Wanted(runtime, config.run.device, amp, size, config.data.num_classes, training.channels_last, cache)


def _source(network: Network) -> str:
    source = PRETRAINED if network.pretrained else network.ckpt_path
    if source is None:
        raise ValueError("nothing to validate: give --ckpt-path FILE or --pretrained")
    return source


def _introduce(networks: Sequence[OpenNetwork], it: Ready, labelled: Labelled, views: str, *, processes: int) -> None:
    """What is about to be validated, by what, on which pictures."""
    for message in [*(line for network in networks for line in network.messages), *labelled.remarks]:
        say(message)
    if it.crop_pct_is_idle:
        say("crop_pct has no effect: the papers' crops have sizes of their own (docs/evaluation.md)")
    several = f", mean of {it.networks} networks" if it.networks > 1 else ""
    engine = f"{engines_of(networks)} x {processes}"
    say(f"{labelled.title}, {it.preprocessing.image_size} px{views}{several}, {engine}")


def _warn_and_write(result: Evaluation, labelled: Labelled, options: ResultOptions, *, source: str | None) -> None:
    """What looks wrong, and the files that were asked for; `source` is None for an ensemble."""
    for warning in [*suspicions(result), *other_order(result, labelled.found, labelled.names)]:
        say(warning)
    sha256 = sha256_of(locate(source).path) if source and Path(source).exists() else None
    for path in options.write(result, labelled.pictures.name, classes=labelled.names, weights_sha256=sha256):
        say(f"wrote {path}")


def only_classes(model: Callable[[Tensor], Tensor], labels: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """`model` that can answer with the classes among `labels` alone, as ImageNet-A and -R are scored."""
    kept = torch.tensor(sorted(set(labels)))

    def restricted(images: Tensor) -> Tensor:
        outputs = model(images).float()
        return torch.full_like(outputs, -math.inf).index_copy_(
            1, kept.to(outputs.device), outputs.index_select(1, kept.to(outputs.device))
        )

    return restricted


class Labelled(NamedTuple):
    """Pictures with labels in the numbering of a network.

    Attributes:
        names: of the network's classes, where they are known.
        found: names of the data's classes.
        numbers: the network's numbers of the data's classes.
        title: how many pictures, and where from, for people.
        remarks: lines for people.
    """

    pictures: Source
    names: tuple[str, ...] | None
    found: tuple[str, ...]
    numbers: tuple[int, ...]
    title: str
    remarks: list[str]


def labelled_pictures(config: Config, source: str, info: WeightsInfo, world: World) -> Labelled:
    """The pictures to validate `source` on, which says `info` of itself."""
    given_seed = config.run.seed if "seed" in config.run.model_fields_set else None
    data, seed = validation_data(local_data(config.data, world), given_seed, source=source, info=info)
    seed = config.run.seed if seed is None else seed
    pictures = open_source(data, "val", world=world, seed=seed, alone=True, several=info.multi_label)
    names, found = class_names_of(info), pictures.class_names
    pictures, remarks = match_labels(pictures, names, info.num_classes, asked=data.num_classes)
    if info.multi_label and pictures.label_sets is None:
        pictures.label_sets = [(label,) for label in pictures.labels]
    remarks = [*pictures.remarks, *remarks, *numbering(found, names, data, config.data)]
    numbers: Sequence[int] = pictures.labels
    if data.val_samples is not None:  # which may be of some classes only
        numbers = pictures.numbers if isinstance(pictures, Relabelled) else range(len(found))
    own = tuple(sorted({number for number in numbers if number < info.num_classes}))
    return Labelled(pictures, names, found, own, f"{len(pictures)} pictures{where(data, config.data)}", remarks)


def asked_precision(training: Training) -> str:
    """float32 unless something else was asked for: figures are compared with others'."""
    return training.val_amp or (training.amp if "amp" in training.model_fields_set else "off")


def check_per_channel(preprocessing: Preprocessing, info: WeightsInfo) -> None:
    """Raises ValueError where mean and std are not for the channels of the network."""
    if len(preprocessing.mean) != info.in_channels:
        raise ValueError(
            f"mean and std have {len(preprocessing.mean)} values and the network takes {info.in_channels} channels: "
            "give one value per channel, or leave them out"
        )


class Relabelled(Source):
    """The pictures of `source` with its class k renumbered as `numbers[k]`."""

    def __init__(self, source: Source, numbers: Sequence[int], class_names: tuple[str, ...]) -> None:
        self.class_names, self.numbers = class_names, numbers
        self.labels = [numbers[label] for label in source.labels]
        self.label_sets = source.label_sets and [tuple(numbers[k] for k in several) for several in source.label_sets]
        self.remarks = source.remarks
        self._source = source

    def load(self, index: int, *, exif_rotation: bool = True) -> Tensor:
        return self._source.load(index, exif_rotation=exif_rotation)

    def name(self, index: int) -> str:
        return self._source.name(index)


def where(used: Data, given: Data) -> str:
    """Which pictures these are, where the weights' record has said it and no setting."""
    if given.dataset or given.data_dir:
        return ""
    return f" ({used.kind}{f' in {used.data_dir}' if used.data_dir else ''}, as recorded with the weights)"


def numbering(found: tuple[str, ...], names: tuple[str, ...] | None, used: Data, given: Data) -> list[str]:
    """A line where nameless classes are numbered otherwise than by the characters of their folders' names, unasked."""
    if names is not None or "class_order" in given.model_fields_set or found == in_order(found, "text"):
        return []
    return [
        f"the weights name no classes: folders are numbered in {used.class_order} order ({', '.join(found[:3])}, ...), "
        "as timm does; --class-order text to sort them by characters"
    ]


def match_labels(
    source: Source, names: tuple[str, ...] | None, num_classes: int, *, asked: int | None
) -> tuple[Source, list[str]]:
    """`source` with its labels in the network's numbering, and lines for people.

    Classes are matched by name where the network has all of the data's names, each once. Where it has no names, or
    `asked` says so, labels are indices.

    Args:
        asked: num_classes as it was given.

    Raises:
        ValueError: the data's classes cannot be those of the network, or nothing says that they are.
    """
    found = source.class_names
    if names == found:
        return source, []
    if names is not None and set(found) <= {name for name, count in Counter(names).items() if count == 1}:
        position = {name: index for index, name in enumerate(names)}
        return Relabelled(source, [position[name] for name in found], names), []
    if names is not None and set(found) == set(map(str, range(num_classes))):
        # ImageNet-V2's folders: they can mean nothing else.
        remark = f"folders 0 to {num_classes - 1} are taken as indices of the network's classes"
        return Relabelled(source, [int(name) for name in found], names), [remark]
    if asked is None and len(found) != num_classes:
        raise ValueError(
            f"the data has {len(found)} classes ({', '.join(found[:3])}, ...) and the weights {num_classes}, with "
            "other names: give the matching --data-dir, or --num-classes to say that labels are indices"
        )
    differing = [
        f"{k} is {a!r} and {b!r}" for k, (a, b) in enumerate(zip(found, names or found, strict=False)) if a != b
    ]
    pairs = ", ".join(differing[:3])
    if asked is None and differing:
        raise ValueError(
            f"the classes of the data and of the weights have different names (class {pairs}): give the matching "
            f"--data-dir, or --num-classes {num_classes} to say that labels are indices"
        )
    return source, [f"labels are taken as indices: in data and weights class {pairs}"] if differing else []


def suspicions(result: Evaluation) -> list[str]:
    """Warnings about labels that are off by one, the usual reason for 1 % where 80 % was expected."""
    warnings = []
    for shift in () if result.several else (1, -1):
        hits = 100 * float((result.predicted == result.labels + shift).double().mean())
        if result.samples >= 50 and hits > 20 and hits > 3 * result.top1:
            warnings.append(
                f"labels look off by {shift:+d}: top-1 is {result.top1:.2f} % but {hits:.2f} % with labels {shift:+d}; "
                "a background class (1001 outputs) or another class order is the usual cause"
            )
    if result.skipped:
        warnings.append(f"{len(result.skipped)} unreadable pictures were skipped: {', '.join(result.skipped[:5])}")
    return warnings


def other_order(result: Evaluation, found: tuple[str, ...], names: tuple[str, ...] | None) -> list[str]:
    """A warning where the other `class_order` explains what the network says far better.

    Judged by the pictures of the classes whose numbers differ between the orders: there at most one can be right.

    Args:
        found: names of the data's classes; labels are their positions where `names` is None.
        names: of the network's classes.
    """
    rows = names or found
    text, natural = in_order(rows, "text"), in_order(rows, "natural")
    if result.several or text == natural or rows not in (text, natural) or int(result.labels.max()) >= len(rows):
        return []
    order, other = ("natural", natural) if rows == text else ("text", text)
    numbers = torch.tensor([other.index(name) for name in rows])[result.labels]
    differ = numbers != result.labels
    hits, now = (100 * float((result.predicted == right)[differ].double().mean()) for right in (numbers, result.labels))
    if int(differ.sum()) < 20 or hits <= 20 or hits <= 3 * now:
        return []
    remedy = f"give --class-order {order}"
    if names:
        remedy = "the names in the weights are in the wrong order, save them again with class_names in that one"
    return [
        f"classes look ordered otherwise: of {int(differ.sum())} pictures {now:.2f} % are named right, and "
        f"{hits:.2f} % if class folders were numbered in {order} order ({', '.join(other[:3])}, ...): {remedy}"
    ]
