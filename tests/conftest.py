"""Shared fixtures: a cache of its own for drawn pictures, and one tiny finished run for all who need one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from running import LIVELY, THREADS, tiny
from temporary import module_folder, once, shared_folder

__all__ = ["module_folder"]

LONGEST = (
    "test_train.py", "test_several_processes.py", "test_runtimes.py", "test_engines.py", "test_export.py",
    "test_cli.py", "test_model.py", "test_om.py", "test_validate.py", "test_predict.py", "test_demo.py",
    "test_weights_plain_data.py", "test_weights_convert.py", "test_weights_load.py", "test_report.py", "test_layers.py",
)  # fmt: skip
"""Files that come first, so that processes that share the tests end together."""


def pytest_configure(config: pytest.Config) -> None:
    """Interruptions reach what tests start, also where the tests run in a shell's background, which ignores them."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would begin with the files of many tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing is read from or left in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished tiny run with everything random switched on."""
    from inception_v4.training.train import train

    torch.set_num_threads(THREADS)  # before the tests' own fixture: the tests compare bits with this run's
    folder = shared_folder(tmp_path_factory) / "finished"
    return once(folder, lambda: train(tiny(folder, **LIVELY)))


@pytest.fixture(scope="session")
def live_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of two classes to start from where blocks are frozen: signals fade in random ones."""
    from live import enliven_gently

    from inception_v4.network.model import InceptionV4
    from inception_v4.weights import WeightsInfo, save_weights

    file = shared_folder(tmp_path_factory) / "live.safetensors"
    return str(once(file, lambda: save_weights(enliven_gently(InceptionV4(2)), file, WeightsInfo(2))))


@pytest.fixture(autouse=True)
def quiet_threads() -> None:
    torch.set_num_threads(THREADS)
