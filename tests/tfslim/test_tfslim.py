"""The whole network through the real TensorFlow, in an environment of its own.

Slow: `pytest -m slow tests/tfslim` with that environment's Python in `INCEPTION_V4_TENSORFLOW_PYTHON`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from temporary import NewFolder

from inception_v4.network.model import InceptionV4
from inception_v4.weights import load_weights

PYTHON = os.environ.get("INCEPTION_V4_TENSORFLOW_PYTHON")
PEER = Path(__file__).parent / "peer.py"
BOUND = 1e-5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(PYTHON is None, reason="INCEPTION_V4_TENSORFLOW_PYTHON names no Python with TensorFlow"),
]


@pytest.fixture(scope="module")
def written(module_folder: NewFolder) -> Path:
    folder = module_folder("tfslim")
    subprocess.run([str(PYTHON), str(PEER), str(folder), "107"], check=True)
    return folder


@pytest.mark.parametrize("name", ["inception_v4.ckpt", "model.ckpt-7"])
def test_logits_are_tensorflows(written: Path, name: str) -> None:
    assert_logits(written, name)


def assert_logits(folder: Path, name: str) -> None:
    """In float64 on both sides, relative to the largest logit; a change of one shift must show."""
    model = InceptionV4(1001).double().eval()
    report = load_weights(model, folder / name, classes="keep")
    assert "AuxLogits/*: 1 variables" in report.messages
    assert {"RMSProp: 1 variables", "global_step: 1 variables"} <= set(report.messages)
    pictures = torch.from_numpy(np.load(folder / "pictures.npy")).permute(0, 3, 1, 2).double()
    expected = torch.from_numpy(np.load(folder / "logits.npy"))
    with torch.no_grad():
        found = model(pictures)
        difference = float((found - expected).abs().max() / expected.abs().max())
        signal = float((expected[0] - expected[1]).abs().max() / expected.abs().max())
        print(f"{name}: logits differ by {difference:.1e} of the largest, the pictures' own by {signal:.1e}")
        assert difference < BOUND < 0.01 < signal
        model.features[1].bn.bias[0] += 0.05
        assert float((model(pictures) - expected).abs().max() / expected.abs().max()) > BOUND
