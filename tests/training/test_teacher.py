"""Distillation: the loss by hand, what the teacher sees, that it stays what it is, and that its answers are learned."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from live import enliven
from running import tiny
from safetensors.torch import save_file
from temporary import NewFolder
from torch import Tensor, nn

from inception_v4.accelerator import select
from inception_v4.accelerator.precision import Precision
from inception_v4.data.normalise import Normalise
from inception_v4.distributed import World
from inception_v4.files import sha256_of
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import Preprocessing
from inception_v4.settings.recipes import ConfigError, build_config
from inception_v4.settings.schema import Training
from inception_v4.storage.lock import FolderLock
from inception_v4.training.loop import Loop
from inception_v4.training.step import train_one_epoch
from inception_v4.training.teacher import NoTeacher, Teacher, open_teacher
from inception_v4.training.train import prepare
from inception_v4.weights import WeightsError, WeightsInfo, save_weights

OTHERWISE = Preprocessing(75, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
PRECISION = Precision(select("cpu"))


def opened(teacher: Any, ckpt: Any = None, *, student: WeightsInfo | None = None, **settings: Any) -> Teacher:
    training = Training(teacher=str(teacher), teacher_ckpt=ckpt and str(ckpt), **settings)
    how = student or WeightsInfo(2, preprocessing=OTHERWISE)
    found = open_teacher(training, how, PRECISION, world=World(), layout=torch.channels_last)
    assert isinstance(found, Teacher)
    return found


@pytest.fixture(scope="module")
def peer(module_folder: NewFolder) -> tuple[nn.Module, Path]:
    """A small network of timm's that is sure of class 0 whatever it sees, and its weights in a file."""
    torch.manual_seed(4)
    model = timm.create_model("test_resnet", num_classes=2).eval()
    with torch.no_grad():
        model.fc.bias.copy_(torch.tensor([2.0, -2.0]))
    file = module_folder("teacher") / "teacher.safetensors"
    save_file(model.state_dict(), file)
    return model, file


@pytest.mark.parametrize(("alpha", "temperature"), [(0.3, 1.0), (0.7, 4.0), (1.0, 2.5)])
def test_the_loss_is_the_formula(alpha: float, temperature: float) -> None:
    rng = np.random.default_rng(0)
    student, answers = 2 * rng.standard_normal((2, 5, 7))
    teacher = Teacher(nn.Identity(), alpha, temperature)
    ours = teacher.guide(
        torch.tensor(1.25, dtype=torch.float64), torch.from_numpy(student), torch.from_numpy(answers), PRECISION
    )

    def softened(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits / temperature)
        return powers / powers.sum(1, keepdims=True)

    p, q = softened(answers.astype(np.float32)), softened(student)
    divergence = (p * np.log(p / q)).sum() / 5
    assert ours.item() == pytest.approx((1 - alpha) * 1.25 + alpha * temperature**2 * divergence, rel=1e-6)
    assert divergence > 0.01 and NoTeacher().guide(ours, ours, ours, PRECISION) is ours


