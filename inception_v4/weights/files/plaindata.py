"""What checkpoints may hold beside tensors: an allow-list of types that only hold data.

The unpickler builds none of them as their modules would. Each name stands for a function here that takes the
arguments such a value is pickled with and no others, and returns a plain value: nothing is imported for a file,
no enum is looked up, no default factory is kept, and numpy builds no array.
"""

from __future__ import annotations

import argparse
import datetime
import math
import pathlib
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np

_ELEMENTS = re.compile(r"[biufc]\d{1,2}|[SU]\d{1,9}")
"""numpy's codes of the types that hold numbers or text; neither objects nor structures."""


@dataclass(frozen=True)
class Named:
    """A type or an enum's member, of which only the name is kept."""

    name: str

    def __str__(self) -> str:
        return self.name


class Dtype:
    """A numpy dtype as it is pickled: a code, then a state with the byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not (isinstance(code, str) and _ELEMENTS.fullmatch(code)):
            _refuse("numpy dtype", code)
        self.code, self.order = code, "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        parts = state[2:5] if isinstance(state, tuple) else ()  # of structures and arrays of arrays
        if len(parts) != 3 or any(part is not None for part in parts) or state[1] not in ("<", ">", "|", "="):
            _refuse("numpy dtype", state)
        self.order = state[1]

    def values(self, content: bytes, count: int) -> np.ndarray:
        """`count` elements, a view of `content`, which must have just their length."""
        dtype = np.dtype(self.order + self.code)
        if not isinstance(content, bytes) or dtype.itemsize * count != len(content):
            _refuse("numpy values", content)
        return np.frombuffer(content, dtype, count)

    def __str__(self) -> str:
        return str(np.dtype(self.order + self.code))


class Array:
    """A numpy array as it is pickled: empty, then a state with its content in `values`."""

    values: np.ndarray | None = None

    def __setstate__(self, state: Sequence[Any]) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], Dtype):
            _refuse("numpy array", state)
        _, shape, dtype, fortran, content = state
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            _refuse("numpy array", shape)
        self.values = dtype.values(content, math.prod(shape)).reshape(shape, order="F" if fortran else "C")

    def __str__(self) -> str:
        return "array" if self.values is None else f"array of {self.values.dtype}{list(self.values.shape)}"


def _scalar(dtype: Dtype, content: bytes) -> Any:
    if not isinstance(dtype, Dtype):
        _refuse("numpy scalar", dtype)
    return dtype.values(content, 1)[0].item()


def _empty_array(kind: type, shape: object = None, code: object = None) -> Array:
    if kind is not Array:
        _refuse("numpy array", kind)
    return Array()


def _path(kind: Callable[..., pathlib.PurePath], *parts: str) -> pathlib.PurePath:
    if not all(isinstance(part, str) for part in parts):
        _refuse("path", parts)
    return kind(*parts)


def _without_factory(factory: object = None) -> dict[Any, Any]:
    """A defaultdict's items follow; what made the missing ones is dropped."""
    return {}


def _no_bytes() -> bytes:
    """The only bytes that are pickled as a call."""
    return b""


def _member(name: str, value: int | str) -> Named:
    if not isinstance(value, (int, str)):
        _refuse(name, value)
    return Named(f"{name}({value!r})"[:80])


def _refuse(what: str, value: object) -> NoReturn:
    raise UnpicklingError(f"no plain {what}: {type(value).__name__}")


_FACTORIES = ("bool", "dict", "float", "int", "list", "str", "tuple")
_ENUMS = (
    "calendar.Day", "calendar.Month", "enum.FlagBoundary", "http.HTTPMethod", "http.HTTPStatus",
    "inspect._ParameterKind", "plistlib.PlistFormat", "pstats.SortKey", "py_compile.PycInvalidationMode",
    "re.RegexFlag", "signal.Handlers", "signal.Sigmasks", "signal.Signals", "socket.AddressFamily", "socket.MsgFlag",
    "socket.SocketKind", "ssl.TLSVersion", "ssl.VerifyMode", "uuid.SafeUUID",
)  # fmt: skip
_PATHS = {
    "PosixPath": pathlib.PurePosixPath, "PurePosixPath": pathlib.PurePosixPath,
    "WindowsPath": pathlib.PureWindowsPath, "PureWindowsPath": pathlib.PureWindowsPath,
}  # fmt: skip

ALLOWED: list[Any] = [
    argparse.Namespace,
    *(getattr(datetime, name) for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *((partial(_path, kind), f"{module}.{name}") for module in ("pathlib", "pathlib._local")
      for name, kind in _PATHS.items()),
    (_without_factory, "collections.defaultdict"),
    (_no_bytes, "builtins.bytes"),
    (frozenset, "builtins.frozenset"),
    *((Named(name), f"builtins.{name}") for name in _FACTORIES),
    *((partial(_member, name), name) for name in _ENUMS),
    *((Named(f"signal.{name}"), f"signal.{name}") for name in signal.Signals.__members__),
    (Dtype, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_empty_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]  # fmt: skip
"""What `torch.serialization.safe_globals` is to allow; tensors, `torch.Size`, `torch.device`, `OrderedDict` and sets
are PyTorch's own to allow."""
