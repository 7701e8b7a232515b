from __future__ import annotations

import io
import os
import pickle
import random
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import class_folders, encoded, photos
from PIL import Image
from temporary import NewFolder
from torch import nn

from inception_v4.accelerator import select
from inception_v4.accelerator.precision import Precision
from inception_v4.data.augment import seeded
from inception_v4.data.loader import Batch, EvalLoader, TrainLoader
from inception_v4.data.normalise import Normalise
from inception_v4.data.pictures import CorruptImage
from inception_v4.data.sources import FolderSource, Source
from inception_v4.data.views import eval_transform
from inception_v4.data.workers import WorkerDied
from inception_v4.distributed import World
from inception_v4.inference.evaluate import evaluate
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.schema import Augmentation, Data

STRONG = Augmentation(image_size=75, auto_augment="randaug-m9-n2", re_prob=0.5, vflip=0.5)
PLAIN = Augmentation(image_size=75, train_crop="centre", hflip=0)


@pytest.fixture(scope="module")
def pictures(module_folder: NewFolder) -> FolderSource:
    """27 photographs of odd sizes, among them a grey and a CMYK one and a PNG that calls itself JPEG."""
    root = module_folder("pictures")
    files = list(photos(24))
    first = Image.open(io.BytesIO(files[0]))
    files += [encoded(first.convert("L")), encoded(first.convert("CMYK")), encoded(first.resize((61, 40)), "PNG")]
    for i, data in enumerate(files):
        folder = root / "abc"[i % 3]
        folder.mkdir(exist_ok=True)
        (folder / f"{i:02d}.JPEG").write_bytes(data)
    return FolderSource(root)


def _loader(
    source: Source, augmentation: Augmentation = STRONG, *, world: World | None = None, seed: int = 1, **settings
):
    data = Data(**{"batch_size": 4, "workers": 0} | settings)
    return TrainLoader(source, data, augmentation, world=world or World(), seed=seed)


def _same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    def equal(x: Batch, y: Batch) -> bool:
        return all(torch.equal(getattr(x, n), getattr(y, n)) for n in ("images", "labels", "indices", "erase"))

    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def _pairs(batch: Batch) -> list[tuple[int, bytes]]:
    return [(int(i), image.numpy().tobytes()) for i, image in zip(batch.indices, batch.images, strict=True)]


def _samples(batches: Sequence[Batch]) -> dict[int, bytes]:
    return {index: image for batch in batches for index, image in _pairs(batch)}


def test_workers_change_nothing(pictures: FolderSource) -> None:
    alone = _loader(pictures)
    expected = [list(alone.epoch(e)) for e in range(2)]
    for workers in (1, 2):
        loader = _loader(pictures, workers=workers)
        assert _same(list(loader.epoch(0)), expected[0])
        assert _same(list(loader.epoch(1)), expected[1]), "persistent workers know the epoch"
    assert alone.steps_per_epoch == 6 == len(expected[0]) and alone.global_batch == 4
    assert expected[0][0].images.shape == (4, 3, 75, 75) and expected[0][0].images.dtype == torch.uint8


def test_epochs_and_seeds_differ(pictures: FolderSource) -> None:
    loader = _loader(pictures)
    first = list(loader.epoch(0))
    assert not _same(first, list(loader.epoch(1)))
    assert not _same(first, list(_loader(pictures, seed=2).epoch(0)))
    fixed = _loader(pictures, shuffle=False)
    a, b = list(fixed.epoch(0)), list(fixed.epoch(1))
    assert [x.indices.tolist() for x in a] == [list(range(k, k + 4)) for k in range(0, 24, 4)]
    assert not torch.equal(a[0].images, b[0].images), "same order, other augmentation"


def test_a_sample_does_not_depend_on_its_place(pictures: FolderSource) -> None:
    shuffled, ordered = (
        _loader(pictures, drop_last=False),
        _loader(pictures, shuffle=False, drop_last=False, batch_size=7),
    )
    a, b = _samples(list(shuffled.epoch(3))), _samples(list(ordered.epoch(3)))
    assert a == b and len(a) == 27
    assert a != _samples(list(ordered.epoch(4)))


