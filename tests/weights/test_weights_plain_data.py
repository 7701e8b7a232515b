"""What training programs leave beside the tensors: data is read, and nothing that could run is."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import http
import inspect
import os
import pathlib
import pickle
import plistlib
import pstats
import py_compile
import re
import signal
import socket
import ssl
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weights_cases import equal, save, tiny_state

from inception_v4.weights import WeightsError, read_weights
from inception_v4.weights.files import plaindata
from inception_v4.weights.files.pickled import read_pickled

UTC = datetime.timezone.utc
DATA: dict[str, tuple[Any, str]] = {
    "float": (np.float64(77.5), "77.5"),
    "float32": (np.float32(0.5), "0.5"),
    "int": (np.int64(-3), "-3"),
    "bool": (np.bool_(True), "True"),
    "text": (np.str_("ab"), "'ab'"),
    "array": (np.arange(6.0).reshape(2, 3), "array of float64[2, 3]"),
    "fortran": (np.asfortranarray(np.arange(6).reshape(2, 3)), "array of int64[2, 3]"),
    "big-endian": (np.arange(3, dtype=">i2"), "array of >i2[3]"),
    "words": (np.array(["ab", "c"]), "array of <U2[2]"),
    "no elements": (np.zeros((0, 4), np.float32), "array of float32[0, 4]"),
    "dtype": (np.dtype("float32"), "float32"),
    "datetime": (datetime.datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02 00:00:00+00:00"),
    "date": (datetime.date(2026, 1, 2), "2026-01-02"),
    "time": (datetime.time(3, 4), "03:04:00"),
    "timedelta": (datetime.timedelta(1), "1 day, 0:00:00"),
    "path": (pathlib.Path("a/b"), "a/b"),
    "windows": (pathlib.PureWindowsPath("c:/x"), "c:\\x"),
    "namespace": (argparse.Namespace(lr=np.float64(0.1), out=pathlib.PurePosixPath("x"), kind=int), "Namespace"),
    "ordered": (collections.OrderedDict(a=1), "OrderedDict of 1"),
    "default": (collections.defaultdict(list, {"a": [1]}), "dict of 1"),
    "default of floats": (collections.defaultdict(float), "dict of 0"),
    "size": (torch.Size([2, 3]), "Size of 2"),
    "device": (torch.device("cpu"), "cpu"),
    "type": (float, "float"),
    "no bytes": (b"", "bytes"),
    "frozenset": (frozenset({1}), "frozenset"),
}
ENUMS = [
    http.HTTPStatus.OK, signal.SIGINT, signal.Signals.SIGTERM, signal.SIG_DFL, re.I | re.M, socket.AF_INET,
    socket.SOCK_STREAM, ssl.TLSVersion.TLSv1_2, ssl.CERT_NONE, uuid.SafeUUID.safe, pstats.SortKey.TIME,
    plistlib.FMT_XML, inspect.Parameter.KEYWORD_ONLY, enum.STRICT, py_compile.PycInvalidationMode.TIMESTAMP,
]  # fmt: skip


def described(value: Any, path: Path, zipped: bool = True) -> str:
    content = {"state_dict": tiny_state(3), "value": value}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return read_pickled(path).extras["value"]


@pytest.mark.parametrize("zipped", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_plain_data_is_read(tmp_path: Path, zipped: bool) -> None:
    for name, (value, expected) in DATA.items():
        assert described(value, tmp_path / "a.pth", zipped) == expected, name


def test_members_of_the_standard_librarys_enums_are_named(tmp_path: Path) -> None:
    for member in ENUMS:
        kind = f"{type(member).__module__}.{type(member).__qualname__}"
        known = (f"{kind}({member.value!r})", f"signal.{member.name}")  # some are pickled by name
        assert described(member, tmp_path / "a.pth") in known


def test_the_weights_come_with_everything_beside_them(tmp_path: Path) -> None:
    content = {"state_dict": tiny_state(), "args": DATA["namespace"][0], "best": np.float64(77.5)}
    weights = read_weights(save(content | {"names": DATA["words"][0]}, tmp_path / "a.pth"))
    assert equal(weights.state, tiny_state())
    assert set(weights.dropped) == {"args: Namespace", "best: 77.5", "names: array of <U2[2]"}


def test_the_values_are_the_ones_that_were_saved(tmp_path: Path) -> None:
    for name in ("array", "fortran", "big-endian", "words", "no elements"):
        torch.save([DATA[name][0]], tmp_path / "a.pth")
        with torch.serialization.safe_globals(plaindata.ALLOWED):
            (found,) = torch.load(tmp_path / "a.pth", weights_only=True)
        assert np.array_equal(found.values, DATA[name][0]), name


def test_numpys_names_of_version_1_and_2(tmp_path: Path) -> None:
    for old, new in ((b"numpy.core.", b"numpy._core."), (b"numpy._core.", b"numpy.core.")):
        torch.save({"s": np.float64(1.5), "a": np.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
        data = (tmp_path / "a.pth").read_bytes().replace(old + b"multiarray", new + b"multiarray")
        (tmp_path / "a.pth").write_bytes(data)
        with torch.serialization.safe_globals(plaindata.ALLOWED):
            found = torch.load(tmp_path / "a.pth", weights_only=True)
        assert new in data
        assert found["s"] == 1.5 and found["a"].values.tolist() == [1, 1]


class Call:
    """Pickles to a call of `function` with `arguments`, and `state` for its result."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.made = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


