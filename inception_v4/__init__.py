"""Inception-v4 for PyTorch. Public names load on first use, so that importing the package does not import torch."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "InceptionV4": "network.model",
    "Config": "settings.schema",
    "load_config": "settings.recipes",
    "Preprocessing": "preprocessing",
    "load_weights": "weights",
    "read_weights": "weights",
    "save_weights": "weights",
    "convert_weights": "weights.convert",
    "WeightsInfo": "weights",
    "create_model": "inference.predict",
    "Predictor": "inference.predict",
    "fuse": "network.fusion",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
