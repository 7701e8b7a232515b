"""Training of the classifier alone, on features that are computed once for each picture.

With a frozen backbone and pictures that are the same in every epoch, so are the inputs of the classifier, and an epoch
is a pass over a table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from inception_v4 import __version__
from inception_v4.accelerator.precision import Precision
from inception_v4.data.labelled import Source
from inception_v4.data.loader import Batch, TrainLoader
from inception_v4.data.normalise import Normalise
from inception_v4.data.order import EpochSampler, own_batches
from inception_v4.data.sizes import ImageSizes
from inception_v4.distributed import World
from inception_v4.inference.evaluate import Evaluation
from inception_v4.network.model import InceptionV4
from inception_v4.settings.schema import Config, frozen_blocks
from inception_v4.settings.schema.learning import BLOCKS
from inception_v4.training.feature_table import FeatureTable, backbone_of
from inception_v4.training.parts import Validator
from inception_v4.training.step import Learner


def check_cacheable(config: Config) -> None:
    """Raises ValueError, with the flags that are missing, where the features of a picture would change in a run."""
    if not config.training.cache_features:
        return
    how, opt = config.augmentation, config.optimizer
    wrong = {
        "--freeze backbone": frozen_blocks(opt.freeze) < BLOCKS,
        "no --unfreeze-at": opt.unfreeze_at is not None,
        "--swa-epochs 0": bool(opt.swa_epochs),
        "--train-crop centre": how.train_crop != "centre",
        "--hflip 0": how.hflip,
        "--vflip 0": how.vflip,
        "--color-jitter 0": how.jitters,
        "--auto-augment none": how.auto_augment is not None,
        "--re-prob 0": how.re_prob,
        "--mixup 0": how.mixup,
        "--cutmix 0": how.cutmix,
        "--aug-repeats 0": how.aug_repeats > 1,
        "--aug-splits 0": how.aug_splits,
        "one --image-size for all epochs": how.first_image_size not in (None, how.image_size),
        "no --teacher": config.training.teacher is not None,
        "--on-corrupt error": config.data.on_corrupt != "error",
    }
    if missing := [flag for flag, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(
            "cache_features computes the features of each picture once, and they have to stay the same: give "
            + ", ".join(missing)
        )


class Classifier(nn.Module):
    """What comes after the features [B, 1536] of a network: its own dropout and last layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, InceptionV4)
        self.head_drop, self.last_linear = network.head_drop, network.last_linear
        self.train(network.training)

    def forward(self, features: Tensor) -> Tensor:
        return self.last_linear(self.head_drop(features))


class AsTheyAre(Normalise):
    """Leaves features alone."""

    def __call__(self, images: Tensor) -> Tensor:
        return images


class FeatureLoader:
    """Batches of features in the order in which `TrainLoader` has the pictures, with its attributes."""

    def __init__(self, source: Source, table: Tensor, sampler: EpochSampler, sizes: ImageSizes) -> None:
        self.samples, self.global_batch, self.steps_per_epoch = sampler.samples, sampler.batch, sampler.steps
        self.sizes = sizes
        self._source, self._table, self._sampler = source, table, sampler

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from its sample `start` on."""
        self._sampler.epoch, self._sampler.start = epoch, start
        for keys in self._sampler:
            yield _batch(self._source, self._table, [key.picture for key in keys])


class FeatureEvalLoader:
    """Batches of features as `EvalLoader` has the pictures."""

    def __init__(self, source: Source, table: Tensor, *, batch_size: int, world: World) -> None:
        self.source, self._table = source, table
        self._batches = own_batches(len(source), batch_size, world)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return (_batch(self.source, self._table, pictures) for pictures in self._batches)


@dataclass
class FeatureValidator(Validator):
    """The validation of a network by its classifier alone."""

    def __call__(self, model: nn.Module, goes_on: Callable[[], bool]) -> Evaluation:
        return super().__call__(Classifier(model), goes_on)


def _batch(source: Source, table: Tensor, pictures: list[int]) -> Batch:
    targets = default_collate([source.target(picture) for picture in pictures])
    return Batch(table[pictures], targets, torch.tensor(pictures))


class NoFeatures:
    """The off state."""

    def begin(self, learner: Learner, loader: Any, validator: Validator, **how: Any) -> tuple[Any, Validator]:
        return loader, validator


@dataclass
class CachedFeatures:
    """Puts tables of features in the place of pictures.

    Attributes:
        config: of the run.
        source: its training pictures.
        world: its processes.
        callable_form: what a step calls of a module.
    """

    config: Config
    source: Source
    world: World
    callable_form: Callable[[nn.Module], nn.Module]

    def begin(
        self, learner: Learner, loader: TrainLoader | FeatureLoader, validator: Validator, *,
        beat: Callable[[str], None],
        say: Callable[[str], None],
    ) -> tuple[FeatureLoader, Validator]:  # fmt: skip
        """Before the first step: makes the tables, or opens them, and has the learner learn from them.

        Returns:
            What gives batches of features for training, and for validation.
        Raises:
            ValueError: the averaged network has another backbone.
            DiskFull: there is no room for them.
        """
        _require_one_backbone(learner)
        data = self.config.data
        plain = data.model_copy(update={"shuffle": False, "drop_last": False, "balanced_sampling": False})
        in_order = TrainLoader(
            self.source, plain, self.config.augmentation, world=self.world, seed=learner.seed,
            pin_memory=learner.precision.accelerator.pin_memory,
        )  # fmt: skip
        held_out, network = validator.loader.source, learner.model
        assert isinstance(network, InceptionV4)
        tables = []
        for source, batches, precision in (
            (self.source, partial(in_order.epoch, 0), learner.precision),
            (held_out, partial(iter, validator.loader), validator.precision),
        ):
            about = self._about(source is held_out, precision)
            work = FeatureTable(network, learner.normalise, source, precision, self.world, about)
            tables.append(work.open(batches, beat=beat, say=say))
        sampler = EpochSampler(len(self.source), data, 0, world=self.world, seed=learner.seed, source=self.source)
        learner.compute = self.callable_form(Classifier(learner.model))
        learner.normalise = AsTheyAre(self.config.augmentation)
        learner.ema.part = _last_layer
        evaluated = FeatureEvalLoader(held_out, tables[1], batch_size=validator.batch_size, world=self.world)
        return (
            FeatureLoader(self.source, tables[0], sampler, loader.sizes),
            FeatureValidator(evaluated, learner.normalise, validator.precision, self.world, validator.batch_size),
        )

    def _about(self, held_out: bool, precision: Precision) -> dict[str, Any]:
        """What decides how a picture becomes features, beside the weights."""
        return {
            "preprocessing": self.config.augmentation.preprocessing().to_dict(), "held_out": held_out,
            "max_pixels": self.config.data.max_pixels, "precision": str(precision.amp_dtype),
            "device": precision.accelerator.type, "package": __version__,
        }  # fmt: skip


def _last_layer(network: nn.Module) -> nn.Module:
    """What learns, and so all that an average has to follow."""
    assert isinstance(network, InceptionV4)
    return network.last_linear


def _require_one_backbone(learner: Learner) -> None:
    """Raises ValueError where the average of an earlier run's weights has another backbone than the network."""
    if learner.ema.module is None:
        return
    ours, theirs = backbone_of(learner.model), backbone_of(learner.ema.module)
    if not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise ValueError(
            "cache_features: the averaged network of the checkpoint has another backbone, as the run did not freeze it "
            "from its start: start a new run from the weights, or leave --cache-features out"
        )