@pytest.mark.parametrize("augmentation", [STRONG, STRONG.model_copy(update={"aug_repeats": 3})])
def test_processes_change_nothing(pictures: FolderSource, augmentation: Augmentation) -> None:
    alone = list(_loader(pictures, augmentation, batch_size=12, drop_last=False).epoch(2))
    for size in (2, 3):
        ranks = [
            list(
                _loader(
                    pictures, augmentation, batch_size=12 // size, drop_last=False, world=World(rank=r, size=size)
                ).epoch(2)
            )
            for r in range(size)
        ]
        assert len({len(batches) for batches in ranks}) == 1, "every process makes the same number of steps"
        for k, whole in enumerate(alone):
            together = [pair for rank in ranks for pair in _pairs(rank[k])]
            assert sorted(together) == sorted(_pairs(whole))


@pytest.mark.parametrize("workers", [0, 2])
def test_restart_in_the_middle(pictures: FolderSource, workers: int) -> None:
    expected = list(_loader(pictures).epoch(1))
    assert _same(list(_loader(pictures, workers=workers).epoch(1, start=16)), expected[4:])
    loader = _loader(pictures, workers=workers)
    interrupted = loader.epoch(0)
    next(interrupted)
    assert _same(list(loader.epoch(1)), expected), "an epoch that was left early leaves nothing behind"
    assert list(loader.epoch(1, start=24)) == []


def test_data_sets_can_be_sent_to_spawned_workers(pictures: FolderSource) -> None:
    dataset = _loader(pictures)._loader.dataset
    key = next(iter(_loader(pictures)._sampler))[0]
    (sent,), (here,) = pickle.loads(pickle.dumps(dataset))[key], dataset[key]
    assert torch.equal(sent.image, here.image)


