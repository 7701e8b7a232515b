"""Pictures with several classes: from lists of every kind, through training, to what a weights file answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_networks import NAMES, linear_network, matrix, noise
from photos import class_folders
from running import as_flags, run, tiny
from temporary import NewFolder
from test_lists import write

from inception_v4.cli.main import run as command
from inception_v4.cli.validate import _print_validation
from inception_v4.data.loader import EvalLoader, TrainLoader
from inception_v4.data.mixing import MixAndErase
from inception_v4.data.sources import open_source
from inception_v4.distributed import World
from inception_v4.export.eight_bit import _training_pictures
from inception_v4.inference.factory import open_model
from inception_v4.inference.predict import Predictor
from inception_v4.inference.results import ResultOptions
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.recipes import build_config, to_yaml
from inception_v4.settings.schema import Augmentation, Config, Data
from inception_v4.training.step import make_criterion
from inception_v4.training.train import train
from inception_v4.weights import read_weights
from inception_v4.weights.source import Located

SETS = (("ape",), ("ape", "dog"), ("bear", "ape"), ("dog", "ape"))
"""In turn of the pictures; the class that a split has to spread is the rarer one."""
SETTINGS: dict[str, Any] = {
    "dataset": None, "loss": "bce", "epochs": 1, "freeze": "backbone", "drop_rate": 0.0, "batch_size": 4, "hflip": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(module_folder: NewFolder) -> Path:
    return class_folders(module_folder("several") / "pictures", {"one": 8, "two": 4})


def listed(pictures: Path, kind: str, *, splits: bool = True) -> str:
    rows = []
    for number, file in enumerate(sorted(pictures.rglob("*.jpg"))):
        several = SETS[number % 4]
        label: Any = "|".join(several) if kind in ("csv", "tsv") else list(several)
        split = {"split": "val" if number % 3 == 0 else "train"} if splits else {}
        rows.append({"path": str(file.relative_to(pictures.parent)), "label": label} | split)
    return write(pictures, f"{'split' if splits else 'all'}.{kind}", rows)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_list_has_the_same_classes(pictures: Path, kind: str) -> None:
    data, world = Data(data_dir=listed(pictures, kind, splits=False), folds=3), World()
    parts = [
        open_source(data.model_copy(update={"fold": f}), "val", world=world, seed=0, several=True) for f in (1, 2, 3)
    ]
    assert parts[0].class_names == ("ape", "bear", "dog")
    sets = [several for part in parts for several in part.label_sets or ()]
    assert sorted(sets) == sorted([(0,), (0, 2), (1, 0), (2, 0)] * 3), "every picture is in one fold"
    assert all(1 in part.labels and part.counts()[1] == 1 for part in parts), "the rarest class is spread evenly"
    assert [sum(part.counts()[k] for part in parts) for k in range(3)] == [12, 3, 6]
    assert parts[0].target(0).dtype == torch.uint8
    assert [part.target(i).nonzero()[:, 0].tolist() for part in parts for i in range(4)] == [sorted(s) for s in sets]


def test_lists_of_one_class_and_other_losses_mean_what_they_meant(pictures: Path) -> None:
    files = sorted(pictures.rglob("*.jpg"))
    rows = [{"path": str(file.relative_to(pictures.parent)), "label": file.parent.name} for file in files]
    single = Data(data_dir=write(pictures, "single.csv", rows))
    with_bce, without = (open_source(single, "train", world=World(), seed=0, several=s) for s in (True, False))
    assert with_bce.label_sets is None and with_bce.labels == without.labels and isinstance(without.target(0), int)
    joined = open_source(Data(data_dir=listed(pictures, "csv")), "train", world=World(), seed=0)
    assert joined.class_names == ("ape", "ape|dog", "bear|ape", "dog|ape") and joined.label_sets is None
    assert "'ape|dog' is taken as the name of one class (for several with | between: --loss bce)" in joined.remarks[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,label\nx.jpg,cat||dog\n"),
        ("b.csv", "path,label\nx.jpg,|\n"),
        ("c.jsonl", '{"path": "x", "label": []}\n'),
        ("d.jsonl", '{"path": "x", "label": ["a", null]}\n'),
    ],
)
def test_empty_classes_are_refused_by_row(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"row [12]: label .* has an empty class: give every picture at least one"):
        open_source(Data(data_dir=str(tmp_path / name)), "train", world=World(), seed=0, several=True)


def test_batches_of_several_processes_are_those_of_one(pictures: Path) -> None:
    config = Config(
        data=Data(data_dir=listed(pictures, "csv"), batch_size=4, workers=0), augmentation=Augmentation(image_size=75)
    )
    source = open_source(config.data, "train", world=World(), seed=0, several=True)
    (whole, *_) = TrainLoader(source, config.data, config.augmentation, world=World(), seed=0).epoch(0)
    assert whole.labels.shape == (4, 3) and whole.labels.dtype == torch.uint8
    data = config.data.model_copy(update={"batch_size": 2})
    parts = [
        next(TrainLoader(source, data, config.augmentation, world=World(rank, 2), seed=0).epoch(0)) for rank in (0, 1)
    ]
    assert torch.equal(torch.stack([p.labels for p in parts], 1).flatten(0, 1), whole.labels)
    assert torch.equal(torch.stack([p.images for p in parts], 1).flatten(0, 1), whole.images)
    for batch in EvalLoader(source, Preprocessing(image_size=75), batch_size=3, workers=0, world=World()):
        for index, row in zip(batch.indices.tolist(), batch.labels, strict=True):
            assert tuple(row.nonzero()[:, 0].tolist()) == tuple(sorted((source.label_sets or [])[index]))


def test_mixing_smoothing_and_wider_outputs() -> None:
    labels = torch.tensor([[1, 1, 0], [0, 0, 1]], dtype=torch.uint8)

    class Batch:
        erase = None

    batch = Batch()
    batch.labels = labels  # type: ignore[attr-defined]
    images = torch.randn(2, 3, 75, 75)
    _, plain = MixAndErase(Augmentation(), num_classes=4)(images.clone(), batch, 0)  # type: ignore[arg-type]
    assert plain.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]
    mixed_images, mixed = MixAndErase(Augmentation(mixup=1.0), num_classes=4)(images.clone(), batch, 0)  # type: ignore[arg-type]
    share = float(mixed[0, 2])
    assert 0 < share < 1 and mixed[0].tolist() == pytest.approx([1 - share, 1 - share, share, 0])
    assert torch.allclose(mixed_images[0], torch.lerp(images[0], images[1], share), atol=1e-6)
    logits = torch.randn(2, 4)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, plain * 0.9 + 0.1 / 4)
    assert float(make_criterion("bce", 0.1)(logits, plain)) == pytest.approx(float(expected))


def test_settings_for_pictures_of_the_other_kind_are_refused(pictures: Path, tmp_path: Path) -> None:
    place = listed(pictures, "csv")
    with pytest.raises(ValueError, match="balanced_sampling draws every class equally often"):
        train(tiny(tmp_path / "a", **SETTINGS, data_dir=place, balanced_sampling=True))
    with pytest.raises(ValueError, match="monitor map: every picture has one class"):
        train(tiny(tmp_path / "b", **SETTINGS | {"loss": "ce"}, data_dir=place, monitor="map"))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def finished(pictures: Path, module_folder: NewFolder) -> Path:
    folder = module_folder("run") / "run"
    settings = {"class_weights": "balanced", "mixup": 0.2, "lr": 1.0, "label_smoothing": 0.1}
    train(tiny(folder, **SETTINGS, **settings, data_dir=listed(pictures, "csv")))
    return folder


@pytest.mark.slow
def test_a_run_its_record_and_what_its_weights_answer(
    finished: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = [
        r for line in (finished / "metrics.jsonl").read_text().splitlines() if (r := json.loads(line))["kind"] == "val"
    ]
    weights = read_weights(str(finished / "best.safetensors"))
    assert weights.info.multi_label and weights.info.extra["map"] == record["map"] and record["samples"] == 4
    assert "monitor: map" in (finished / "config.yaml").read_text()
    capsys.readouterr()
    words = ["validate", "--ckpt-path", str(finished / "best.safetensors"), "--device=cpu", "--workers=0"]
    assert command([*words, "--json", "--per-class"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("map", "macro_f1", "micro_f1", "top1", "loss"):
        assert found[name] == pytest.approx(record[name], rel=1e-4), name
    assert [row["class"] for row in found["per_class"]] == sorted({n for i in (0, 3, 6, 9) for n in SETS[i % 4]})
    _print_validation(found, as_json=False, per_class=True)
    shown = capsys.readouterr().out
    assert f"mAP {found['map']:.2f} %  micro F1" in shown and "AP %" in shown
    with pytest.raises(ValueError, match="confusion is for pictures of one class"):
        ResultOptions(confusion=Path("m.png")).check_classes(None, multi_label=weights.info.multi_label)
    files = sorted(map(str, pictures.rglob("*.jpg")))[:2]
    predictor = Predictor(str(finished / "best.safetensors"), device="cpu", amp="off", cache=False)
    crops = torch.stack([predictor.crop(file) for file in files])
    with torch.no_grad():
        outputs = open_model(str(finished / "best.safetensors")).model(predictor.network_input(crops))
    assert torch.allclose(predictor.probabilities(files), outputs.sigmoid(), atol=1e-5)
    assert predictor(files, threshold=1.0)[0].to_dict()["class"] is None


def test_predict_shows_every_class_above_the_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network of one layer whose answers are known, as an exported file: with logits, and with probabilities."""
    how = Preprocessing(image_size=75)
    source = noise(tmp_path / "noise")
    picture = str(next(source.rglob("*.png")))
    shown = {}
    for softmax in (False, True):
        file = linear_network(tmp_path / f"net{softmax:d}.onnx", 1, how, multi_label=True, softmax=softmax)
        probabilities = dict(zip(NAMES, Predictor(str(file)).probabilities([picture])[0].tolist(), strict=True))
        expected = {name: p for name, p in probabilities.items() if p >= 0.5}
        assert 0 < len(expected) < 3 and sum(probabilities.values()) != pytest.approx(1, abs=1e-3)
        for flags, wanted in (((), expected), (("--threshold=0.999999",), {}), (("--top-k=3",), probabilities)):
            assert command(["predict", picture, "--ckpt-path", str(file), "--jsonl", *flags]) == 0
            row = json.loads(capsys.readouterr().out)
            assert {top["class"]: top["probability"] for top in row["top"]} == pytest.approx(wanted, abs=1e-6)
        for form in ("--csv", "--json"):
            assert command(["predict", picture, "--ckpt-path", str(file), form, "--threshold=0.999999"]) == 0
        assert command(["predict", picture, "--ckpt-path", str(file), "--threshold=0.999999"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"{picture}\t-\t"
        shown[softmax] = probabilities
    assert shown[True] == pytest.approx(shown[False], abs=1e-5) and matrix(1).any()


@pytest.mark.slow
def test_a_greedy_soup_goes_by_map(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(finished / "best.safetensors"), str(finished / "last.safetensors")]
    output = tmp_path / "soup.safetensors"
    assert command(["average", *files, "--output", str(output), "--greedy", "--device=cpu", "--workers=0"]) == 0
    said = capsys.readouterr().err
    scored = [line.split(": mAP ")[1].split(" %")[0] for line in said.splitlines() if ": mAP " in line]
    assert len(scored) == 3 and ": top-1 " not in said
    record = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert read_weights(output).info.multi_label and float(scored[0]) == pytest.approx(record["map"], abs=0.01)


@pytest.mark.slow
def test_exported_files_answer_as_the_weights_do(finished: Path, tmp_path: Path, pictures: Path) -> None:
    where = [f"--data-dir={listed(pictures, 'csv')}", "--device=cpu", "--workers=0", "--json"]
    weights = str(finished / "best.safetensors")
    expected = json.loads(run("validate", "--ckpt-path", weights, "--runtime=torch", *where).stdout)
    for name, flags in (("plain.onnx", []), ("full.onnx", ["--with-preprocess", "--with-softmax"])):
        run("export", weights, "-o", name, *flags, cwd=tmp_path)
        found = json.loads(run("validate", "--ckpt-path", name, *where, cwd=tmp_path).stdout)
        for figure in ("map", "micro_f1", "top1"):
            assert found[figure] == expected[figure]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    single = json.loads(run("validate", "--ckpt-path", weights, weights, "--flip", *where).stdout)
    assert single["loss"] != expected["loss"] and single["map"] > 0


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(pictures: Path, tmp_path: Path) -> None:
    settings = {name: value for name, value in SETTINGS.items() if value is not None} | {
        "data_dir": listed(pictures, "csv"), "image_size": 75, "device": "cpu", "workers": 0, "opt": "momentum",
        "lr": 0.1, "amp": "off", "mixup": 0.0, "tensorboard": False,
    }  # fmt: skip
    records = []
    for processes in (1, 2):
        flags = as_flags(settings | {"batch_size": 4 // processes, "output_dir": f"run{processes}"})
        run("train", "-c", "quickstart", "--dataset=list", *flags, processes=processes, cwd=tmp_path)
        lines = (tmp_path / f"run{processes}" / "metrics.jsonl").read_text().splitlines()
        records.append([r for line in lines if (r := json.loads(line))["kind"] == "val"][-1])
    one, two = records
    assert one["samples"] == two["samples"] == 4 and one["loss"] > 0
    for name in ("loss", "map", "macro_f1", "micro_f1", "top1"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


def test_ranges_for_8_bits_come_from_such_lists_too(pictures: Path, tmp_path: Path) -> None:
    settings = build_config({**SETTINGS, "data_dir": listed(pictures, "jsonl")})
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    source = _training_pictures(Located(tmp_path / "best.safetensors", "best.safetensors"))
    assert source.label_sets is not None and len(source) == 8
