"""What is kept of each picture: exact, complete, and the same however many processes looked."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inception_v4.accelerator import select
from inception_v4.accelerator.precision import Precision
from inception_v4.data.loader import Batch
from inception_v4.distributed import World
from inception_v4.inference.evaluate import Evaluation, evaluate
from inception_v4.inference.metrics import class_scores, class_table, reliability
from inception_v4.inference.predictions import read_predictions, write_predictions


class Meeting:
    """Where threads that stand for processes hand their values to each other."""

    def __init__(self, size: int) -> None:
        self._barrier, self._values = threading.Barrier(size, timeout=60), [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._barrier.wait()
        self._values[rank] = value
        self._barrier.wait()
        return list(self._values)


@dataclass(frozen=True)
class ThreadWorld(World):
    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def gather(self, values: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, values)

    gather_objects = gather


def outputs(count: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [count, classes] of which about half are right, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = 2 * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 2
    return logits, labels


def scored(logits: torch.Tensor, labels: torch.Tensor, world: World, batch_size: int = 4) -> Evaluation:
    """The figures of outputs, of which this process has every `world.size`-th."""

    def batches() -> Iterator[Batch]:
        for part in torch.arange(world.rank, len(labels), world.size).split(batch_size):
            yield Batch(logits[part], labels[part], part)

    return evaluate(
        lambda rows: rows, batches(), prepare=lambda rows: rows, precision=Precision(select("cpu")), world=world,
        batch_size=batch_size,
    )  # fmt: skip


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_rows_are_numpys(tmp_path: Path, classes: int) -> None:
    logits, labels = outputs(23, classes)
    result = scored(logits, labels, World())
    file = tmp_path / "p.jsonl"
    names = tuple(f"class {k}" for k in range(classes))
    write_predictions(file, result, lambda i: f"picture {i}", classes=names, weights_sha256="ab")
    head, *rows = [json.loads(line) for line in file.read_text().splitlines()]
    odds = np.exp(logits.double().numpy())
    odds /= odds.sum(1, keepdims=True)
    order = np.argsort(-odds, axis=1)[:, :5]
    assert head == {"classes": list(names), "weights_sha256": "ab", "top1": result.top1, "samples": 23}
    assert [row["path"] for row in rows] == [f"picture {i}" for i in range(23)]
    assert [row["label"] for row in rows] == labels.tolist()
    assert [[k for k, _ in row["top"]] for row in rows] == order.tolist()
    found = [[p for _, p in row["top"]] for row in rows]
    assert np.array(found) == pytest.approx(np.take_along_axis(odds, order, 1), rel=1e-5)
    assert [row["prob_label"] for row in rows] == pytest.approx(odds[np.arange(23), labels.numpy()], rel=1e-5)
    read = read_predictions(file)
    assert (read.classes, read.weights_sha256, read.top1) == (names, "ab", result.top1)
    assert [(p.label, [list(pair) for pair in p.top]) for p in read.pictures] == [(r["label"], r["top"]) for r in rows]
    right = sum(row["top"][0][0] == row["label"] for row in rows)
    assert 0 < right < 23 and result.top1 == pytest.approx(100 * right / 23)
    assert read.top5 == pytest.approx(result.top5) and read.num_classes == result.num_classes
    assert torch.equal(read.top, result.top) and torch.equal(read.labels, result.labels)
    assert class_scores(read, names) == class_scores(result, names)
    assert reliability(read).ece == pytest.approx(reliability(result).ece, rel=1e-5)
    write_predictions(file, result, str, classes=None, weights_sha256=None)
    assert read_predictions(file).names == tuple(map(str, range(classes)))


@pytest.mark.parametrize("count", [2, 22])
def test_processes_put_together_what_one_sees(count: int) -> None:
    """Of two pictures the third process has none."""
    logits, labels = outputs(count, 6)
    alone, meeting = scored(logits, labels, World()), Meeting(3)
    with ThreadPoolExecutor(3) as pool:
        worlds = [ThreadWorld(rank, 3, meeting=meeting) for rank in range(3)]
        together = list(pool.map(lambda world: scored(logits, labels, world), worlds))
    for result in together:
        for name in ("labels", "indices", "top", "probabilities", "losses"):
            assert torch.equal(getattr(result, name), getattr(alone, name)), name
        assert result.record() == alone.record() and result.samples == count
        assert result.num_classes == alone.num_classes and class_table(result, None) == class_table(alone, None)
    other = scored(logits + torch.randn(logits.shape), labels, World())
    assert not torch.equal(other.probabilities, alone.probabilities)


def test_files_are_named_from_the_root_and_any_name_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"caf\xe9 \xff.jpg")
    Path(odd).write_bytes(b"")
    write_predictions(
        Path("p.jsonl"), scored(*outputs(2, 3), World()), lambda i: (odd, "drawn 1")[i], classes=None,
        weights_sha256=None,
    )  # fmt: skip
    assert [picture.path for picture in read_predictions(Path("p.jsonl")).pictures] == [str(tmp_path / odd), "drawn 1"]


@pytest.mark.parametrize("text", ["", "{}\n", "x", "[1]\n", "{lines}", "{cut}"])
def test_damaged_files_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "p.jsonl"
    write_predictions(file, scored(*outputs(3, 3), World()), str, classes=None, weights_sha256=None)
    assert len(read_predictions(file).pictures) == 3
    whole = file.read_text()
    file.write_text({"{lines}": "\n".join(whole.splitlines()[:-1]), "{cut}": whole[:-9]}.get(text, text))
    with pytest.raises(ValueError, match=r"p\.jsonl holds no predictions, or is damaged .*: validate again"):
        read_predictions(file)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"label": 3}, "class 3 of 3"),
        ({"label": -1}, "class -1 of 3"),
        ({"top": [[0, 1.0]]}, "rows of 1 and 3 classes"),
    ],
)
def test_classes_that_cannot_be_are_damage(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    file = tmp_path / "p.jsonl"
    write_predictions(file, scored(*outputs(3, 3), World()), str, classes=tuple("abc"), weights_sha256=None)
    head, first, *rows = file.read_text().splitlines()
    file.write_text("\n".join([head, json.dumps(json.loads(first) | changed), *rows]))
    with pytest.raises(ValueError, match=reason):
        read_predictions(file)
