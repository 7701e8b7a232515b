"""Figures beside top-1 against scikit-learn, and the files that a validation can leave."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_networks import NAMES, linear_network, noise
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from test_predictions import outputs, scored
from timm.data import ImageNetInfo

from inception_v4.cli.main import run
from inception_v4.data.labelled import ArraySource
from inception_v4.distributed import World
from inception_v4.inference.confusion import write_confusion
from inception_v4.inference.evaluate import Evaluation
from inception_v4.inference.metrics import class_scores, class_table, confusion, reliability
from inception_v4.inference.predictions import read_predictions, save_predictions
from inception_v4.inference.real_labels import RealLabels
from inception_v4.inference.results import ResultOptions
from inception_v4.inference.validate import match_labels, only_classes
from inception_v4.preprocessing import Preprocessing

CLASSES = 7


@pytest.fixture(scope="module")
def result() -> Evaluation:
    """300 pictures in classes 0 to 5; 6 is only answered, and 2 never."""
    logits, labels = outputs(300, CLASSES)
    labels = labels % 6
    logits[:, 2] = -20
    return scored(logits, labels, World(), batch_size=64)


def test_figures_of_classes_are_scikit_learns(result: Evaluation) -> None:
    labels, predicted = result.labels.numpy(), result.predicted.numpy()
    assert np.array_equal(confusion(result).numpy(), confusion_matrix(labels, predicted, labels=range(CLASSES)))
    rows = class_table(result, None)
    present = [int(row["class"]) for row in rows]
    assert present == [0, 1, 2, 3, 4, 5] and 6 in predicted
    precision, recall, f1, samples = precision_recall_fscore_support(
        labels, predicted, labels=present, zero_division=np.nan
    )
    for k, row in enumerate(rows):
        assert row["samples"] == samples[k] and row["top1"] == pytest.approx(100 * recall[k])
        assert (
            row["precision"] is None
            if np.isnan(precision[k])
            else row["precision"] == pytest.approx(100 * precision[k])
        )
        assert row["f1"] == pytest.approx(0 if np.isnan(f1[k]) else 100 * f1[k])
    assert rows[2]["precision"] is None and rows[2]["f1"] == 0
    only_answered = class_scores(result, None)[6]
    assert (only_answered.name, only_answered.recall, only_answered.top5, only_answered.f1) == ("6", None, None, 0)
    assert only_answered.precision == 0 and only_answered.pictures == 0
    macro = f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert result.figures(None)["macro_f1"] == pytest.approx(100 * macro)
    assert 10 < result.top1 < 90


def test_the_calibration_error_is_that_of_scikit_learns_bins(result: Evaluation) -> None:
    sure, right = result.probabilities[:, 0].numpy(), (result.predicted == result.labels).numpy()
    true, stated = calibration_curve(right, sure, n_bins=15, strategy="uniform")
    count = np.histogram(sure, np.linspace(0, 1, 16))[0]
    expected = 100 * (np.abs(true - stated) * count[count > 0]).sum() / len(sure)
    found = reliability(result)
    assert found.ece == pytest.approx(expected, rel=1e-5) and expected > 1
    assert found.counts.tolist() == count.tolist() and 0 in count
    assert found.accuracy.numpy()[count > 0] == pytest.approx(true)
    assert found.confidence.numpy()[count > 0] == pytest.approx(stated)
    certain = scored(torch.eye(4).repeat(5, 1) * 100, torch.arange(4).repeat(5), World())
    assert reliability(certain).ece == pytest.approx(0, abs=1e-6), "always sure and always right"
    wrong = scored(torch.eye(4).repeat(5, 1) * 100, (torch.arange(4).repeat(5) + 1) % 4, World())
    assert reliability(wrong).ece == pytest.approx(100)


def test_the_confusion_matrix_as_table_and_picture(result: Evaluation, tmp_path: Path) -> None:
    names = tuple(f"class {k}" for k in range(CLASSES))
    write_confusion(tmp_path / "m.csv", confusion(result), names)
    header, *rows = csv.reader((tmp_path / "m.csv").read_text().splitlines())
    assert header == ["label", *names] and [row[0] for row in rows] == list(names)
    assert [[int(n) for n in row[1:]] for row in rows] == confusion(result).tolist()
    write_confusion(tmp_path / "m.png", confusion(result), ("$no formula$", "{", "\\frac", *names[3:]))
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 300


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_predictions_in_every_form_say_the_same(result: Evaluation, tmp_path: Path, suffix: str) -> None:
    file, names = tmp_path / f"p{suffix}", tuple(f"class {k}" for k in range(CLASSES))
    save_predictions(file, result, lambda i: f"picture {i}", classes=names, weights_sha256="ab")
    if suffix == ".jsonl":
        rows = [(p.path, p.label, p.prob_label, p.top) for p in read_predictions(file).pictures]
    elif suffix == ".csv":
        number = {name: k for k, name in enumerate(names)}
        rows = [
            (r["path"], int(r["label_index"]), float(r["prob_label"]),
             tuple((number[r[f"class{k}"]], float(r[f"prob{k}"])) for k in range(1, 6)))
            for r in csv.DictReader(file.read_text().splitlines())
        ]  # fmt: skip
    else:
        from pyarrow import parquet

        table = parquet.read_table(file)
        assert json.loads(table.schema.metadata[b"inception_v4"])["weights_sha256"] == "ab"
        rows = [
            (r["path"], r["label"], r["prob_label"], tuple(zip(r["top"], r["probabilities"], strict=True)))
            for r in table.to_pylist()
        ]
        assert all(r["top_classes"] == [names[k] for k in r["top"]] for r in table.to_pylist())
    assert len(rows) == 300
    for index, (path, label, own, top) in enumerate(rows):
        assert (path, label) == (f"picture {index}", int(result.labels[index]))
        assert own == pytest.approx(float(torch.exp(-result.losses[index].double())), rel=1e-5)
        assert [k for k, _ in top] == result.top[index].tolist()
        assert [p for _, p in top] == pytest.approx(result.probabilities[index].tolist(), rel=1e-5)


def test_what_cannot_be_written_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"confusion m\.txt: give a file that ends in \.csv or \.png"):
        ResultOptions(confusion=Path("m.txt"))
    with pytest.raises(ValueError, match=r"predictions p\.json: give a file that ends in \.jsonl, \.csv, \.parquet"):
        ResultOptions(predictions=Path("p.json"))
    (tmp_path / "real.json").write_text("[[1], []]")
    with pytest.raises(ValueError, match=r"2 rows of labels, not ImageNet's 50000"):
        ResultOptions(real_labels=tmp_path / "real.json")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install 'inception-v4\[parquet\]'"):
        ResultOptions(predictions=Path("p.parquet"))


def test_reassessed_labels_by_hand(tmp_path: Path) -> None:
    """Picture 1 has labels 3 and 4, picture 2 none, picture 3 label 9, picture 4 label 0."""
    synsets = tuple(ImageNetInfo().label_names())
    (tmp_path / "real.json").write_text(json.dumps([[3, 4], [], [9], [0], *[[1]] * 49_996]))
    labels = RealLabels.read(tmp_path / "real.json")
    logits = torch.full((4, 1000), -9.0)
    for row, order in enumerate([(4, 3), (8, 7), (1, 2, 5, 6, 9), (1, 2, 3, 4, 5)]):
        logits[row, list(order)] = torch.arange(len(order), 0, -1).float()
    result = scored(logits, torch.tensor([3, 8, 9, 0]), World())
    name = lambda index: f"val/x/ILSVRC2012_val_{index + 1:08d}.JPEG"  # noqa: E731
    found = labels.score(result, name, synsets)
    assert found == {"real_top1": pytest.approx(100 / 3), "real_top5": pytest.approx(200 / 3), "real_samples": 3}
    # A network with its classes in another order answers with the same names.
    turned = scored(logits.flip(1), torch.tensor([996, 991, 990, 999]), World())
    assert labels.score(turned, name, synsets[::-1]) == found
    assert labels.score(turned, name, synsets) != found
    with pytest.raises(ValueError, match="not ImageNet's 1000 synsets"):
        labels.score(result, name, NAMES)
    with pytest.raises(ValueError, match=r"picture 0 is no validation picture of ImageNet"):
        labels.score(result, lambda index: f"picture {index}", synsets)


def test_a_network_restricted_to_the_datas_classes() -> None:
    logits, labels = outputs(40, 9)
    labels = labels % 3 * 2
    result = scored(logits, labels, World())
    kept = scored(only_classes(lambda rows: rows, labels.tolist())(logits), labels, World())
    by_hand = logits[:, [0, 2, 4]].softmax(1)
    assert torch.equal(kept.predicted, by_hand.argmax(1) * 2) and not torch.equal(kept.predicted, result.predicted)
    assert torch.allclose(kept.probabilities[:, 0], by_hand.max(1).values) and kept.top1 > result.top1


def test_folders_of_some_synsets_and_numbered_folders() -> None:
    def source(*names: str) -> ArraySource:
        images = np.zeros((len(names), 8, 8, 3), dtype=np.uint8)
        return ArraySource(images, np.arange(len(names)), class_names=names, title="drawn")

    synsets = tuple(ImageNetInfo().label_names())
    some = match_labels(source(synsets[7], synsets[900]), synsets, 1000, asked=None)
    assert some[0].labels == [7, 900] and some[1] == [], "ImageNet-A, -R"
    numbered = tuple(sorted(map(str, range(12))))  # 0, 1, 10, 11, 2, ..., as folders are listed
    for asked in (None, 12):
        pictures, remarks = match_labels(source(*numbered), tuple(f"n{k}" for k in range(12)), 12, asked=asked)
        assert pictures.labels == [int(name) for name in numbered], "ImageNet-V2"
        assert remarks == ["folders 0 to 11 are taken as indices of the network's classes"]
    with pytest.raises(ValueError, match="different names"):
        match_labels(source(*map(str, range(1, 13))), tuple(f"n{k}" for k in range(12)), 12, asked=None)


def test_validate_writes_what_it_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, data = linear_network(tmp_path / "a.onnx", 0, Preprocessing(image_size=75)), noise(tmp_path / "data")
    files = [tmp_path / "m.csv", tmp_path / "p.parquet"]
    words = ["validate", "--ckpt-path", str(network), f"--data-dir={data}", "--device=cpu", "--workers=0"]
    assert run([*words, f"--confusion={files[0]}", f"--save-predictions={files[1]}", "--per-class"]) == 0
    out, err = capsys.readouterr()
    assert all(f"wrote {file}" in err for file in files)
    assert "class\tpictures\trecall %\tprecision %\tF1 %\ttop-5 %" in out and "macro F1 " in out
    from pyarrow import parquet

    rows = parquet.read_table(files[1]).to_pylist()
    assert [row["path"] for row in rows] == sorted(map(str, data.rglob("*.png"))) and len(rows) == 7
    matrix = [[int(n) for n in row[1:]] for row in list(csv.reader(files[0].read_text().splitlines()))[1:]]
    assert sum(map(sum, matrix)) == 7 and [sum(row) for row in matrix] == [3, 2, 2]
    assert sum(matrix[k][k] for k in range(3)) == sum(row["label"] == row["top"][0] for row in rows)
    assert run([*words, "--crops=10", "--crop-pct=0.9", "--json"]) == 0
    assert "crop_pct has no effect" in capsys.readouterr().err
    before = set(tmp_path.iterdir())
    assert run([*words, "--confusion=m.txt"]) == 1 and set(tmp_path.iterdir()) == before
    assert "give a file that ends in .csv or .png" in capsys.readouterr().err


def test_some_of_the_classes_in_plain_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As ImageNet-A and -R come: class folders alone, of a part of the network's classes."""
    network, data = linear_network(tmp_path / "a.onnx", 0, Preprocessing(image_size=75)), noise(tmp_path, NAMES[::2])
    words = ["validate", "--ckpt-path", str(network), f"--data-dir={data / 'val'}", "--val-split=.", "--device=cpu"]
    answers = []
    for further in ([], ["--data-classes-only"]):
        file = tmp_path / f"{len(further)}.jsonl"
        assert run([*words, "--workers=0", f"--save-predictions={file}", "--json", *further]) == 0
        found = json.loads(capsys.readouterr().out)
        pictures = read_predictions(file).pictures
        assert found["samples"] == 7 and {picture.label for picture in pictures} == {0, 2}
        answers.append({k for picture in pictures for k, p in picture.top if p > 0})
    assert answers == [{0, 1, 2}, {0, 2}]


def test_a_sample_of_pictures_stands_for_all_classes_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, data = linear_network(tmp_path / "a.onnx", 0, Preprocessing(image_size=75)), noise(tmp_path, NAMES[::2])
    words = ["validate", "--ckpt-path", str(network), f"--data-dir={data / 'val'}", "--val-split=.", "--device=cpu"]
    file = tmp_path / "one.jsonl"
    further = ["--data-classes-only", "--val-samples=1", "--workers=0", f"--save-predictions={file}", "--json"]
    assert run([*words, *further]) == 0 and json.loads(capsys.readouterr().out)["samples"] == 1
    assert {k for picture in read_predictions(file).pictures for k, p in picture.top if p > 0} == {0, 2}
    assert run([*words, "--calibration=somewhere"]) == 2 and "--calibration is for --int8" in capsys.readouterr().err
