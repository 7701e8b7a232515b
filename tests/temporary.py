"""Folders of tests: gone after the tests of one file, or shared by all processes of a parallel run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

NewFolder = Callable[[str], Path]


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[NewFolder]:
    """Makes folders for a file's tests. They are removed with its last one, unless one failed: runs take gigabytes."""
    made: list[Path] = []
    failed = request.session.testsfailed

    def make(name: str) -> Path:
        made.append(tmp_path_factory.mktemp(name))
        return made[-1]

    yield make
    if request.session.testsfailed == failed:
        for folder in made:
            shutil.rmtree(folder)
            folder.mkdir()  # or another file's folder would get the name, under which functions keep what they made


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """One for all processes of a parallel run. What is in it is made by `once` and changed by nobody."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def once(path: Path, make: Callable[[], object]) -> Path:
    """`path`, made by whichever process asks first; the others wait. What a failure leaves half made is removed."""
    folder = path.parent  # in which tests look at what is left
    with FileLock(folder.with_name(f"{folder.name}-{path.name}.lock")):
        if not path.exists():
            try:
                make()
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
    return path