def test_skipped_batches_are_not_read(pictures: FolderSource, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    load = FolderSource.load_box
    monkeypatch.setattr(FolderSource, "load_box", lambda self, i, *a, **k: read.append(i) or load(self, i, *a, **k))
    assert len(list(_loader(pictures).epoch(0, start=20))) == 1
    assert len(read) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_left_alone(pictures: FolderSource, workers: int) -> None:
    def states() -> list[bytes]:
        return [pickle.dumps(s) for s in (torch.get_rng_state().numpy(), np.random.get_state(), random.getstate())]

    before = states()
    list(_loader(pictures, workers=workers).epoch(0))
    list(EvalLoader(pictures, Preprocessing(75), batch_size=9, workers=workers, world=World()))
    assert states() == before
    torch.rand(1)
    assert states() != before
    torch.manual_seed(5)
    other = list(_loader(pictures).epoch(0))
    torch.manual_seed(6)
    assert _same(other, list(_loader(pictures).epoch(0))), "nor do they matter"


def test_seeded() -> None:
    with seeded(2**64 - 1):
        first = torch.rand(())
    with seeded(2**64 - 1):
        assert torch.rand(()) == first
    with seeded(2**64 - 2):
        assert torch.rand(()) != first


@pytest.mark.parametrize("workers", [0, 1])
def test_the_values_of_a_pixel_are_together(pictures: FolderSource, workers: int) -> None:
    """Nothing has to be moved for a device that likes channels last."""
    batch = next(_loader(pictures, Augmentation(image_size=75), workers=workers).epoch(0))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_scaled_decoding_is_for_large_crops_alone(pictures: FolderSource) -> None:
    def images(how: Augmentation, **settings: bool) -> torch.Tensor:
        return torch.cat([b.images for b in _loader(pictures, how, **settings).epoch(0)]).int()

    small = Augmentation(image_size=75)
    exact, other = images(small, scaled_decoding=False), images(small.model_copy(update={"scale": (0.09, 1.0)}))
    difference = (images(small) - exact).abs().float().mean()
    assert 0 < difference < 8, "photographs of 500 pixels at 75: edges may move by half a pixel"
    assert (other - exact).abs().float().mean() > difference
    for how in (Augmentation(image_size=299, scale=(0.08, 0.2)), small.model_copy(update={"antialias": False})):
        assert torch.equal(images(how), images(how, scaled_decoding=False))


def test_short_last_batch(pictures: FolderSource) -> None:
    loader = _loader(pictures, PLAIN, drop_last=False)
    assert [len(b) for b in loader.epoch(0)] == [4] * 6 + [3] and loader.steps_per_epoch == 7
    ranks = [
        list(_loader(pictures, PLAIN, batch_size=5, drop_last=False, world=World(rank=r, size=5)).epoch(0))
        for r in range(5)
    ]
    assert [len(rank[-1]) for rank in ranks] == [1] * 5, "2 pictures for 5 processes: none goes without"
    assert {int(rank[-1].indices) for rank in ranks} == set(range(27)) - {
        int(i) for rank in ranks for i in rank[0].indices
    }


def test_too_few_pictures_for_a_batch(pictures: FolderSource) -> None:
    with pytest.raises(ValueError, match=r"a batch of 28 \(batch_size 14 x 2 processes\) is more than the 27"):
        _loader(pictures, batch_size=14, world=World(rank=0, size=2))
    assert _loader(pictures, batch_size=14, world=World(rank=0, size=2), drop_last=False).steps_per_epoch == 1
    with pytest.raises(ValueError, match="auto_augment 'nonsense' is unknown"):
        _loader(pictures, Augmentation(auto_augment="nonsense"))


def test_repeated_augmentation(pictures: FolderSource) -> None:
    loader = _loader(pictures, STRONG.model_copy(update={"aug_repeats": 3}), batch_size=9)
    assert loader.steps_per_epoch == 3, "an epoch is as long as without"
    batches = list(loader.epoch(0))
    counts = Counter(int(i) for b in batches for i in b.indices)
    assert set(counts.values()) == {3} and len(counts) == 9
    draws = {pair for batch in batches for pair in _pairs(batch)}
    assert len(draws) == 27, "each draw is another"
    assert set(counts) != {int(i) for b in loader.epoch(1) for i in b.indices}
    with pytest.raises(ValueError, match="aug_repeats 3 with shuffle off"):
        _loader(pictures, STRONG.model_copy(update={"aug_repeats": 3}), shuffle=False)


@pytest.fixture
def damaged(tmp_path: Path) -> FolderSource:
    """Eight pictures, of which numbers 2, 3 and 7 are damaged."""
    class_folders(tmp_path, {"a": 4, "b": 4})
    for name in ("a/002.jpg", "a/003.jpg", "b/003.jpg"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-300])
    return FolderSource(tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_stops_with_one_line(damaged: FolderSource, workers: int) -> None:
    for batches in (
        _loader(damaged, PLAIN, workers=workers).epoch(0),
        EvalLoader(damaged, Preprocessing(75), batch_size=4, workers=workers, world=World()),
    ):
        with pytest.raises(
            CorruptImage, match=r"^cannot decode .*00[23]\.jpg \(.*truncated.*--on-corrupt skip$"
        ) as error:
            list(batches)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_replaces_corrupt_pictures(damaged: FolderSource, workers: int) -> None:
    loader = _loader(damaged, PLAIN, workers=workers, on_corrupt="skip", shuffle=False)
    first, second = loader.epoch(0)
    assert first.indices.tolist() == [0, 1, 4, 4] and second.indices.tolist() == [4, 5, 6, 0]
    assert first.labels.tolist() == [0, 0, 1, 1]
    assert len(first.skipped) == 3 and len(second.skipped) == 1 and loader.skipped == first.skipped + second.skipped
    assert "a/002.jpg" in first.skipped[0]


def test_nothing_readable(damaged: FolderSource) -> None:
    for i in range(8):
        Path(damaged.name(i)).write_bytes(b"")
    with pytest.raises(CorruptImage, match=r"8 pictures in a row cannot be read; the first: .*the file is empty"):
        list(_loader(damaged, PLAIN, on_corrupt="skip").epoch(0))
    loader = EvalLoader(damaged, Preprocessing(75), batch_size=4, workers=0, world=World(), on_corrupt="skip")
    assert [(len(b), len(b.skipped)) for b in loader] == [(0, 4), (0, 4)] and len(loader.skipped) == 8


def test_evaluation_leaves_corrupt_pictures_out(damaged: FolderSource) -> None:
    loader = EvalLoader(damaged, Preprocessing(75), batch_size=2, workers=1, world=World(), on_corrupt="skip")
    assert [b.indices.tolist() for b in loader] == [[0, 1], [], [4, 5], [6]]
    assert len(loader.skipped) == 3


def test_a_batch_of_unreadable_pictures_is_counted(damaged: FolderSource) -> None:
    """Pictures 2 and 3 are a batch, and 7 is half of one."""
    how = Preprocessing(75)
    result = evaluate(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 75 * 75, 2)),
        EvalLoader(damaged, how, batch_size=2, workers=0, world=World(), on_corrupt="skip"),
        prepare=Normalise(Augmentation(image_size=75)),
        precision=Precision(select("cpu")),
        world=World(),
        batch_size=2,
    )
    assert result.samples == 5
    assert [Path(damaged.name(i)).name in message for i, message in zip((2, 3, 7), result.skipped, strict=True)]
    assert len(result.skipped) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vanished_file_is_an_error_in_any_case(damaged: FolderSource, workers: int) -> None:
    Path(damaged.name(0)).unlink()
    with pytest.raises(FileNotFoundError, match=r"a/000\.jpg"):
        list(_loader(damaged, PLAIN, workers=workers, on_corrupt="skip").epoch(0))


