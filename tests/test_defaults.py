"""Settings chosen for a folder of pictures: valid, within memory, and with a reason each."""

from __future__ import annotations

import itertools

import pytest

from inception_v4.config import build_config
from inception_v4.defaults import choose_defaults

GIB = 1 << 30


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda", "npu", "mps", "xpu"])
def test_always_a_valid_configuration(device: str, pretrained: bool) -> None:
    for images, memory in itertools.product((4, 60, 900, 30_000, 1_281_167), (None, 2 * GIB, 8 * GIB, 80 * GIB)):
        settings, reasons = choose_defaults(images, 2, memory, device, pretrained=pretrained)
        config = build_config(settings | {"data_dir": "photos", "pretrained": pretrained})
        assert config.schedule.warmup_epochs < config.schedule.epochs
        assert 1 <= config.data.batch_size <= 64
        said = " ".join(reasons)
        assert all(name in said for name in ("batch_size", "lr ", "epochs"))
        assert ("amp" in said) == (config.training.amp != "off")


def test_batch_grows_with_memory_and_stays_below_the_data() -> None:
    sizes = [choose_defaults(50_000, 10, m * GIB, "cuda")[0]["batch_size"] for m in (3, 4, 8, 16, 80)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] == 64
    assert choose_defaults(100, 5, 80 * GIB, "cuda")[0]["batch_size"] == 8, "eight steps in an epoch"
    # A 299-pixel picture keeps 165 MiB for the backward pass in float32.
    size = choose_defaults(50_000, 10, 8 * GIB, "mps")[0]["batch_size"]
    assert size * 165 * 2**20 < 8 * GIB < 4 * size * 165 * 2**20


def test_little_memory_is_paid_for_with_time() -> None:
    settings, reasons = choose_defaults(5000, 10, 2 * GIB, "cuda")
    assert settings["grad_checkpointing"] and settings["batch_size"] == 8
    assert any("more time, less memory" in reason for reason in reasons)
    assert "grad_checkpointing" not in choose_defaults(5000, 10, 80 * GIB, "cuda")[0]


def test_length_follows_the_data() -> None:
    epochs = [choose_defaults(n, 10, 8 * GIB, "cuda")[0]["epochs"] for n in (200, 2000, 20_000, 200_000)]
    assert epochs == sorted(epochs, reverse=True) and epochs[0] == 40 and epochs[-1] == 5
    for n in (200, 2000, 20_000):
        fast = choose_defaults(n, 10, 8 * GIB, "cuda")[0]
        slow = choose_defaults(n, 10, 8 * GIB, "cpu")[0]
        assert slow["epochs"] * slow["image_size"] ** 2 < fast["epochs"] * fast["image_size"] ** 2
    assert choose_defaults(1_281_167, 1000, 80 * GIB, "npu", pretrained=False)[0]["epochs"] == 90


def test_fine_tuning_takes_smaller_steps_than_training_from_scratch() -> None:
    tuned = choose_defaults(5000, 10, 16 * GIB, "cuda", pretrained=True)[0]
    fresh, reasons = choose_defaults(5000, 10, 16 * GIB, "cuda", pretrained=False)
    assert tuned["epochs"] < fresh["epochs"]
    assert tuned["scale"][0] > fresh["scale"][0] and "auto_augment" not in tuned
    assert any("--pretrained reaches more" in reason for reason in reasons)


def test_the_average_is_shorter_than_the_run() -> None:
    for n in (50, 500, 5000, 500_000):
        settings = choose_defaults(n, 5, 16 * GIB, "cuda")[0]
        steps = settings["epochs"] * max(n // settings["batch_size"], 1)
        assert 1 / (1 - settings["ema_decay"]) < steps / 5
        assert settings["ema_warmup"] < steps / 5


def test_few_pictures_are_said_to_be_few() -> None:
    assert any("10 pictures per class are few" in r for r in choose_defaults(50, 5, None, "cpu")[1])
    for images, classes in ((0, 3), (10, 1)):
        with pytest.raises(ValueError, match="at least two classes"):
            choose_defaults(images, classes, None, "cpu")


def test_what_is_settled_already_shapes_the_rest() -> None:
    settings, reasons = choose_defaults(200, 4, None, "cpu", fixed={"epochs": 1, "batch_size": 10, "image_size": 107})
    assert (settings["batch_size"], settings["image_size"], settings["warmup_epochs"]) == (10, 107, 0)
    assert any("epochs 1: about 20 steps" in reason for reason in reasons)
    assert not any(reason.startswith(("image_size", "batch_size")) for reason in reasons), "those are not its own"
