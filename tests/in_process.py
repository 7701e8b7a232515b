"""Commands run in the test's own process, and what of torch they call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from inception_v4.cli.main import run


def outcome(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()
    code = run(list(words))
    return code, *capsys.readouterr()


class Calls(TorchFunctionMode):
    """How often convolutions and matrix products were called while it was open."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = self.products = 0

    def __torch_function__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.convolutions += function is F.conv2d
        self.products += function is F.linear
        return function(*args, **(kwargs or {}))
