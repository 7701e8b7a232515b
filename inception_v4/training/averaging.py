"""The mean of several sets of weights, as a file: uniform or a greedy soup, with BatchNorm statistics anew if asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from inception_v4.accelerator import Accelerator, select
from inception_v4.accelerator.precision import Precision, choose_amp
from inception_v4.console import say, track
from inception_v4.data.loader import TrainLoader
from inception_v4.data.normalise import Normalise
from inception_v4.data.sources import open_source
from inception_v4.distributed import World, session
from inception_v4.inference.data_record import validation_data
from inception_v4.inference.factory import open_model
from inception_v4.inference.soup import greedy_soup, judge_of
from inception_v4.inference.validate import asked_precision
from inception_v4.settings.schema import Config
from inception_v4.storage.outgoing import check_target, outgoing
from inception_v4.training.batch_statistics import recompute_statistics
from inception_v4.training.smallest import check_smallest
from inception_v4.weights import Weights, WeightsError, read_weights
from inception_v4.weights.average import WeightsSum
from inception_v4.weights.writing import check_suffix, layout_for, storage_type, write_weights


@dataclass(frozen=True)
class Averaging:
    """What is made of the weights.

    Attributes:
        output: the file to write, a path or an address; its suffix says the layout unless `layout` does.
        layout: a key of `LAYOUTS`.
        dtype: `fp32`, `fp16` or `bf16`; default float32.
        ema: take the moving averages that training checkpoints hold.
        greedy: a soup by validation; else the mean of all.
        update_bn: take BatchNorm statistics anew from the training pictures.
    """

    output: Path | str
    layout: str | None = None
    dtype: str | None = None
    ema: bool | None = None
    greedy: bool = False
    update_bn: bool = False


def average(sources: Sequence[str], config: Config, how: Averaging) -> WeightsSum:
    """Write the mean of `sources`, whole or not at all; returns what was averaged.

    Args:
        sources: two or more, as `read_weights` takes them.
        config: says which pictures, where some are needed, and how; else the record of the first weights does.

    Raises:
        ValueError: fewer than two, or not of one network, or an output that cannot be written.
    """
    output = Path(how.output)
    check_target(str(how.output))
    layout = how.layout or layout_for(output)
    check_suffix(output, layout)
    storage_type(how.dtype)
    if len(sources) < 2:
        raise ValueError(f"one set of weights has no average: name two or more, not only {', '.join(sources)}")
    if output.exists() and any(Path(s).exists() and output.samefile(s) for s in sources):
        raise WeightsError(f"{how.output} is both source and destination: name another --output")
    accelerator = select(config.run.device)
    if how.greedy or how.update_bn:
        accelerator.activate(deterministic=config.training.deterministic, tf32=config.training.tf32)
    read = partial(read_weights, ema=how.ema)
    with session(accelerator) as world:
        tell = say if world.is_main else _silent
        total = _sum(list(sources), config, how, read=read, accelerator=accelerator, world=world)
        mean = total.mean()
        if how.update_bn:
            mean = _with_statistics(mean, sources[0], config, accelerator=accelerator, world=world)
        if world.is_main:
            with outgoing(str(how.output)) as file:
                notes = write_weights(mean, file.path, layout=layout, dtype=how.dtype)
            for line in [*notes, f"wrote {how.output}: the mean of {len(total.names)} of {len(sources)}, {layout}"]:
                tell(line)
    return total


def _silent(line: str) -> None: ...


def _sum(
    sources: list[str], config: Config, how: Averaging, *, read: Callable[[str], Weights], accelerator: Accelerator,
    world: World,
) -> WeightsSum:  # fmt: skip
    first = read(sources[0])
    if not how.greedy:
        total = WeightsSum.of(first, sources[0])
        for source in track(sources[1:], "averaging") if world.is_main else sources[1:]:
            total = total.plus(read(source), source)
        return total
    judge = judge_of(config, sources[0], first, accelerator=accelerator, world=world)
    return greedy_soup(sources, read, judge, say=say if world.is_main else _silent)


def _with_statistics(
    weights: Weights, source: str, config: Config, *, accelerator: Accelerator, world: World
) -> Weights:
    """`weights` with the statistics of one epoch of training pictures, augmented as a run of `config` has them."""
    opened = open_model(weights)
    given_seed = config.run.seed if "seed" in config.run.model_fields_set else None
    data, seed = validation_data(config.data, given_seed, source=source, info=weights.info)
    seed = config.run.seed if seed is None else seed
    pictures = open_source(data, "train", world=world, seed=seed, several=weights.info.multi_label)
    augmentation = config.augmentation.prepared_like(weights.info.preprocessing)
    if "image_size" not in config.augmentation.model_fields_set:
        augmentation = augmentation.model_copy(update={"image_size": weights.info.preprocessing.image_size})
    data = data.model_copy(update={"drop_last": data.drop_last and len(pictures) >= data.batch_size * world.size})
    check_smallest(len(pictures), data.batch_size, world.size, drop_last=data.drop_last,
                   image_size=augmentation.image_size)  # fmt: skip
    loader = TrainLoader(pictures, data, augmentation, world=world, seed=seed, pin_memory=accelerator.pin_memory)
    layout = accelerator.memory_format(config.training.channels_last)
    model = opened.model.to(accelerator.device).to(memory_format=layout)
    amp, _ = choose_amp(accelerator, asked_precision(config.training))
    batches = loader.epoch(0)
    seen = recompute_statistics(
        model,
        track(batches, "BatchNorm statistics", loader.steps_per_epoch) if world.is_main else batches,
        normalise=Normalise(augmentation, layout),
        precision=Precision(accelerator, accelerator.amp_dtype(amp)),
        world=world,
    )
    if world.is_main:
        say(f"BatchNorm statistics of {seen * world.size} training pictures, {augmentation.image_size} px")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return Weights(state, opened.info, tensors=len(state))
