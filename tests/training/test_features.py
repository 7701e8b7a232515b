"""Training on features that are kept on disk: the same weights as without, and tables that are right or not used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from live import enliven
from running import TINY, as_flags, final_state, run, tiny

from inception_v4.accelerator import select
from inception_v4.accelerator.precision import Precision
from inception_v4.data.labelled import Source, Subset
from inception_v4.data.loader import Batch, EvalLoader
from inception_v4.data.normalise import Normalise
from inception_v4.data.sources import open_source
from inception_v4.data.views import eval_transform
from inception_v4.distributed import World
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.recipes import build_config
from inception_v4.settings.schema import Data
from inception_v4.storage.lock import FolderLock
from inception_v4.training.feature_table import FILE, FeatureTable
from inception_v4.training.features import Classifier, check_cacheable
from inception_v4.training.train import prepare, train

STILL: dict[str, Any] = {
    "freeze": "backbone", "train_crop": "centre", "hflip": 0.0, "shapes_train": 10, "shapes_val": 5, "drop_rate": 0.4,
    "ema": True, "ema_warmup": 3, "lr": 0.5, "drop_last": False, "label_smoothing": 0.1,
}  # fmt: skip
"""Two epochs of three steps, the last one short: dropout and the average take part."""


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"freeze": "inception_b"}, "--freeze backbone"), ({"train_crop": "random_resized"}, "--train-crop centre"),
        ({"hflip": 0.5}, "--hflip 0"), ({"color_jitter": 0.2}, "--color-jitter 0"),
        ({"auto_augment": "autoaug"}, "--auto-augment none"), ({"re_prob": 0.1}, "--re-prob 0"),
        ({"mixup": 0.2}, "--mixup 0"), ({"cutmix": 1.0}, "--cutmix 0"), ({"unfreeze_at": 1}, "no --unfreeze-at"),
        ({"image_size": "75-107"}, "one --image-size for all epochs"), ({"on_corrupt": "skip"}, "--on-corrupt error"),
        ({"swa_epochs": 1}, "--swa-epochs 0"),
        ({"teacher": "resnet18"}, "no --teacher"), ({"aug_repeats": 3}, "--aug-repeats 0"),
    ],
)  # fmt: skip
def test_what_would_change_features_is_refused_with_its_flag(changes: dict[str, Any], flag: str) -> None:
    settings = {**STILL, "cache_features": True}
    check_cacheable(build_config(settings))
    with pytest.raises(ValueError, match=f"cache_features computes .* once.*give {flag}$"):
        check_cacheable(build_config(settings | changes))
    check_cacheable(build_config(settings | changes | {"cache_features": False}))


def test_steps_on_cached_features_are_those_on_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One network, its pictures and their features: the same order, dropout, losses and figures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loop = prepare(tiny(tmp_path / "run", **STILL, cache_features=True), select("cpu"), World(), FolderLock(print))
    learner, network, loader, validator = loop.job.learner, loop.job.learner.model, loop.loader, loop.validator
    prepared = learner.normalise
    loop.begin()
    loop.log.close()
    for start in (0, 4):
        pairs = zip(loop.loader.epoch(1, start), loader.epoch(1, start), strict=True)
        for ours, theirs in pairs:
            assert torch.equal(ours.indices, theirs.indices) and torch.equal(ours.labels, theirs.labels)
            network.train()
            outputs = []
            for compute, batch, normalise in (
                (learner.compute, ours, learner.normalise),
                (network, theirs, prepared),
            ):
                torch.manual_seed(7)
                with torch.no_grad():
                    outputs.append(compute.train()(normalise(batch.images)))
            assert torch.allclose(*outputs, atol=1e-5), (outputs[0] - outputs[1]).abs().max()
            assert outputs[0].std() > 1e-3, "live signals"
    our_result, their_result = (each(network, lambda: True) for each in (loop.validator, validator))
    assert our_result.loss == pytest.approx(their_result.loss, rel=1e-5)
    assert torch.equal(our_result.indices, their_result.indices)
    learner.compute.eval()
    with torch.no_grad():
        assert not torch.allclose(learner.compute(ours.images), outputs[0], atol=1e-3), "dropout applies"
    assert Classifier(network.train()).training and not Classifier(network.eval()).training
    assert sorted(path.stat().st_size for path in (tmp_path / "cache").rglob("features.bin")) == [
        5 * 1536 * 4,
        10 * 1536 * 4,
    ]


@pytest.fixture(scope="module")
def network() -> InceptionV4:
    model = enliven(InceptionV4(2)).eval()
    assert isinstance(model, InceptionV4)
    return model


@pytest.fixture(scope="module")
def pictures() -> Source:
    data = Data(dataset="shapes", shapes_train=9, shapes_val=5, shapes_classes=2, shapes_size=80)
    return open_source(data, "train", world=World(), seed=0)


def opened(
    network: InceptionV4, source: Source, *, batches: Iterator[Batch] | None = None, **about: Any
) -> torch.Tensor:
    """The table of a source, from batches of its pictures or others that are given."""
    how = Preprocessing(image_size=75)
    loader = EvalLoader(source, how, batch_size=4, workers=0, world=World())
    table = FeatureTable(network, Normalise(how), source, Precision(select("cpu")), World(), about)
    return table.open(lambda: iter(loader) if batches is None else batches, beat=lambda doing: None, say=print)


def nothing() -> Iterator[Batch]:
    raise AssertionError("the pictures were read")
    yield


@torch.no_grad()
def test_a_table_has_the_features_and_is_made_once(
    network: InceptionV4, pictures: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table = opened(network, pictures).clone()  # of a file that is damaged below
    how = Preprocessing(image_size=75)
    crops = torch.stack([eval_transform(how)(pictures.load(i)) for i in range(9)])
    expected = network.forward_features(Normalise(how)(crops)).mean((2, 3))
    assert torch.allclose(table, expected, atol=1e-5) and float(expected.std()) > 0.1
    assert torch.equal(opened(network, pictures, batches=nothing()), table)
    (file,) = tmp_path.rglob(FILE)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert torch.equal(opened(network, pictures), table) and file.read_bytes() == content, "a damaged one is made again"
    with pytest.raises(AssertionError, match="the pictures were read"):
        opened(network, Subset(pictures, [0, 1, 2]), batches=nothing())
    with pytest.raises(AssertionError, match="the pictures were read"):
        opened(network, pictures, batches=nothing(), preprocessing="another")
    before = network.features[21].branch0.bn.bias.clone()
    network.features[21].branch0.bn.bias[0] += 1
    with pytest.raises(AssertionError, match="the pictures were read"):
        opened(network, pictures, batches=nothing())
    network.features[21].branch0.bn.bias.copy_(before)
    network.last_linear.bias[0] += 1
    opened(network, pictures, batches=nothing())


def test_a_table_that_is_not_finished_leaves_nothing(
    network: InceptionV4, pictures: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = list(EvalLoader(pictures, Preprocessing(image_size=75), batch_size=4, workers=0, world=World()))
    with pytest.raises(AssertionError, match="a picture has no features"):
        opened(network, pictures, batches=iter(whole[:2]))
    with pytest.raises(AssertionError, match="did not come in their order"):
        opened(network, pictures, batches=iter(whole[::-1]))
    assert list(tmp_path.rglob("*.bin")) == [] and list((tmp_path / "inception-v4" / "features").iterdir()) == []


@pytest.mark.slow
def test_weights_with_and_without_a_cache_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train(tiny(tmp_path / "plain", **STILL, ckpt_interval=2))
    train(tiny(tmp_path / "first", **STILL, ckpt_interval=2, cache_features=True))
    assert "computing the features of 10 pictures once" in capsys.readouterr().err
    train(tiny(tmp_path / "again", **STILL, ckpt_interval=2, cache_features=True))
    said = capsys.readouterr().err
    assert "computing" not in said and "features of 10 pictures are kept" in said
    plain, first, again = (final_state(tmp_path / name) for name in ("plain", "first", "again"))
    for part in ("model", "ema"):
        for name, value in plain[part].items():
            assert torch.allclose(first[part][name].float(), value.float(), atol=1e-5), name
            assert torch.equal(first[part][name], again[part][name]), name
    moved = (first["model"]["last_linear.weight"] - first["ema"]["last_linear.weight"]).abs().max()
    assert moved > 1e-3, "weights and their average moved apart"


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_two_processes_learn_as_one(tmp_path: Path) -> None:
    settings = STILL | {"cache_features": True, "drop_rate": 0.0, "shapes_train": 12, "drop_last": True}
    train(tiny(tmp_path / "whole", **settings))
    train(tiny(tmp_path / "parts", **settings, max_steps=4, ckpt_steps=1))
    train(tiny(tmp_path / "parts", **settings, resume="auto"))
    whole, parts = (final_state(tmp_path / name)["model"]["last_linear.weight"] for name in ("whole", "parts"))
    assert torch.equal(whole, parts)
    ends, losses = [], []
    for processes in (1, 2):
        folder = tmp_path / f"of{processes}"
        flags = as_flags(TINY | settings | {"output_dir": folder, "batch_size": 4 // processes, "val_batch_size": 4})
        run("train", "-c", "quickstart", *flags, processes=processes, cwd=tmp_path)
        ends.append(final_state(folder)["model"]["last_linear.weight"])
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["loss"] for record in records if record["kind"] == "val"])
    assert torch.allclose(*ends, atol=1e-5) and not torch.allclose(ends[0], whole, atol=1e-3), "of another recipe"
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 2


def test_a_table_has_a_name_where_statistics_are_of_all_processes() -> None:
    """torch's own synchronised BatchNorm, which devices other than a CPU have, is no BatchNorm2d."""
    network = InceptionV4(2, init="torch")

    def key(network: torch.nn.Module) -> str:
        return FeatureTable(network, None, [], None, World(), {})._key()  # type: ignore[arg-type]

    plain = key(network)
    assert key(torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)) == plain