def test_a_teacher_of_timms_sees_pictures_in_its_own_normalisation(peer: tuple[nn.Module, Path]) -> None:
    model, file = peer
    teacher = opened("test_resnet", file)
    images = torch.randint(256, (3, 3, 75, 75), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(Normalise(Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3))(images))
    inputs = Normalise(OTHERWISE)(images)
    torch.testing.assert_close(teacher.answers(inputs, PRECISION), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(teacher.network(inputs), expected, rtol=1e-3), "the comparison can fail"
    assert teacher.record == {"name": "test_resnet", "weights": str(file), "sha256": sha256_of(file)}
    assert not teacher.network.training and not any(p.requires_grad for p in teacher.network.parameters())
    alike = opened("test_resnet", file, student=WeightsInfo(2))
    assert alike.scale is None and alike.shift is None, "nothing to change"


def test_a_teacher_of_one_size_sees_pictures_of_that_size(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit", num_classes=2).state_dict(), tmp_path / "vit.safetensors")
    teacher = opened("test_vit", tmp_path / "vit.safetensors")
    assert teacher.side == 160 and teacher.answers(torch.randn(2, 3, 75, 75), PRECISION).shape == (2, 2)


def test_what_cannot_teach_is_refused(
    peer: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = peer
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="test_resnet has 2 classes and the data 3: give a teacher"):
        opened("test_resnet", file, student=WeightsInfo(3))
    with pytest.raises(ValueError, match=r"neither a file or run directory nor a network.*did you mean .*resnet50"):
        opened("resnet51")
    with pytest.raises(ValueError, match=r"test_efficientnet: .*teacher\.safetensors has no weights of this network"):
        opened("test_efficientnet", file)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors does not exist"):
        opened("test_resnet", tmp_path / "nowhere.safetensors")
    with pytest.raises(WeightsError, match=r"cannot get timm/test_resnet.*HF_HUB_OFFLINE is set"):
        opened("test_resnet")
    with pytest.raises(ValueError, match="the data's pictures have several classes"):
        opened("test_resnet", file, student=WeightsInfo(2, multi_label=True))
    with pytest.raises(ConfigError, match="distill_alpha without a teacher"):
        build_config({"distill_alpha": 0.3})


def divergence(loop: Loop, images: Tensor) -> float:
    """Of the student's answers from the teacher's, at temperature 1."""
    learner = loop.job.learner
    with torch.no_grad():
        own = learner.model.eval()(images).log_softmax(1)
    assert isinstance(learner.teacher, Teacher)
    answers = learner.teacher.answers(images, PRECISION).log_softmax(1)
    return float(nn.functional.kl_div(own, answers, reduction="batchmean", log_target=True))


@pytest.mark.slow
def test_a_student_moves_towards_its_teacher_which_stays_what_it_is(
    peer: tuple[nn.Module, Path], tmp_path: Path, live_file: str
) -> None:
    _, file = peer
    settings = {
        "ckpt_path": live_file, "freeze": "backbone", "shapes_train": 8, "lr": 0.02, "scheduler": "constant",
        "drop_rate": 0.0, "weight_decay": 0.0, "teacher": "test_resnet", "teacher_ckpt": str(file), "distill_t": 1.0,
    }  # fmt: skip
    after, images = {}, torch.randn(4, 3, 75, 75, generator=torch.Generator().manual_seed(2))
    loop = prepare(tiny(tmp_path, **settings), select("cpu"), World(), FolderLock(print))
    learner, before = loop.job.learner, divergence(loop, images)
    start, taught = copy.deepcopy(learner.model.last_linear.state_dict()), learner.teacher.network.state_dict()
    state = {name: tensor.clone() for name, tensor in taught.items()}
    for alpha in (0.0, 1.0):
        learner.model.last_linear.load_state_dict(start)
        learner.optimizer.state.clear()
        learner.course.epoch = learner.course.step = 0
        learner.teacher.alpha = alpha
        train_one_epoch(learner, loop.loader.epoch(0), epoch=0, after_step=lambda loss, images: False)
        after[alpha] = divergence(loop, images)
    loop.log.close()
    assert after[1.0] < 0.2 * before and after[1.0] < 0.2 * after[0.0], "without a teacher it learns the labels"
    assert all(torch.equal(state[name], tensor) for name, tensor in taught.items())
    assert all(parameter.grad is None for parameter in learner.teacher.network.parameters())


@pytest.mark.slow
def test_weights_of_this_network_teach_where_their_classes_are_the_datas(tmp_path: Path) -> None:
    model, file = enliven(InceptionV4(2)).eval(), tmp_path / "run" / "best.safetensors"
    file.parent.mkdir()
    save_weights(model, file, WeightsInfo(2, ("circle", "square"), preprocessing=OTHERWISE))
    teacher = opened(file.parent, student=WeightsInfo(2, ("circle", "square")))
    images = torch.randint(256, (2, 3, 75, 75), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(Normalise(OTHERWISE)(images))
    answers = teacher.answers(Normalise(Preprocessing())(images), PRECISION)
    torch.testing.assert_close(answers, expected, rtol=1e-3, atol=1e-3)
    assert teacher.record["sha256"] == sha256_of(file)
    with pytest.raises(ValueError, match="other classes than the data: number 0 is 'circle' and 'square'"):
        opened(file, student=WeightsInfo(2, ("square", "circle")))
    with pytest.raises(ValueError, match="takes 3 channels and the network 1"):
        opened(file, student=WeightsInfo(2).with_channels(1))
