"""`torch.hub` finds the network in a copy of this repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from live import enliven

from inception_v4 import InceptionV4, save_weights
from inception_v4.weights import WeightsInfo

ROOT = str(Path(__file__).parent.parent)


def test_torch_hub_loads_the_network_with_weights(tmp_path: Path) -> None:
    model = enliven(InceptionV4(5))
    path = save_weights(model, tmp_path / "w.safetensors", WeightsInfo(num_classes=5))
    loaded = torch.hub.load(ROOT, "inception_v4", source="local", ckpt_path=str(path))
    assert isinstance(loaded, InceptionV4) and loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    with pytest.raises(TypeError, match="colour"):
        torch.hub.load(ROOT, "inception_v4", source="local", colour="blue")
