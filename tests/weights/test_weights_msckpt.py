"""MindSpore's `.ckpt` wire format, against files of the real MindSpore and an independent protobuf parser."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from running import ROOT

from inception_v4.weights.files import msckpt
from inception_v4.weights.files.mindspore import from_tensor, to_tensor
from inception_v4.weights.files.msckpt import Checkpoint, DamagedCheckpoint, Value

FIXTURES = ROOT / "tests" / "mindspore" / "fixtures"


def read_all(path: Path) -> dict[str, Value | str]:
    file = Checkpoint(path)
    return {name: file.read(name) for name in file.records}


def numbers(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """The same as `make_fixtures.py` gave to MindSpore."""
    count = int(np.prod(shape))
    return ((np.arange(count) * 37 % 101 - 20) % 100).astype(msckpt.NUMPY_TYPES[kind]).reshape(shape)


def sample() -> dict[str, Value | str]:
    shapes = {"scalar": (), "vector": (5,), "kernel": (2, 1, 3, 2)}
    values = {f"{k}.{name}": Value(k, numbers(k, s)) for k in msckpt.NUMPY_TYPES for name, s in shapes.items()}
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
    return values | {"special": Value("Float32", special), "text": "Grüße, 你好 🙂", "nothing": ""}


def same(one: dict[str, Value | str], other: dict[str, Value | str]) -> bool:
    """Names in order, types, shapes and bits."""

    def key(value: Value | str) -> object:
        return value if isinstance(value, str) else (value.kind, value.array.shape, value.array.tobytes())

    return [(n, key(v)) for n, v in one.items()] == [(n, key(v)) for n, v in other.items()]


def protobuf_checkpoint() -> type:
    """MindSpore's message as google.protobuf understands it, from a description built here."""
    file = descriptor_pb2.FileDescriptorProto(name="ckpt.proto", package="ms", syntax="proto2")
    kind = descriptor_pb2.FieldDescriptorProto
    messages = {
        "Tensor": [
            ("dims", 1, 3, kind.TYPE_INT64, None),
            ("type", 2, 2, kind.TYPE_STRING, None),
            ("data", 3, 2, kind.TYPE_BYTES, None),
        ],
        "Value": [("tag", 1, 2, kind.TYPE_STRING, None), ("tensor", 2, 1, kind.TYPE_MESSAGE, ".ms.Tensor")],
        "Checkpoint": [("value", 1, 3, kind.TYPE_MESSAGE, ".ms.Value")],
    }  # fmt: skip
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, number, label, type_, type_name in fields:
            message.field.add(name=field, number=number, label=label, type=type_, type_name=type_name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ms.Checkpoint"))


@pytest.mark.parametrize("name", ["all_types.ckpt", "all_types_crc.ckpt"])
def test_real_file_is_read_and_written_back_byte_for_byte(tmp_path, name):
    values = read_all(FIXTURES / name)
    assert len(values) == 12 * 4 + 2 + 4
    spelling = {"bool_": "Bool", **{k.lower(): k for k in msckpt.NUMPY_TYPES}}
    shapes = {"scalar": (), "vector": (5,), "matrix": (2, 3), "kernel": (2, 1, 3, 2)}
    for key, value in values.items():
        kind, _, shape = key.partition(".")
        if shape and kind != "bfloat16":
            assert value.kind == spelling[kind]
            assert np.array_equal(value.array, numbers(value.kind, shapes[shape])), key
    bits = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32).tobytes()
    assert values["special"].array.tobytes() == bits
    assert torch.equal(to_tensor(values["bfloat16.vector"]), torch.from_numpy(numbers("Float32", (5,))).bfloat16())
    assert values["note"] == "Grüße, 你好"
    assert [values[n].array.item() for n in ("epoch_num", "rate", "flag")] == [3, 0.25, True]
    msckpt.write_msckpt(tmp_path / "again.ckpt", values, crc="crc" in name)
    assert (tmp_path / "again.ckpt").read_bytes() == (FIXTURES / name).read_bytes()


@pytest.mark.parametrize("crc", [False, True])
def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path, crc):
    msckpt.write_msckpt(tmp_path / "a.ckpt", sample(), crc=crc)
    assert same(read_all(tmp_path / "a.ckpt"), sample())


def test_protobuf_agrees(tmp_path):
    msckpt.write_msckpt(tmp_path / "a.ckpt", sample())
    message = protobuf_checkpoint()()
    message.ParseFromString((tmp_path / "a.ckpt").read_bytes())
    assert [v.tag for v in message.value] == list(sample())
    for parsed, value in zip(message.value, sample().values(), strict=True):
        if not isinstance(value, str):
            assert (parsed.tensor.type, tuple(parsed.tensor.dims)) == (value.kind, value.array.shape)
            assert parsed.tensor.data == value.array.tobytes()
    assert message.SerializeToString() == (tmp_path / "a.ckpt").read_bytes()


def test_large_tensors_are_sliced(tmp_path, monkeypatch):
    monkeypatch.setattr(msckpt, "SLICE_BYTES", 64)
    values = {"a": Value("Float32", numbers("Float32", (7, 9))), "b": Value("Int8", numbers("Int8", (3,)))}
    msckpt.write_msckpt(tmp_path / "a.ckpt", values, crc=True)
    message = protobuf_checkpoint()()
    message.ParseFromString((tmp_path / "a.ckpt").read_bytes()[:-17])
    assert [v.tag for v in message.value] == ["a"] * 4 + ["b"]
    assert same(read_all(tmp_path / "a.ckpt"), values)
    del message.value[1]
    (tmp_path / "b.ckpt").write_bytes(message.SerializeToString())
    with pytest.raises(DamagedCheckpoint, match=r"'a' has 188 bytes, Float32\[7, 9\] needs 252: a part is missing"):
        Checkpoint(tmp_path / "b.ckpt")


