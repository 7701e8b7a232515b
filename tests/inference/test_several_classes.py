"""Figures of pictures with several classes: scikit-learn's, and the same however many processes looked."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support
from test_predictions import Meeting, ThreadWorld, scored

from inception_v4.distributed import World
from inception_v4.inference.ensemble import _mean
from inception_v4.inference.evaluate import Evaluation
from inception_v4.inference.predictions import read_predictions, save_predictions
from inception_v4.inference.several_classes import average_precision

CLASSES = 6


def answers(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [count, 6], some of them equal, and labels of 1 to 3 of the first four classes."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((count, 4), dtype=np.uint8)
    for row in labels:
        row[rng.choice(4, rng.integers(1, 4), replace=False)] = 1
    logits = np.round(rng.normal(-1, 1.5, (count, CLASSES)), 1)
    logits[:, :4] += 1.5 * labels
    logits += np.arange(CLASSES) / 1000  # equal ones of one class, not of one picture
    logits[:, 5] = -9.0
    return torch.from_numpy(logits).float(), torch.from_numpy(labels)


@pytest.fixture(scope="module")
def result() -> Evaluation:
    return scored(*answers(200), World(), batch_size=32)


def test_figures_are_scikit_learns(result: Evaluation) -> None:
    logits, labels = answers(200)
    truth = np.pad(labels.numpy(), ((0, 0), (0, 2)))
    taken = (logits >= 0).numpy()
    scores = average_precision_score(truth[:, :4], logits[:, :4].numpy(), average=None)
    found = result.figures(None)
    assert found["map"] == pytest.approx(100 * scores.mean()) and 40 < found["map"] < 95
    assert found["macro_f1"] == pytest.approx(100 * f1_score(truth[:, :4], taken[:, :4], average="macro"))
    assert found["micro_f1"] == pytest.approx(100 * f1_score(truth, taken, average="micro"))
    precision, recall, f1, _ = precision_recall_fscore_support(truth[:, :4], taken[:, :4])
    assert [row["class"] for row in found["per_class"]] == ["0", "1", "2", "3"]
    for k, row in enumerate(found["per_class"]):
        assert row["ap"] == pytest.approx(100 * scores[k]) and row["f1"] == pytest.approx(100 * f1[k])
        assert (row["precision"], row["recall"]) == pytest.approx((100 * precision[k], 100 * recall[k]))
    hits = truth[np.arange(200), logits.argmax(1).numpy()]
    assert found["top1"] == pytest.approx(100 * hits.mean()) and 20 < found["top1"] < 99
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(truth).float())
    assert found["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_of_equal_outputs_the_one_that_is_ranked_first_is_the_label() -> None:
    result = scored(torch.zeros(40, 3), torch.tensor([[1, 1, 1]] * 40, dtype=torch.uint8), World())
    assert result.top1 == 100.0
    assert scored(torch.zeros(40, 3), torch.tensor([[0, 0, 1]] * 40, dtype=torch.uint8), World()).top5 == 100.0


def test_equal_scores_count_together_and_no_target_has_no_precision() -> None:
    scores, targets = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([False, True, True])
    assert average_precision(scores, targets) == average_precision_score(targets, scores) != 1
    assert average_precision(scores, targets) == average_precision(scores.flip(0), targets[[2, 1, 0]])
    assert np.isnan(average_precision(scores, torch.zeros(3, dtype=torch.bool)))


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_find_the_same_bits(result: Evaluation, size: int) -> None:
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as threads:
        worlds = [ThreadWorld(rank, size, meeting=meeting) for rank in range(size)]
        parts = list(threads.map(lambda world: scored(*answers(200), world, batch_size=32), worlds))
    for part in parts:
        assert part.figures(None) == result.figures(None)
        assert part.several and result.several and torch.equal(part.several.logits, result.several.logits)
    other = scored(*answers(200, seed=1), World())
    assert other.record()["map"] != result.record()["map"]


def test_a_process_without_pictures_takes_part() -> None:
    meeting = Meeting(3)
    with ThreadPoolExecutor(3) as threads:
        worlds = [ThreadWorld(rank, 3, meeting=meeting) for rank in range(3)]
        parts = list(threads.map(lambda world: scored(*answers(2), world), worlds))
    assert parts[2].record() == scored(*answers(2), World()).record()


def test_rows_of_pictures_have_all_their_classes(result: Evaluation, tmp_path: Path) -> None:
    logits, labels = answers(200)
    save_predictions(tmp_path / "p.jsonl", result, str, classes=None, weights_sha256=None)
    rows = read_predictions(tmp_path / "p.jsonl").pictures
    assert [row.labels for row in rows] == [tuple(row.nonzero()[:, 0].tolist()) for row in labels]
    for row, outputs in zip(rows, logits, strict=True):
        assert row.labels and row.label == max(row.labels, key=lambda k: (float(outputs[k]), -k))
        assert row.prob_label == pytest.approx(float(outputs[row.label].sigmoid()), rel=1e-5)
    names = tuple("abcdef")
    save_predictions(tmp_path / "p.csv", result, str, classes=names, weights_sha256=None)
    head, first, *_ = (line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines())
    assert first[head.index("labels")] == "|".join(names[k] for k in rows[0].labels or ())
    save_predictions(tmp_path / "p.parquet", result, str, classes=names, weights_sha256=None)
    assert [tuple(r["labels"]) for r in parquet.read_table(tmp_path / "p.parquet").to_pylist()] == [
        row.labels for row in rows
    ]
    json.dumps(result.figures(names))


def test_the_mean_of_several_is_that_of_the_probabilities() -> None:
    outputs = torch.tensor([[[30.0, -30.0, 0.3]], [[2.0, -40.0, -1.0]]])
    networks = [lambda images, one=one: one.expand(len(images), -1) for one in outputs]
    mean = _mean(networks, mirrored=False, batch_size=4, multi_label=True)(torch.zeros(2, 1, 1, 1))
    assert mean.sigmoid().numpy() == pytest.approx(outputs.sigmoid().mean(0).expand(2, -1).numpy(), rel=1e-5)
    assert bool(torch.isfinite(mean).all())
