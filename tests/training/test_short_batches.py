"""The last batch of an epoch over several processes: every picture counts as much as in one process."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from inception_v4.accelerator import select
from inception_v4.accelerator.precision import Precision
from inception_v4.data.loader import Batch
from inception_v4.data.mixing import MixAndErase
from inception_v4.data.normalise import Normalise
from inception_v4.settings.schema import Augmentation
from inception_v4.training.schedule import Course
from inception_v4.training.step import Learner, make_criterion, optimizer_step

PICTURES = 5


class InDouble(Normalise):
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return super().__call__(images).double()


@pytest.mark.parametrize(("samples", "batch", "accum_steps"), [(5, 6, 1), (11, 6, 2), (13, 6, 4), (1, 6, 1)])
def test_shares_make_the_mean_over_all_pictures(samples: int, batch: int, accum_steps: int) -> None:
    values = torch.rand(samples, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for world in (1, 2, 3, 6):
        mean = 0.0
        for rank in range(world):
            course = Course(samples, batch, accum_steps, drop_last=False)
            parts = list(values.split(batch))[:accum_steps]
            for part, share in zip(parts, course.shares(len(parts), rank, world), strict=True):
                mine = part[rank::world] if rank < len(part) else part[:1]
                mean += float(mine.mean()) * share / world
        assert mean == pytest.approx(float(values[: batch * accum_steps].mean()), rel=1e-12)


def test_two_processes_with_unequal_parts_make_the_step_of_one() -> None:
    """DistributedDataParallel takes the plain mean of gradients; without BatchNorm pictures do not see each other."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (PICTURES, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 1, 0])
    start = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()
    how, accelerator = Augmentation(), select("cpu")

    def change(rank: int, processes: int, course: Course) -> tuple[torch.Tensor, float]:
        """Of the kernels by a step, and the loss that is logged."""
        model = copy.deepcopy(start)
        learner = Learner(
            model, model, torch.optim.SGD(model.parameters(), 0.1),
            accelerator.grad_scaler(None, "dynamic"), lambda step: 0.1, make_criterion("ce", 0.1), InDouble(how),
            MixAndErase(how, num_classes=3), Precision(accelerator), course, rank=rank, processes=processes,
        )  # fmt: skip
        mine = slice(rank, None, processes)
        loss = optimizer_step(learner, [Batch(images[mine], labels[mine], torch.arange(PICTURES)[mine])], epoch=0)
        return model[0].weight.detach() - start[0].weight.detach(), float(loss)

    whole, loss = change(0, 1, Course(PICTURES, 6, drop_last=False))
    changes, losses = zip(*(change(rank, 2, Course(PICTURES, 6, drop_last=False)) for rank in (0, 1)), strict=True)
    torch.testing.assert_close(sum(changes) / 2, whole, rtol=1e-5, atol=1e-8)
    assert sum(losses) / 2 == pytest.approx(loss, rel=1e-6)
    # Parts of equal weight are another step.
    changes = [change(rank, 2, Course(6, 6, drop_last=False))[0] for rank in (0, 1)]
    assert not torch.allclose(sum(changes) / 2, whole, rtol=1e-3)


def test_whole_batches_weigh_what_they_did_to_the_last_bit() -> None:
    for world, accum_steps in itertools.product((2, 3, 7), (1, 2, 3, 5)):
        course = Course(1000, 4 * world, accum_steps)
        assert course.shares(accum_steps, world - 1, world) == [4 / (4 * accum_steps)] * accum_steps