class Flavour(enum.Enum):
    VANILLA = 1


class Elsewhere(pathlib.PurePosixPath):
    """A path that could do anything when it is made."""


def factory() -> None:
    raise AssertionError("executed")


RECONSTRUCT = np.zeros(1).__reduce__()[0]
SCALAR = np.float64(1).__reduce__()[0]
OBJECTS, RECORDS = np.dtype("O"), np.dtype([("a", "O")])
STATE = (1, (4,), np.dtype("f8"), False, b"1234")

HOSTILE = {
    "factory": collections.defaultdict(factory),
    "factory of the system": Call(collections.defaultdict, os.mkdir),
    "a call as factory": Call(collections.defaultdict, list, Call(os.mkdir, "executed")),
    "a factory that is called": Call(list, (1, 2)),
    "bytes of any size": Call(bytes, 1 << 40),
    "path of another class": Elsewhere("a"),
    "path of no text": Call(pathlib.PurePosixPath, 3),
    "enum of a program": Flavour.VANILLA,
    "enum of no value": Call(http.HTTPStatus, {"a": 1}),
    "lookup by name": Call(getattr, http.HTTPStatus, "OK"),
    "array of objects": np.array([Call(os.mkdir, "executed"), 1], dtype=object),
    "array of nothing": np.array([None]),
    "records": np.zeros(2, [("a", "f4"), ("b", "i4")]),
    "array of another class": Call(RECONSTRUCT, np.matrix, (0,), b"b"),
    "array of a plain class": Call(RECONSTRUCT, dict, (0,), b"b"),
    "array larger than its bytes": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=STATE),
    "array of a huge shape": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1 << 60,), *STATE[2:])),
    "array of a negative shape": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1,), *STATE[2:])),
    "array with a foreign state": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state={"values": 1}),
    "scalar of objects": Call(SCALAR, OBJECTS, 1),
    "scalar of records with objects": Call(SCALAR, RECORDS, b"12345678"),
    "scalar of too few bytes": Call(SCALAR, np.dtype("f8"), b"1234"),
    "scalar of no dtype": Call(SCALAR, "f8", b"12345678"),
    "dtype of objects": OBJECTS,
    "datetime": Call(datetime.datetime, "2026"),
    "namespace of a call": argparse.Namespace(lr=Call(os.mkdir, "executed")),
    "loader of arrays": Call(np.load, "executed"),
    "evaluation": Call(eval, "__import__('os').mkdir('executed')"),
}


@pytest.mark.parametrize("zipped", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_what_is_no_plain_data_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    for name, value in HOSTILE.items():
        content = {"state_dict": tiny_state(3), "value": value}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(WeightsError, match=r"evil\.pth is (refused: it needs |truncated or damaged)") as error:
            read_pickled(path)
            pytest.fail(name)
        assert "\n" not in str(error.value), name
        assert list(tmp_path.iterdir()) == [path], name


def test_no_allowed_name_stands_for_something_that_acts() -> None:
    """Each is a type of the standard library that holds data, or a function or type of `plaindata`."""
    for entry in plaindata.ALLOWED:
        thing = getattr(entry[0], "func", entry[0]) if isinstance(entry, tuple) else entry
        home = thing.__module__
        assert (
            home in ("argparse", "datetime", "builtins")
            if isinstance(thing, type) and home != plaindata.__name__
            else True
        )
        assert isinstance(thing, (type, plaindata.Named)) or home == plaindata.__name__


def test_names_alone_can_not_be_called() -> None:
    for entry in plaindata.ALLOWED:
        if isinstance(entry, tuple) and isinstance(entry[0], plaindata.Named):
            assert not callable(entry[0])
            assert pickle.loads(pickle.dumps(entry[0])) == entry[0]


def test_nothing_stays_allowed_afterwards(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    described(DATA["array"][0], tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)


def test_a_whole_model_is_refused_with_the_lines_that_save_its_state_dict(tmp_path: Path) -> None:
    """And they do."""
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"refused: it needs torch\.nn\.modules\.container\.Sequential") as error:
        read_weights(tmp_path / "whole.pth")
    lines = str(error.value).partition("for a whole model: ")[2]
    assert [line.split()[0] for line in lines.split("; ")] == ["import", "model", "torch.save(model.state_dict(),"]
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        exec(lines, {})
    finally:
        os.chdir(here)
    assert set(torch.load(tmp_path / "whole-state.pth")) == {"0.weight", "0.bias"}
