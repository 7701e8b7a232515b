"""The mean of the last epochs' weights, against torch's; a run with it, a teacher and split batches goes on exactly."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from running import THREADS, TINY, as_flags, differing, final_state, run_script, tiny
from safetensors.torch import load_file, save_file
from temporary import NewFolder
from torch import nn
from torch.optim.swa_utils import AveragedModel

from inception_v4.accelerator import select
from inception_v4.accelerator.precision import Precision
from inception_v4.data.loader import Batch
from inception_v4.distributed import World
from inception_v4.files import sha256_of
from inception_v4.settings.recipes import ConfigError, build_config
from inception_v4.settings.schema import Schedule
from inception_v4.storage.lock import FolderLock
from inception_v4.training.checkpoint import CheckpointError
from inception_v4.training.parts import Validator
from inception_v4.training.swa import WeightMean, weight_mean
from inception_v4.training.train import prepare, train

RUN = {
    "shapes_train": 4, "shapes_val": 4, "batch_size": 2, "epochs": 3, "image_size": "75-107", "keep_checkpoint_max": 9,
    "swa_epochs": 2, "freeze": "reduction_b", "bn_momentum": 0.5, "lr": 0.1, "drop_rate": 0.3, "distill_alpha": 0.3,
    "teacher": "test_resnet", "aug_splits": 2, "color_jitter": 0.4, "re_prob": 0.5, "val_start": 2,
}  # fmt: skip
"""Three epochs of two steps: the last one of larger pictures, the last two averaged."""


@pytest.fixture(scope="module")
def teacher(module_folder: NewFolder) -> str:
    torch.manual_seed(4)
    file = module_folder("teacher") / "teacher.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), file)
    return str(file)


@pytest.fixture(scope="module")
def averaged_run(module_folder: NewFolder, teacher: str, live_file: str) -> Path:
    torch.set_num_threads(THREADS)  # before the tests' own fixture: a test compares bits with this run's
    folder = module_folder("averaged") / "run"
    train(tiny(folder, **RUN, teacher_ckpt=teacher, ckpt_path=live_file))
    return folder


def at_step(folder: Path, step: int) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)


def test_the_mean_is_that_of_torchs_averaged_model() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
    ours, theirs = weight_mean(4, Schedule(epochs=6)), AveragedModel(model)
    for epoch in range(6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.end_epoch(model, epoch)
        if epoch >= 2:
            theirs.update_parameters(model)
    assert isinstance(ours, WeightMean) and ours.module is not None and ours.count == 4 == int(theirs.n_averaged)
    for a, b in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(model[0].weight, ours.module[0].weight) and ours.networks == {}, "no statistics yet"


class Plain:
    """Pictures as they are."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


def test_statistics_of_blocks_that_learnt_after_the_mean_began_are_taken_anew() -> None:
    """The mean of a run that goes on is a copy of a network whose blocks are frozen as well."""
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
    for restored in (False, True):
        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).requires_grad_(False)
        mean = WeightMean(first=0)
        mean.end_epoch(model, 0)
        if restored:
            again = WeightMean(first=0)
            again.load_state_dict(mean.state_dict(), model, epoch=1)
            mean = again
        numbers = torch.arange(8)
        how = {"normalise": Plain(), "precision": Precision(select("cpu")), "world": World()}
        mean.finish(model, [Batch(images, numbers, numbers)], **how)  # type: ignore[arg-type]
        assert mean.module is not None and not mean.module[1].running_mean.any(), "frozen ones stay"
        mean.finish(model.requires_grad_(True), [Batch(images, numbers, numbers)], **how)  # type: ignore[arg-type]
        expected = model[0](images.float()).mean((0, 2, 3))
        torch.testing.assert_close(mean.module[1].running_mean, expected)


def test_a_checkpoint_of_other_epochs_is_refused_and_one_from_before_is_not() -> None:
    model = nn.Linear(2, 2)
    mean = WeightMean(first=3)
    mean.load_state_dict(None, model, epoch=3)
    mean.load_state_dict({"count": 4, "model": {}}, model, epoch=2)
    assert mean.module is None and mean.count == 0
    for state in (None, {"count": 1, "model": model.state_dict()}):
        with pytest.raises(CheckpointError, match=r"mean of \d epochs' weights, this run would have one of 2"):
            mean.load_state_dict(state, model, epoch=5)
    with pytest.raises(ConfigError, match="swa_epochs 4 is more than epochs 3"):
        build_config({"swa_epochs": 4, "epochs": 3})


