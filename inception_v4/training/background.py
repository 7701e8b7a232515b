"""Files that are written beside the training, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch


class BackgroundWriter:
    """Does one piece of work at a time in a thread of its own; what went wrong is raised by the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin with `work` once the one before is done.

        Raises:
            Exception: what the one before raised; `work` is under way all the same.
        """
        self._join()
        earlier, self._error = self._error, None
        # Not a daemon: a program that ends otherwise still finishes the file.
        self._thread = threading.Thread(target=self._do, args=(work,), name="writer")
        self._thread.start()
        if earlier is not None:
            raise earlier

    def finish(self) -> None:
        """Wait until everything is written; raises what went wrong."""
        self._join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error


def host_copy(state: Any) -> Any:
    """A nested state whose tensors are copies on the host: training changes the originals meanwhile."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: host_copy(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(host_copy(value) for value in state)
    return state