def test_no_elements_no_record(tmp_path):
    values = {"a": Value("Float32", np.zeros((0, 3), np.float32)), "b": Value("Int8", numbers("Int8", (3,)))}
    msckpt.write_msckpt(tmp_path / "a.ckpt", values)
    assert list(read_all(tmp_path / "a.ckpt")) == ["b"]


def record(tag: bytes, tensor: bytes, field: bytes = b"\x12") -> bytes:
    body = b"\x0a" + bytes([len(tag)]) + tag + field + bytes([len(tensor)]) + tensor
    return b"\x0a" + bytes([len(body)]) + body


def test_other_writers_habits(tmp_path):
    """dims [0] for a scalar, several records in one message, fields in another order, hash tables, unknown fields."""
    scalar = record(b"old", b"\x08\x00\x12\x05Int32\x1a\x04\x07\x00\x00\x00")
    turned = record(b"turned", b"\x1a\x02\x01\x02\x12\x05UInt8\x08\x02")
    table = record(b"table", b"\x0a\x03abc", field=b"\x1a")
    unknown = record(b"new", b"\x08\x01\x12\x04Int8\x1a\x01\x05\x20\x07\x2d\x00\x00\x00\x00\x31" + bytes(8))
    (tmp_path / "a.ckpt").write_bytes(scalar + turned + table + unknown)
    file = Checkpoint(tmp_path / "a.ckpt")
    assert file.read("old").array.shape == ()
    assert file.read("old").array == 7
    assert file.read("turned").array.tolist() == [1, 2]
    assert file.read("new").array.tolist() == [5]
    with pytest.raises(DamagedCheckpoint, match="hash table"):
        file.read("table")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no tensors"),
        (b"\x12\x00", "field 2 where a record should start"),
        (b"\x0a\x05\x0a\x03abc", "a record without a name or a tensor"),
        (record(b"a", b"\x08\x02\x12\x04Int8"), "a tensor without type or content"),
        (record(b"a", b"\x08\x01" * 33 + b"\x12\x04Int8\x1a\x01\x05"), r"impossible dimensions \(33, "),
        (record(b"a", b"\x08\x00\x08" + b"\xff" * 9 + b"\x01\x12\x04Int8\x1a\x00"), r"\[0, 18446744073709551615\]"),
        (record(b"a", b"\x08\x03\x12\x04Int8\x1a\x01\x05"), r"'a' has 1 bytes, Int8\[3\] needs 3: a part is missing"),
        (record(b"a", b"\x12\x04Int9\x1a\x01\x05"), "unknown type 'Int9'"),
        (record(b"a", b"\x12\x03str\x1a\x01\x05"), "text of 1 bytes"),
        (2 * record(b"a", b"\x12\x04Int8\x1a\x01\x05"), r"'a' has 2 bytes"),
        (b"".join(record(name, b"\x12\x04Int8\x1a\x01\x05") for name in (b"a", b"b", b"a")), "holds 'a' twice"),
        (b"\x0a" + b"\xff" * 12, "a number without end"),
        (record(b"\xff", b"\x12\x04Int8\x1a\x01\x05"), "a name that is no text"),
        (b"\x0a\x7f\x0a\x01a", "cut off: byte 2 starts 127 bytes, 3 are left"),
        (record(b"a", b"\x12\x04Int8\x1b\x01\x05"), "field type 3"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path, content, message):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=message):
        Checkpoint(tmp_path / "a.ckpt")


def test_crc_finds_a_flipped_bit(tmp_path):
    content = bytearray((FIXTURES / "all_types_crc.ckpt").read_bytes())
    content[1000] ^= 1
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match="its CRC is not the one it was saved with"):
        Checkpoint(tmp_path / "a.ckpt")


def test_every_truncation_is_an_error_or_ends_at_a_record(tmp_path):
    path, whole = tmp_path / "a.ckpt", (FIXTURES / "all_types.ckpt").read_bytes()
    names = list(read_all(FIXTURES / "all_types.ckpt"))
    clean = 0
    path.write_bytes(whole)
    for length in range(len(whole) - 1, 0, -1):
        os.truncate(path, length)
        try:
            held = list(Checkpoint(path).records)
        except DamagedCheckpoint:
            continue
        assert held == names[: len(held)]
        clean += 1
    assert clean == len(names) - 1  # those need the check for missing names


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool]
)
def test_tensors_pass_without_a_copy(dtype):
    tensor = (torch.arange(6).reshape(2, 3) % 2).to(dtype)
    value = from_tensor(tensor)
    assert value.array.ctypes.data == tensor.data_ptr()
    assert torch.equal(to_tensor(value), tensor)


NUMPY_ONLY = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("msckpt", sys.argv[1])
sys.modules["msckpt"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(len(module.Checkpoint(pathlib.Path(sys.argv[2])).records), {"torch", "mindspore"} & set(sys.modules))
"""


def test_needs_numpy_only():
    command = [sys.executable, "-c", NUMPY_ONLY, msckpt.__file__, str(FIXTURES / "all_types.ckpt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "54 set()"
