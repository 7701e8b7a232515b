"""Shared fixtures: a cache of its own for drawn pictures, and one tiny finished run for all who need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from running import LIVELY, THREADS, tiny


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
    folder = tmp_path_factory.mktemp("run") / "finished"
    train(tiny(folder, **LIVELY))
    return folder


@pytest.fixture(autouse=True)
def quiet_threads() -> None:
    torch.set_num_threads(THREADS)
