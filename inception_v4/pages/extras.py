"""Optional packages, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtra(RuntimeError):
    """An optional package that is not installed; one line with the remedy."""


def optional(package: str, extra: str) -> Any:
    """The package, imported.

    Args:
        extra: of this project's installation that brings it.
    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"this needs {error.name}: pip install 'inception-v4[{extra}]'") from error