def test_evaluation_sees_every_picture_once(pictures: FolderSource) -> None:
    how = Preprocessing(75)
    alone = list(EvalLoader(pictures, how, batch_size=8, workers=2, world=World()))
    assert [i for b in alone for i in b.indices.tolist()] == list(range(27)) and len(alone) == 4
    assert torch.equal(alone[1].images[2], eval_transform(how)(pictures.load(10)))
    assert alone[3].labels.tolist() == pictures.labels[24:] and alone[0].erase is None
    for size in (2, 3, 30):
        ranks = [
            list(EvalLoader(pictures, how, batch_size=8, workers=0, world=World(rank=r, size=size)))
            for r in range(size)
        ]
        for r, batches in enumerate(ranks):
            assert [i for b in batches for i in b.indices.tolist()] == list(range(r, 27, size))
        assert _samples(alone) == _samples([b for batches in ranks for b in batches])


def test_evaluation_can_be_repeated(pictures: FolderSource) -> None:
    loader = EvalLoader(pictures, Preprocessing(75), batch_size=8, workers=1, world=World())
    assert _samples(list(loader)) == _samples(list(loader)) and len(loader) == 4


class _Probe(Source):
    """Says in the label how many torch threads the worker has, whether it ignores Ctrl-C and has a device open."""

    class_names = ("x",)
    labels = [0] * 8

    def load(self, index: int, *, exif_rotation: bool = True) -> torch.Tensor:
        facts = (
            torch.get_num_threads(),
            signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            torch.cuda.is_initialized(),
        )
        return torch.tensor(facts, dtype=torch.uint8).view(3, 1, 1).expand(3, 90, 90)

    def name(self, index: int) -> str:
        return "probe"


def test_worker_processes() -> None:
    batch = next(iter(EvalLoader(_Probe(), Preprocessing(75), batch_size=4, workers=1, world=World())))
    assert batch.images[0, :, 0, 0].tolist() == [1, 1, 0]


class _Fatal(_Probe):
    def load(self, index: int, *, exif_rotation: bool = True) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_worker_is_a_clear_error() -> None:
    with pytest.raises(WorkerDied, match=r"DataLoader worker \(pid.*lower workers or batch_size, or .*--shm-size"):
        list(EvalLoader(_Fatal(), Preprocessing(75), batch_size=4, workers=1, world=World()))


def test_default_number_of_workers(pictures: FolderSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(cpus: int, local: int) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
        world = World(rank=0, size=local, local_size=local)
        return _loader(pictures, batch_size=1, workers=None, world=world)._loader.num_workers

    assert [count(*pair) for pair in ((1, 1), (2, 1), (2, 2), (64, 1), (64, 8), (64, 16), (4, 8))] == [
        1,
        2,
        1,
        8,
        8,
        4,
        1,
    ]


def test_moving_a_batch(pictures: FolderSource) -> None:
    batch = next(_loader(pictures).epoch(0))
    moved = batch.to("meta")
    assert moved.images.device.type == moved.erase.device.type == "meta" and moved.labels.shape == (4,)
