"""A greedy soup: weights are averaged as long as the validation pictures are named no worse.

"Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time"
(Wortsman et al. 2022), recipe 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inception_v4.accelerator import Accelerator
from inception_v4.accelerator.precision import choose_amp
from inception_v4.data.loader import EvalLoader
from inception_v4.distributed import World
from inception_v4.inference.ensemble import ready
from inception_v4.inference.evaluate import Evaluation
from inception_v4.inference.network import TORCH, open_network
from inception_v4.inference.validate import asked_precision, evaluate_ready, labelled_pictures
from inception_v4.settings.schema import Config
from inception_v4.weights import Weights
from inception_v4.weights.average import WeightsSum

Judge = Callable[[Weights], Evaluation]


def judge_of(config: Config, source: str, weights: Weights, *, accelerator: Accelerator, world: World) -> Judge:
    """Validates weights of one kind on the same pictures each time.

    Args:
        config: says which pictures, else the record of `weights` does.
        source: what `weights` are called.
    """
    labelled = labelled_pictures(config, source, weights.info, world)
    given = config.augmentation.given_preprocessing()
    batch_size = config.data.val_batch_size or config.data.batch_size
    amp, _ = choose_amp(accelerator, asked_precision(config.training))

    def judge(weights: Weights) -> Evaluation:
        network = open_network(weights, accelerator, runtime=TORCH)
        it = ready([network], given, amp=amp, batch_size=batch_size)
        loader = EvalLoader(
            labelled.pictures, it.preprocessing, batch_size=batch_size, workers=config.data.workers, world=world,
            on_corrupt=config.data.on_corrupt, pin_memory=accelerator.pin_memory,
        )  # fmt: skip
        return evaluate_ready(it, loader, world)

    return judge


def greedy_soup(
    sources: list[str], read: Callable[[str], Weights], judge: Judge, *, say: Callable[[str], None]
) -> WeightsSum:
    """The best of the weights, and of the others, best first, those that do not lower its top-1.

    Where pictures have several classes their mean average precision stands in for top-1.

    Args:
        sources: two or more.
        read: weights by their source; each is read up to three times, and at most two are in memory.
        judge: figures of weights.
        say: takes a line for people about each.
    """
    alone = {}
    for source in sources:
        figure, alone[source] = judge(read(source)).merit
        say(f"{Path(source).name}: {figure} {alone[source]:.2f} %")
    first, *others = sorted(sources, key=lambda source: -alone[source])  # equals stay in the order given
    soup, best = WeightsSum.of(read(first), first), alone[first]
    for source in others:
        larger = soup.plus(read(source), source)
        figure, value = judge(larger.mean()).merit
        kept = value >= best
        say(f"{len(larger.names)} with {Path(source).name}: {figure} {value:.2f} %, {'kept' if kept else 'left out'}")
        soup, best = (larger, value) if kept else (soup, best)
    return soup
