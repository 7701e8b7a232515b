"""Settings chosen for a folder of pictures: valid, within memory, and with a reason each."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from photos import class_folders

from inception_v4.cli import main as cli
from inception_v4.data.loader import TrainLoader
from inception_v4.data.sources import Source, open_source
from inception_v4.distributed import World
from inception_v4.settings.defaults import Hardware, choose_defaults
from inception_v4.settings.recipes import build_config
from inception_v4.training.suit import suit_data
from inception_v4.training.train import train

GIB = 1 << 30


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda", "npu", "mps", "xpu"])
def test_always_a_valid_configuration(device: str, pretrained: bool) -> None:
    for images, memory in itertools.product((4, 60, 900, 30_000, 1_281_167), (None, 2 * GIB, 8 * GIB, 80 * GIB)):
        settings, reasons = choose_defaults(images, 2, hardware=Hardware(device, memory), pretrained=pretrained)
        config = build_config(settings | {"data_dir": "photos", "pretrained": pretrained})
        assert config.schedule.warmup_epochs < config.schedule.epochs
        assert 1 <= config.data.batch_size <= 64
        said = " ".join(reasons)
        assert all(name in said for name in ("batch_size", "lr ", "epochs"))
        assert ("amp" in said) == (config.training.amp != "off")


def test_batch_grows_with_memory_and_stays_below_the_data() -> None:
    sizes = [
        choose_defaults(50_000, 10, hardware=Hardware("cuda", m * GIB))[0]["batch_size"] for m in (3, 4, 8, 16, 80)
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] == 64
    assert choose_defaults(100, 5, hardware=Hardware("cuda", 80 * GIB))[0]["batch_size"] == 8, "eight steps in an epoch"
    # A 299-pixel picture keeps 165 MiB for the backward pass in float32.
    size = choose_defaults(50_000, 10, hardware=Hardware("mps", 8 * GIB))[0]["batch_size"]
    assert size * 165 * 2**20 < 8 * GIB < 4 * size * 165 * 2**20


def test_little_memory_is_paid_for_with_time() -> None:
    settings, reasons = choose_defaults(5000, 10, hardware=Hardware("cuda", 2 * GIB))
    assert settings["grad_checkpointing"] and settings["batch_size"] == 8
    assert any("more time, less memory" in reason for reason in reasons)
    assert "grad_checkpointing" not in choose_defaults(5000, 10, hardware=Hardware("cuda", 80 * GIB))[0]


def test_a_batch_that_was_asked_for_is_left_to_the_loader_and_memory_still_counts() -> None:
    settings, _ = choose_defaults(5000, 10, hardware=Hardware("cuda", 2 * GIB), fixed={"batch_size": 4})
    assert settings["batch_size"] == 4 and settings["grad_checkpointing"]
    one, _ = choose_defaults(8, 2, hardware=Hardware("cpu", 8 * GIB, 8), fixed={"batch_size": 1})
    assert one["batch_size"] == 1


def test_length_follows_the_data() -> None:
    roomy = Hardware("cuda", 8 * GIB)
    epochs = [choose_defaults(n, 10, hardware=roomy)[0]["epochs"] for n in (200, 2000, 20_000, 200_000)]
    assert epochs == sorted(epochs, reverse=True) and epochs[0] == 40 and epochs[-1] == 5
    for n in (200, 2000, 20_000):
        fast = choose_defaults(n, 10, hardware=Hardware("cuda", 8 * GIB))[0]
        slow = choose_defaults(n, 10, hardware=Hardware("cpu", 8 * GIB))[0]
        assert slow["epochs"] * slow["image_size"] ** 2 < fast["epochs"] * fast["image_size"] ** 2
    assert choose_defaults(1_281_167, 1000, hardware=Hardware("npu", 80 * GIB), pretrained=False)[0]["epochs"] == 90


def test_fine_tuning_takes_smaller_steps_than_training_from_scratch() -> None:
    tuned = choose_defaults(5000, 10, hardware=Hardware("cuda", 16 * GIB), pretrained=True)[0]
    fresh, reasons = choose_defaults(5000, 10, hardware=Hardware("cuda", 16 * GIB), pretrained=False)
    assert tuned["epochs"] < fresh["epochs"]
    assert tuned["scale"][0] > fresh["scale"][0] and "auto_augment" not in tuned
    assert any("--pretrained reaches more" in reason for reason in reasons)


def test_the_average_is_shorter_than_the_run() -> None:
    for n in (50, 500, 5000, 500_000):
        settings = choose_defaults(n, 5, hardware=Hardware("cuda", 16 * GIB))[0]
        steps = settings["epochs"] * max(n // settings["batch_size"], 1)
        assert 1 / (1 - settings["ema_decay"]) < steps / 5
        assert settings["ema_warmup"] < steps / 5
    short = choose_defaults(5000, 5, hardware=Hardware("cuda", 16 * GIB), fixed={"max_steps": 20})[0]
    assert 1 / (1 - short["ema_decay"]) < 20 / 5 and short["warmup_epochs"] == 0, "20 steps are less than an epoch"


def test_few_pictures_are_said_to_be_few() -> None:
    assert any("10 pictures per class are few" in r for r in choose_defaults(50, 5, hardware=Hardware("cpu", None))[1])
    for images, classes in ((0, 3), (10, 1)):
        with pytest.raises(ValueError, match="at least two classes"):
            choose_defaults(images, classes, hardware=Hardware("cpu", None))


def test_what_is_settled_already_shapes_the_rest() -> None:
    fixed = {"epochs": 1, "batch_size": 10, "image_size": 107}
    settings, reasons = choose_defaults(200, 4, hardware=Hardware("cpu"), fixed=fixed)
    assert (settings["batch_size"], settings["image_size"], settings["warmup_epochs"]) == (10, 107, 0)
    assert any("epochs 1: about 20 steps" in reason for reason in reasons)
    assert not any(reason.startswith(("image_size", "batch_size")) for reason in reasons), "those are not its own"


class Squares(Source):
    """Pictures of one colour each."""

    class_names = ("a", "b")

    def __init__(self, count: int) -> None:
        self.labels = [i % 2 for i in range(count)]

    def load(self, index: int, *, exif_rotation: bool = True) -> torch.Tensor:
        return torch.full((3, 76, 76), index, dtype=torch.uint8)

    def name(self, index: int) -> str:
        return str(index)


@pytest.mark.parametrize("processes", range(1, 9))
def test_every_process_gets_a_batch_that_batchnorm_can_use(processes: int) -> None:
    """What is chosen is what the loader makes, and the averages fit into its number of steps."""
    for images in range(2, 201):
        hardware = Hardware("cpu", 8 * GIB, processes)
        if images // processes < 2:
            message = rf"{images} training pictures for {processes} processes: .*at most {images // 2}"
            with pytest.raises(ValueError, match=message):
                choose_defaults(images, 2, hardware=hardware, fixed={"image_size": 75})
            continue
        settings, reasons = choose_defaults(images, 2, hardware=hardware, fixed={"image_size": 75})
        config = build_config(settings | {"data_dir": "photos", "workers": 0, "auto_augment": None})
        loader = TrainLoader(
            Squares(images), config.data, config.augmentation, world=World(processes - 1, processes), seed=0
        )
        assert 2 <= len(next(loader.epoch(0))) == config.data.batch_size
        steps = config.schedule.epochs * loader.steps_per_epoch
        assert any(f"about {steps} steps" in reason for reason in reasons)
        assert 1 / (1 - config.optimizer.ema_decay) <= max(steps / 5, 2)
        assert config.optimizer.ema_warmup <= max(steps / 5, 1)
        assert config.schedule.warmup_epochs < config.schedule.epochs


def test_the_steps_are_those_of_what_was_said() -> None:
    def steps(**fixed: object) -> str:
        reasons = choose_defaults(100, 2, hardware=Hardware("cpu", 8 * GIB), fixed={"epochs": 2, **fixed})[1]
        return next(reason for reason in reasons if reason.startswith("epochs"))

    assert "about 24 steps" in steps() and "about 26 steps" in steps(drop_last=False)
    assert "about 8 steps" in steps(accum_steps=3) and "about 5 steps" in steps(max_steps=5)
    assert "about 2 steps" in steps(batch_size=50, accum_steps=2)


def test_the_number_of_processes_is_torchruns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = class_folders(tmp_path / "photos", {"ape": 125, "bear": 125}, size=20)
    config = build_config({"data_dir": str(photos), "device": "cpu"})
    alone, _ = suit_data(config, {})
    monkeypatch.setenv("WORLD_SIZE", "8")
    together, reasons = suit_data(config, {})
    assert together.optimizer.ema_warmup < alone.optimizer.ema_warmup
    assert together.optimizer.ema_decay < alone.optimizer.ema_decay
    assert any("200 pictures in 8 processes" in reason for reason in reasons)


@pytest.mark.parametrize("each", [2, 3, 5, 9, 12, 14, 26, 70])
def test_the_training_pictures_are_counted_without_those_held_out(
    each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (f"{kind}/{i}.jpg" for kind in ("ape", "bear") for i in range(each)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    made = refused = 0
    for processes in range(1, 9):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        try:
            config, _ = suit_data(build_config({"data_dir": str(tmp_path), "device": "cpu"}), {})
        except ValueError as error:
            refused += 1
            assert "BatchNorm needs two at a time in each" in str(error)
            continue
        source = open_source(config.data, "train", world=World(), seed=config.run.seed)
        loader = TrainLoader(source, config.data, config.augmentation, world=World(0, processes), seed=config.run.seed)
        made += loader.steps_per_epoch > 0
    assert made + refused == 8 and made


def test_too_many_processes_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class_folders(tmp_path / "photos", {"ape": 2, "bear": 2})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert cli.run(["train", "--data-dir", "photos", "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "error: 2 training pictures for 8 processes: BatchNorm needs two at a time in each" in error
    assert "start at most 1" in error and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_four_pictures_are_enough_to_train(tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", {"ape": 2, "bear": 2})
    given = {
        "data_dir": str(photos), "image_size": 75, "max_steps": 1, "device": "cpu", "workers": 0, "tensorboard": False,
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    config, _ = suit_data(build_config(given), given)
    assert config.data.batch_size == 2
    assert train(config)["steps"] == 1


@pytest.mark.parametrize("pretrained", [True, False])
def test_every_kind_of_optimizer_gets_a_rate_of_its_own(pretrained: bool) -> None:
    def chosen(opt: str, images: int = 900) -> tuple[dict[str, object], str]:
        settings, reasons = choose_defaults(
            images, 3, hardware=Hardware("cuda", 16 * GIB), pretrained=pretrained, fixed={"opt": opt}
        )
        (line,) = (reason for reason in reasons if "lr " in reason)
        assert build_config(settings).optimizer.opt == opt
        return settings, line

    sgd, adam = (0.01, 2e-4) if pretrained else (0.045, 5e-4)
    for opt in ("sgd", "nesterov", "rmsproptf"):
        settings, line = chosen(opt)
        assert settings["lr"] == sgd and settings["lr_base_batch"] and f"{opt}'s steps are as large" in line
        assert settings["clip_grad"] == 5.0 and settings["weight_decay"] <= 1e-4, "L2"
    for opt, decay in (("nadamw", 0.05), ("adam", 1e-4), ("adan", 1e-4)):
        settings, line = chosen(opt, 200_000)
        assert (settings["lr"], settings["lr_base_batch"], settings["weight_decay"]) == (adam, None, decay)
        assert line.startswith(f"lr {adam:g} for {opt}: ")
    rates = [chosen(opt)[0]["lr"] for opt in ("lion", "lamb", "nmuon")]
    assert rates == ([3e-5, 0.001, 0.002] if pretrained else [1e-4, 0.005, 0.004])
    settings, line = chosen("adadelta")
    assert settings["lr"] == adam and "--lr-find proposes one" in line
    assert not {"momentum", "opt_beta2"} & chosen("lamb")[0].keys(), "made for another one"


def test_a_rate_and_its_batch_that_were_given_stay(tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", {"ape": 12, "bear": 12}, size=20)
    given = {"data_dir": str(photos), "device": "cpu", "lr": 0.02, "lr_base_batch": 64}
    assert suit_data(build_config(given), given)[0].optimizer.lr_base_batch == 64
    alone = {name: value for name, value in given.items() if name != "lr_base_batch"}
    assert suit_data(build_config(alone), alone)[0].optimizer.lr_base_batch is None
    other = {name: value for name, value in given.items() if not name.startswith("lr")} | {"opt": "adamw"}
    config, reasons = suit_data(build_config(other), other)
    assert (config.optimizer.lr, config.optimizer.lr_base_batch) == (5e-4, None)
    assert any("AdamW lr 0.0005" in reason for reason in reasons)
