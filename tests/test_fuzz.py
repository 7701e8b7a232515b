"""The search for files that a reader does not answer (`tools/fuzz.py`): its seeds are valid, and it sees a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

SEEDS = """
import pathlib, sys
sys.path[:0] = [{root!r}, {tools!r}]
import fuzz
for name, reader in fuzz.READERS.items():
    folder = pathlib.Path({folder!r}, name)
    folder.mkdir()
    seeds, read = reader(folder)
    for seed in seeds:
        read(seed)
        read(seed[: len(seed) // 2])
    print(name, len(seeds))
"""


@pytest.mark.slow
def test_every_reader_takes_its_seeds_whole_and_cut(tmp_path: Path) -> None:
    code = SEEDS.format(root=str(ROOT), tools=str(ROOT / "tools"), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 12 and " 0" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        ("raise KeyError('damaged')", "KeyError"),
        ("raise weights.WeightsError('no file is named')", "AssertionError: an error that does not name the file"),
        ("raise weights.WeightsError(f'{path} is\\ndamaged')", "AssertionError: an error that is no line"),
        ("return weights.Raw({'a': torch.zeros(9999)})", "AssertionError: 39996 bytes of numbers from a file of 3"),
        ("pass", ""),
    ],
)
def test_a_failure_is_seen(tmp_path: Path, fault: str, raised: str) -> None:
    """And, for control, a reader without one passes."""
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tools")!r}]
import fuzz, pathlib, torch
from inception_v4.weights import record as weights
from inception_v4.weights.files import containers
seeds, reading = fuzz.safetensors(pathlib.Path({str(tmp_path)!r}))
real = containers.read
def read(path):
    {fault}
    return real(path)
containers.read = read
reading(b"abc")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0) == bool(raised) and raised in done.stderr, done.stderr
