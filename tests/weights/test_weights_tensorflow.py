"""TensorFlow's checkpoints, read from files of the real TensorFlow (`tfslim/make_fixtures.py`)."""

from __future__ import annotations

import random
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from running import ROOT
from weights_cases import tiny_state

from inception_v4.weights import LAYOUTS, WeightsError, WeightsInfo, read_weights
from inception_v4.weights.files.containers import read, sniff
from inception_v4.weights.files.crc32c import crc32c, masked_crc32c
from inception_v4.weights.files.protobuf import FormatError
from inception_v4.weights.files.snappy import decompress
from inception_v4.weights.files.sstable import MAGIC, read_table
from inception_v4.weights.source import locate

FIXTURES = ROOT / "tests" / "tfslim" / "fixtures"
SCOPE = "InceptionV4/Mixed_5b/Branch_0/Conv2d_0a_1x1/"
NETWORK = {"weights": (1, 3, 4, 5), "BatchNorm/beta": (5,), "BatchNorm/moving_mean": (5,), "biases": (0, 2)}
AVERAGE = "/ExponentialMovingAverage"


def values(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers of `tfslim/make_fixtures.py`."""
    count = int(np.prod(shape))
    return torch.from_numpy(((np.arange(count) * 37 % 101 - 20 + len(name)) / 8).reshape(shape)).to(dtype)


@pytest.mark.parametrize("name", ["everything_v1.ckpt", "everything_v2.ckpt.index"])
def test_every_variable_of_the_network_is_read_and_the_others_are_listed(name):
    raw = read(FIXTURES / name)
    expected = {SCOPE + leaf: values(SCOPE + leaf, shape) for leaf, shape in NETWORK.items()}
    expected["InceptionV4/double/weights"] = values("InceptionV4/double/weights", (2, 3), torch.float64)
    assert raw.state.keys() == expected.keys()
    assert all(raw.state[n].dtype == t.dtype and torch.equal(raw.state[n], t) for n, t in expected.items())
    for leaf, shape in NETWORK.items():
        variable = SCOPE + leaf
        averaged = variable + AVERAGE if leaf in ("weights", "BatchNorm/beta") else variable
        assert torch.equal(raw.ema[variable], values(averaged, shape))
    slots = dict.fromkeys(("RMSProp", "RMSProp_1", "Momentum", "Adam"), "2 variables")
    assert raw.extras == slots | dict.fromkeys(("AuxLogits/*", "global_step", "flags"), "1 variables")


def test_half_types_and_several_data_files():
    halves = read(FIXTURES / "halves.ckpt.index").state
    for kind, dtype in (("half", torch.float16), ("bfloat", torch.bfloat16)):
        name = f"InceptionV4/{kind}/weights"
        assert halves[name].dtype == dtype and torch.equal(halves[name], values(name, (2, 3), dtype))
    shards = read(FIXTURES / "shards.ckpt.index").state
    assert shards.keys() == {SCOPE + "weights", SCOPE + "BatchNorm/beta"}
    assert all(torch.equal(t, values(n, NETWORK[n.removeprefix(SCOPE)])) for n, t in shards.items())


@pytest.mark.parametrize("name", ["partitioned_v1.ckpt", "partitioned_v2.ckpt.index"])
def test_partitioned_variables_are_refused(name):
    with pytest.raises(WeightsError, match=r"Conv2d_0a_1x1/weights is partitioned into 2 slices: restore it in Ten"):
        read(FIXTURES / name)


def test_every_name_of_a_checkpoint_leads_to_it(tmp_path):
    index = tmp_path / "model.ckpt-123.index"
    shutil.copy(FIXTURES / "everything_v2.ckpt.index", index)
    shutil.copy(FIXTURES / "everything_v2.ckpt.data-00000-of-00001", tmp_path / "model.ckpt-123.data-00000-of-00001")
    (tmp_path / "model.ckpt-123.meta").write_bytes(b"\n\x05graph")
    for end in ("", ".index", ".data-00000-of-00001", ".meta"):
        assert locate(tmp_path / f"model.ckpt-123{end}").path == index
    single = tmp_path / "inception_v4.ckpt"
    shutil.copy(FIXTURES / "everything_v1.ckpt", single)
    assert locate(single).path == single and sniff(single) == sniff(index) == "tensorflow"
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt-124 does not exist: is it model\.ckpt-123"):
        locate(tmp_path / "model.ckpt-124")
    with pytest.raises(FileNotFoundError, match=r"name one of its files \(.*model\.ckpt-123\.index"):
        locate(tmp_path)


def test_files_that_are_missing_cut_or_of_another_network(tmp_path):
    index, data = tmp_path / "a.ckpt.index", tmp_path / "a.ckpt.data-00000-of-00001"
    shutil.copy(FIXTURES / "everything_v2.ckpt.index", index)
    with pytest.raises(WeightsError, match=r"needs a\.ckpt\.data-00000-of-00001 beside it, which holds the numbers"):
        read_weights(tmp_path / "a.ckpt")
    whole = (FIXTURES / "everything_v2.ckpt.data-00000-of-00001").read_bytes()
    data.write_bytes(bytes(byte ^ 1 for byte in whole))
    with pytest.raises(WeightsError, match=r"data-00000-of-00001 is truncated or damaged.*have its checksum"):
        read_weights(data)
    data.write_bytes(whole[:100])
    with pytest.raises(WeightsError, match=r"data-00000-of-00001 is truncated or damaged.*lies behind its end"):
        read_weights(data)
    data.write_bytes(whole)
    with pytest.raises(WeightsError, match=r"not a complete network of this layout: missing 59\d"):
        read_weights(data)
    shutil.copy(FIXTURES / "snappy.ldb", tmp_path / "b.ckpt")
    with pytest.raises(WeightsError, match=r"b\.ckpt is truncated or damaged.*does not start with its description"):
        read_weights(tmp_path / "b.ckpt")
    entries = [(b"", b"\x08\x01"), (b"resnet/weights", b"\x08\x01")]
    write_table(tmp_path / "c.ckpt.index", entries)
    with pytest.raises(WeightsError, match=r"holds no InceptionV4/\.\.\. variables .*it has resnet/weights"):
        read_weights(tmp_path / "c.ckpt")
    write_table(tmp_path / "d.ckpt.index", [(b"", b"\x08\x01\x10\x01")])
    with pytest.raises(WeightsError, match="big-endian machine"):
        read_weights(tmp_path / "d.ckpt")


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def block(content: bytes, kind: int = 0) -> bytes:
    return content + bytes([kind]) + masked_crc32c(content, bytes([kind])).to_bytes(4, "little")


def entry(key: bytes, value: bytes) -> bytes:
    return b"\0" + varint(len(key)) + varint(len(value)) + key + value


def write_table(path: Path, entries: list[tuple[bytes, bytes]], kind: int = 0) -> Path:
    """A table of one block; its content is taken as compressed already where `kind` says so."""
    content = b"".join(entry(*pair) for pair in sorted(entries)) + bytes(4) + (1).to_bytes(4, "little")
    return write_block(path, content, kind)


def write_block(path: Path, content: bytes, kind: int = 0) -> Path:
    index = entry(b"\xff", varint(0) + varint(len(content))) + bytes(4) + (1).to_bytes(4, "little")
    data = block(content, kind)
    places = varint(0) + varint(0) + varint(len(data)) + varint(len(index))
    path.write_bytes(data + block(index) + places.ljust(40, b"\0") + MAGIC)
    return path


def bundle(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """An `.index` with its data, to have all 598 variables; the format itself is tested on TensorFlow's files."""
    data, entries = b"", [(b"", field(1, 1))]
    for name, tensor in state.items():
        content = tensor.contiguous().numpy().tobytes()
        shape = b"".join(field(2, field(1, size)) for size in tensor.shape)
        crc = varint(6 << 3 | 5) + masked_crc32c(content).to_bytes(4, "little")
        place = field(4, len(data)) + field(5, len(content))
        entries.append((name.encode(), field(1, 1) + field(2, shape) + place + crc))
        data += content
    write_table(path, entries)
    path.with_name(f"{path.stem}.data-00000-of-00001").write_bytes(data)
    return path


def test_moving_averages_are_preferred_and_said(tmp_path):
    plain, average = (LAYOUTS["tf-slim"].encode(tiny_state(1001, seed=s), WeightsInfo(1001), []) for s in (0, 1))
    path = bundle(tmp_path / "a.ckpt.index", plain | {n + AVERAGE: t for n, t in average.items()})
    weights = read_weights(tmp_path / "a.ckpt")
    assert (weights.layout, weights.info.num_classes, weights.tensors) == ("tf-slim", 1001, 598)
    assert torch.equal(weights.state["last_linear.weight"], tiny_state(1001, seed=1)["last_linear.weight"])
    assert any(note.startswith("ema: the moving averages of the weights are taken") for note in weights.notes)
    for ema, seed in ((True, 1), (False, 0)):
        found = read_weights(path, ema=ema)
        assert torch.equal(found.state["last_linear.bias"], tiny_state(1001, seed=seed)["last_linear.bias"])
    without = read_weights(bundle(tmp_path / "b.ckpt.index", plain))
    assert torch.equal(without.state["last_linear.bias"], tiny_state(1001)["last_linear.bias"])
    assert not any(note.startswith("ema") for note in without.notes)


@pytest.mark.parametrize(("flags", "ema"), [([], None), (["--ema"], True), (["--no-ema"], False)])
def test_the_command_asks_for_what_its_flags_say(monkeypatch, flags, ema):
    """The conversion itself needs a network of full size; `read_weights` takes the answer above."""
    from click.testing import CliRunner

    from inception_v4.cli.main import cli
    from inception_v4.weights import convert

    asked = []

    def refuse(*args: object, **options: object) -> None:
        asked.append(options["ema"])
        raise WeightsError("seen")

    monkeypatch.setattr(convert, "convert_weights", refuse)
    CliRunner().invoke(cli, ["convert", "a.ckpt", "b.pth", *flags])
    assert asked == [ema]


def test_checksums():
    """RFC 3720's, and a bit at a time for every length around the lanes' own."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    rng = random.Random(0)
    for length in (0, 1, 1023, 1024, 2047, 2048, 3071, 3072, 5 * 1024 + 7, 64 * 1024 + 1):
        data = rng.randbytes(length)
        assert crc32c(data) == by_bit(data) == crc32c(data[:100], memoryview(data)[100:])


def by_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_compressed_table_of_leveldb():
    """Real Snappy; LevelDB puts eight bytes of its own behind each key."""
    entries = list(read_table(FIXTURES / "snappy.ldb"))
    assert [key[:-8] for key, _ in entries] == [f"key/{i:05}".encode() for i in range(200)]
    for index, (_, value) in enumerate(entries):
        noise = np.random.default_rng(index).bytes(index % 90)
        assert value == b"a" * index + b"abcdefghijkl" * (index % 7) + noise + str(index).encode() * 3


def test_a_compressed_checkpoint(tmp_path):
    """As a V1 file may be; a literal is Snappy as well."""
    entries = list(read_table(FIXTURES / "everything_v1.ckpt"))
    content = b"".join(entry(key, bytes(value)) for key, value in entries) + bytes(4) + (1).to_bytes(4, "little")
    packed = varint(len(content)) + bytes([61 << 2]) + (len(content) - 1).to_bytes(2, "little") + content
    found, expected = read(write_block(tmp_path / "a.ckpt", packed, kind=1)), read(FIXTURES / "everything_v1.ckpt")
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in expected.state.items())


@pytest.mark.parametrize("seed", range(200))
def test_damaged_snappy(seed):
    rng = random.Random(seed)
    with (FIXTURES / "snappy.ldb").open("rb") as file:
        data = bytearray(file.read(600))
    data[rng.randrange(8)] = rng.randrange(256)
    for _ in range(20):
        data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            assert len(decompress(memoryview(data))) <= 32 * len(data)
        except FormatError as error:
            assert str(error)


HUGE = 1 << 40
SHAPE = field(2, field(1, HUGE))
NAME = b"InceptionV4/a/weights"
LYING: dict[str, list[tuple[bytes, bytes]]] = {
    "shape": [(b"", field(1, 1)), (NAME, field(1, 1) + field(2, SHAPE) + field(5, 8))],
    "size": [(b"", field(1, 1)), (NAME, field(1, 1) + field(2, SHAPE) + field(5, 4 * HUGE))],
    "offset": [(b"", field(1, 1)), (NAME, field(1, 1) + field(2, SHAPE) + field(4, HUGE) + field(5, 8))],
    "shards": [(b"", field(1, HUGE)), (NAME, field(1, 1) + field(3, HUGE - 1))],
    "rank": [(b"", field(1, 1)), (NAME, field(1, 1) + field(2, field(2, field(1, 0)) * 1000) + field(5, 0))],
    "type": [(b"", field(1, 1)), (NAME, field(1, 99))],
    "V1 shape": [
        (b"", field(1, field(1, field(1, NAME) + field(2, SHAPE) + field(3, 1)))),
        (b"a", field(2, field(1, NAME) + field(3, field(5, b"1234")))),
    ],
    "V1 without values": [(b"", field(1, field(1, field(1, NAME) + field(2, SHAPE) + field(3, 1))))],
    "V1 of another": [(b"", field(1, b"")), (b"a", field(2, field(1, NAME)))],
    "V1 type": [
        (b"", field(1, field(1, field(1, NAME) + field(3, 19)))),
        (b"a", field(2, field(1, NAME))),
    ],
    "empty and huge": [
        (b"", field(1, 1)),
        (
            NAME,
            field(1, 1)
            + field(2, field(2, field(1, 0)) + field(2, field(1, 1 << 62)))
            + varint(6 << 3 | 5)
            + masked_crc32c(b"").to_bytes(4, "little"),
        ),
    ],
    "numbers for messages": [(b"", field(1, 1)), (NAME, field(1, b"abc") + field(2, 1))],
}


@pytest.mark.parametrize("kind", LYING)
def test_sizes_that_the_file_does_not_have_allocate_nothing(tmp_path, kind):
    path = write_table(tmp_path / "a.index", LYING[kind])
    (tmp_path / "a.data-00000-of-00001").write_bytes(bytes(8))
    assert_refused_without_memory(path)


@pytest.mark.parametrize("content", [
    b"\0\1" + varint(HUGE), varint(HUGE) + b"\1\1", b"\0" + varint(HUGE) + b"\0", b"\xff" * 12,
])  # fmt: skip
def test_entries_that_the_block_does_not_have(tmp_path, content):
    assert_refused_without_memory(write_block(tmp_path / "a.index", content + bytes(4) + (1).to_bytes(4, "little")))
    assert_refused_without_memory(write_block(tmp_path / "b.index", content + b"\xff" * 4))


@pytest.mark.parametrize(
    "content", [varint(HUGE) + b"\0a", varint(100) + b"\xfc\xff\xff\xff\xff", varint(9) + b"\x05\x09"]
)
def test_compressed_blocks_that_lie(tmp_path, content):
    assert_refused_without_memory(write_block(tmp_path / "a.index", content, kind=1))


def assert_refused_without_memory(path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError) as error:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    assert str(path.parent) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_blocks_used_twice_are_refused(tmp_path):
    """A small index could otherwise name one block a million times."""
    content = entry(b"", field(1, 1)) + bytes(4) + (1).to_bytes(4, "little")
    where = varint(0) + varint(len(content))
    index = entry(b"a", where) + entry(b"b", where) + bytes(4) + (1).to_bytes(4, "little")
    data = block(content)
    places = varint(0) + varint(0) + varint(len(data)) + varint(len(index))
    (tmp_path / "a.index").write_bytes(data + block(index) + places.ljust(40, b"\0") + MAGIC)
    with pytest.raises(WeightsError, match="blocks that overlap"):
        read(tmp_path / "a.index")
