"""Batches too small for BatchNorm are refused before a run starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from photos import class_folders

from inception_v4.cli.main import run
from inception_v4.data.order import EpochSampler
from inception_v4.distributed import World
from inception_v4.network.model import InceptionV4
from inception_v4.settings.schema import Data
from inception_v4.training.smallest import check_smallest, last_map, smallest_batch


def batches(pictures: int, batch_size: int, processes: int, *, drop_last: bool) -> list[int]:
    """Sizes of all batches of all processes, from the sampler that training uses."""
    data = Data(batch_size=batch_size, drop_last=drop_last)
    worlds = [World(rank=rank, size=processes) for rank in range(processes)]
    return [len(batch) for world in worlds for batch in EpochSampler(pictures, data, 1, world=world, seed=0)]


@pytest.mark.parametrize("drop_last", [True, False])
def test_smallest_batch_is_the_samplers(drop_last: bool) -> None:
    for pictures in range(1, 41):
        for batch_size in range(1, 12):
            for processes in (1, 2, 3):
                if drop_last and batch_size * processes > pictures:
                    continue
                sizes = batches(pictures, batch_size, processes, drop_last=drop_last)
                assert smallest_batch(pictures, batch_size, processes, drop_last=drop_last) == min(sizes)


def test_what_is_refused_and_what_is_advised() -> None:
    refused = 0
    for pictures in range(1, 40):
        for batch_size in range(1, 12):
            for processes in (1, 2, 3):
                smallest = smallest_batch(pictures, batch_size, processes, drop_last=False)
                if smallest > 1:
                    check_smallest(pictures, batch_size, processes, drop_last=False, image_size=75)
                    continue
                with pytest.raises(
                    ValueError, match=r"has one picture.*BatchNorm has no variance at image_size 75"
                ) as e:
                    check_smallest(pictures, batch_size, processes, drop_last=False, image_size=75)
                refused += 1
                check_smallest(pictures, batch_size, processes, drop_last=False, image_size=107)
                if advised := re.search(r"give batch_size (\d+)", str(e.value)):
                    assert min(batches(pictures, int(advised[1]), processes, drop_last=False)) > 1
                if "drop_last true" in str(e.value):
                    assert min(batches(pictures, batch_size, processes, drop_last=True)) > 1
                assert str(e.value).endswith("image_size 107")
    assert refused > 100
    with pytest.raises(
        ValueError, match=r"a batch has one picture \(9 pictures, batch_size 1 x 1\).*give batch_size 2 or"
    ):
        check_smallest(9, 1, 1, drop_last=True, image_size=75)


@pytest.mark.parametrize("size", [75, 106, 107, 128])
def test_the_last_map_decides(size: int) -> None:
    """The same sizes that the network itself refuses."""
    model = InceptionV4(3).train()
    picture = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        if last_map(size) == 1:
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                model.features(picture)
        else:
            assert model.features(picture).shape[-1] == last_map(size)


@pytest.mark.slow
def test_nine_pictures_in_batches_of_eight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("train", 3), ("val", 1)):
        class_folders(tmp_path / "nine" / name, {"a": count, "b": count, "c": count})
    words = ["train", "--data-dir", str(tmp_path / "nine"), "--device", "cpu", "--workers", "0", "--image-size", "75"]
    words += ["--batch-size", "8", "--no-drop-last", "--output-dir", str(tmp_path / "run")]
    assert run(words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the last batch of an epoch has one picture (9 pictures, batch_size 8 x 1)" in said
    assert said.endswith("give batch_size 7, drop_last true or image_size 107")
    assert not (tmp_path / "run").exists(), "nothing is left in the way of the next attempt"
    assert run([*words, "--max-steps", "1"]) == 0, "over before the last batch"
