"""Parameters in every format: read, load into a network, write.

One file per format and one plain dict, `LAYOUTS`, as registry. Works on any module with this network's state dict.

Knows files, names and tensors. Must never know a device, a runtime or how the network is trained.
"""

from __future__ import annotations

from inception_v4.weights.layouts.registry import LAYOUTS
from inception_v4.weights.loading import LoadReport, load_weights
from inception_v4.weights.reading import read_weights
from inception_v4.weights.record import Weights, WeightsError, WeightsInfo
from inception_v4.weights.writing import save_weights, write_weights

__all__ = [
    "LAYOUTS",
    "LoadReport",
    "Weights",
    "WeightsError",
    "WeightsInfo",
    "load_weights",
    "read_weights",
    "save_weights",
    "write_weights",
]