@pytest.mark.slow
def test_a_run_averages_its_last_epochs_and_validates_the_mean_once(averaged_run: Path, teacher: str) -> None:
    last, ends = at_step(averaged_run, 6), [at_step(averaged_run, step)["model"] for step in (4, 6)]
    mean = last["swa"]["model"]
    assert last["swa"]["count"] == 2 and at_step(averaged_run, 4)["swa"]["count"] == 1
    assert at_step(averaged_run, 2)["swa"] is None
    for name in ("last_linear.weight", "features.20.branch0.conv.weight"):
        torch.testing.assert_close(mean[name], (ends[0][name] + ends[1][name]) / 2, rtol=1e-5, atol=1e-8)
        assert not torch.equal(mean[name], ends[1][name])
    statistics = [name for name in mean if "running" in name]
    fresh = {name for name in statistics if not torch.equal(mean[name], ends[1][name])}
    assert fresh == {name for name in statistics if int(name.split(".")[1]) >= 19}, "frozen ones stay"
    assert int(mean["features.21.branch0.bn.num_batches_tracked"]) == 2, "an epoch of batches"
    rows = [json.loads(line) for line in (averaged_run / "metrics.jsonl").read_text().splitlines()]
    assert ["swa_top1" in row for row in rows if row["kind"] == "val"] == [False, True]
    record = json.loads((averaged_run / "provenance.json").read_text())["starts"][0]["teacher"]
    assert record == {"name": "test_resnet", "weights": teacher, "sha256": sha256_of(Path(teacher))}
    assert not any("fc" in name for name in last["model"]), "the teacher is in no checkpoint"


@pytest.mark.slow
def test_going_on_within_the_averaged_epochs_gives_the_same_bits(
    averaged_run: Path, tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(averaged_run / "checkpoints" / "step-00000004.pt", tmp_path / "checkpoints")
    train(tiny(tmp_path, **RUN, teacher_ckpt=teacher, resume="auto"))
    assert "image size 107 px from epoch 3 on" in capsys.readouterr().err
    names = ("model", "optimizer", "step", "swa")
    whole, resumed = final_state(averaged_run), final_state(tmp_path)
    assert differing({n: whole[n] for n in names}, {n: resumed[n] for n in names}) == []


@pytest.mark.slow
def test_without_the_teacher_or_the_parts_the_weights_are_others(
    averaged_run: Path, tmp_path: Path, teacher: str
) -> None:
    """The comparison above can fail."""
    for number, change in enumerate(({"distill_alpha": 0.4}, {"aug_splits": 3})):
        folder = tmp_path / str(number)
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(averaged_run / "checkpoints" / "step-00000004.pt", folder / "checkpoints")
        train(tiny(folder, **RUN | change, teacher_ckpt=teacher, resume="auto"))
        assert differing(final_state(averaged_run)["model"], final_state(folder)["model"])


@pytest.mark.slow
def test_the_better_one_is_kept(tmp_path: Path, live_file: str) -> None:
    settings = {"shapes_train": 4, "shapes_val": 4, "epochs": 1, "freeze": "backbone", "swa_epochs": 1, "lr": 0.1}
    loop = prepare(tiny(tmp_path, **settings, ckpt_path=live_file), select("cpu"), World(), FolderLock(print))

    class Favouring(Validator):
        """Measures everything and likes the mean."""

        def __call__(self, model: nn.Module, goes_on: Any) -> Any:
            top1 = 100.0 if model is loop.job.swa.networks.get("swa_") else 0.0
            return replace(super().__call__(model, goes_on), top1=top1)

    loop.validator = Favouring(**vars(loop.validator))
    with torch.no_grad():
        loop.job.learner.model.last_linear.bias.fill_(0.0)
    loop.job.swa.end_epoch(loop.job.learner.model, 0)  # the start counts too, so that the mean is not the end
    loop.run_epochs()
    loop.log.close()
    assert loop.job.best["averaged"] and loop.job.best["top1"] == 100.0
    kept, mean = load_file(tmp_path / "best.safetensors"), loop.job.swa.networks["swa_"].state_dict()
    assert torch.equal(kept["last_linear.weight"], mean["last_linear.weight"])
    assert not torch.equal(kept["last_linear.weight"], loop.job.learner.model.state_dict()["last_linear.weight"])


@pytest.mark.slow
def test_two_processes_have_one_mean(tmp_path: Path, teacher: str) -> None:
    words = ("train", *as_flags(TINY | RUN | {"shapes_train": 8, "teacher_ckpt": teacher}), "--output-dir=run")
    said = run_script("node_local.py", *words, cwd=tmp_path).stderr
    assert "the mean of the weights after the last 2 epochs" in said and "mean of the last epochs" in said
    assert final_state(tmp_path / "node0" / "run")["swa"]["count"] == 2
