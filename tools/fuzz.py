"""Search for bytes that a reader does not answer with its declared error: python tools/fuzz.py --seconds 60

Each reader of files from elsewhere that is this project's own gets mutations of small valid files, chosen by the lines
of the reader that they reach (atheris: pip install -e '.[fuzz]'). A failure is any exception but the declared one, an
error that is longer than a line or does not name the file, a hang, memory beyond a limit, or a file outside its folder;
its input is kept, for --replay FILE READER. Where a checksum would turn every mutation away, it is taken as right: what
lies behind it is what is searched. The table's last column is the verdict; the exit code is 1 after a failure.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "tfslim" / "fixtures"
MOST_MB, SLOWEST = 2000, 10
"""Memory of a reading process, PyTorch with it, and seconds for one file."""
LONGEST = 3000
"""Characters of an error."""

Setup = tuple[list[bytes], Callable[[bytes], None]]
"""Small valid files, and what reads such bytes: it raises nothing but failures."""


def _checked(error: Exception, *paths: Path) -> None:
    """It names one of the files that were read."""
    text = str(error)
    assert any(str(path) in text for path in paths), f"an error that does not name the file: {text[:200]}"
    assert "\n" not in text and len(text) < LONGEST, f"an error that is no line: {text[:200]!r}"


def _weights(path: Path, seeds: list[bytes], limit: Callable[[int], float], *others: Path) -> Setup:
    """Args: limit: bytes that the tensors of a file of so many bytes may have; others: files that belong to it."""
    from inception_v4.weights import WeightsError
    from inception_v4.weights.files import containers

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            raw = containers.read(path)
        except WeightsError as error:
            _checked(error, path, *others)
            return
        for tensor in [*raw.state.values(), *(raw.ema or {}).values()]:
            size = tensor.numel() * tensor.element_size()
            assert size <= limit(len(data)), f"{size} bytes of numbers from a file of {len(data)}"
            tensor.clone()  # each element can be read

    return seeds, read


def _tensors() -> dict:
    """Names of every layout, so that each reader keeps them."""
    import torch

    shapes = {"features.0.conv.weight": (2, 3, 1, 1), "features.1.bn.gamma": (5,), "ema.features.1.bn.gamma": (5,)}
    shapes |= {"InceptionV4/Conv2d_1a_3x3/weights": (1, 1, 3, 2), "InceptionV4/Logits/Logits/biases": (4,)}
    return {name: torch.arange(torch.Size(shape).numel()).reshape(shape).float() for name, shape in shapes.items()}


def mindspore(folder: Path) -> Setup:
    from inception_v4.weights.files import msckpt
    from inception_v4.weights.files.mindspore import from_tensor

    values = {name: from_tensor(tensor) for name, tensor in _tensors().items()}
    values |= {"moments.features.1": from_tensor(_tensors()["features.1.bn.gamma"]), "note": "text"}
    seeds = []
    for crc in (False, True):
        msckpt.write_msckpt(folder / "seed", values, crc=crc)
        seeds.append((folder / "seed").read_bytes())
    return _weights(folder / "a.ckpt", seeds, limit=lambda size: size)


class _AsStored(int):
    """A checksum that equals any other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def _without_checksums() -> None:
    from inception_v4.weights.files import sstable, tfcheckpoint

    for module in (sstable, tfcheckpoint):
        vars(module)["masked_crc32c"] = lambda data: _AsStored()


def tensorflow(folder: Path) -> Setup:
    _without_checksums()
    seeds = [(FIXTURES / name).read_bytes() for name in ("everything_v1.ckpt", "partitioned_v1.ckpt")]
    return _weights(folder / "a.ckpt", seeds, limit=lambda size: 32 * size)


def tensorflow_index(folder: Path) -> Setup:
    """The numbers, which lie in another file, stay as they are."""
    _without_checksums()
    numbers = folder / "a.ckpt.data-00000-of-00001"
    shutil.copy(FIXTURES / "everything_v2.ckpt.data-00000-of-00001", numbers)
    names = ("everything_v2.ckpt.index", "partitioned_v2.ckpt.index", "halves.ckpt.index")
    seeds = [(FIXTURES / name).read_bytes() for name in names]
    return _weights(folder / "a.ckpt.index", seeds, lambda size: numbers.stat().st_size, numbers)


def snappy(folder: Path) -> Setup:
    from inception_v4.weights.files.protobuf import FormatError
    from inception_v4.weights.files.snappy import decompress

    def read(data: bytes) -> None:
        try:
            assert len(decompress(memoryview(data))) <= 32 * len(data)
        except FormatError as error:
            assert len(str(error)) < LONGEST

    copies = b"\x14\x0cabcd\x01\x04\x32\x04\x00\x0b\x02\x00\x00\x00"
    return [copies, b"\x05\x10hello", b"\x40\xf0\x3f" + bytes(64)], read


def pickled(folder: Path) -> Setup:
    """PyTorch's older form, a row of pickles; the newer one has the same pickle in a zip archive."""
    import numpy as np
    import torch

    beside = {"step": 3, "args": argparse.Namespace(lr=0.1), "mean": np.arange(3.0), "path": Path("a"), "best": None}
    seeds = []
    for content in (_tensors(), {"state_dict": _tensors(), "ema": {}, **beside}):
        torch.save(content, folder / "seed", _use_new_zipfile_serialization=False)
        seeds.append((folder / "seed").read_bytes())
    return _weights(folder / "a.pth", seeds, limit=lambda size: size)


def zipped(folder: Path) -> Setup:
    """PyTorch's archives and numpy's, which may be compressed."""
    import numpy as np
    import torch

    torch.save({"model": _tensors(), "step": 3}, folder / "seed")
    seeds = [(folder / "seed").read_bytes()]
    for save in (np.savez, np.savez_compressed):
        save(folder / "seed.npz", **{name: tensor.numpy() for name, tensor in _tensors().items()})
        seeds.append((folder / "seed.npz").read_bytes())
    return _weights(folder / "a.bin", seeds, limit=lambda size: 1100 * size)


def safetensors(folder: Path) -> Setup:
    from inception_v4.weights import WeightsInfo
    from inception_v4.weights.files.safetensor import write_safetensors

    seeds = []
    for word in ("features", "Conv2d"):
        write_safetensors({n: t for n, t in _tensors().items() if word in n}, folder / "seed", WeightsInfo(2))
        seeds.append((folder / "seed").read_bytes())
    return _weights(folder / "a.safetensors", seeds, limit=lambda size: size)


def _tar(members: dict[str, bytes], **how: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", **how) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        tar.addfile(link)
    return content.getvalue()


def shards(folder: Path) -> Setup:
    """Their headers and labels; a table of contents must say where in the file its pictures lie."""
    from inception_v4.data.shards import scan
    from inception_v4.data.tars import END
    from inception_v4.storage.remote import RemoteFile

    plain = {"a.jpg": b"picture", "a.cls": b"1", "b/c.png": b"more", "b/c.json": b'{"label": 0}'}
    named = {f"{'long' * 40}.jpg": b"picture", f"{'long' * 40}.cls": b"cat", "\u732b.jpg": b"x", "\u732b.cls": b"dog"}
    path = folder / "a.tar"
    vars(sys.modules["tarfile"])["calc_chksums"] = lambda header: (_AsStored(),)

    def read(data: bytes) -> None:
        path.write_bytes(data := data + END)
        for names in ([], ["cat", "dog"]):
            try:
                found = scan([RemoteFile(path.name, len(data), "1")], lambda entry: path, names, order="text")
            except ValueError as error:
                assert path.name in str(error) or "class" in str(error) or "labels" in str(error), str(error)
                assert len(str(error)) < LONGEST and not isinstance(error, UnicodeError), repr(error)
                continue
            found._check()

    formats = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    seeds = [_tar(plain, format=kind) for kind in formats] + [_tar(named, format=kind) for kind in formats[:2]]
    seeds = [seed.rstrip(b"\0") + bytes(-len(seed.rstrip(b"\0")) % 512) for seed in seeds]
    return seeds, read


def contents(folder: Path) -> Setup:
    """Tables of contents of shards."""
    from inception_v4.data.packed import Contents

    rows = [(0, 512, 7, 1, "a.jpg"), (1, 0, 9, 0, "b/\u732b.png")]
    Contents.of([("a.tar", 10240), ("b/c.tar", 99)], ["cat", "dog"], rows).write(folder / "seed")
    path = folder / "a.safetensors"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for reading in (Contents.read, Contents.read_class_names):
            try:
                reading(path)
            except ValueError as error:
                _checked(error, path)

    return [(folder / "seed").read_bytes()], read


def lists(folder: Path) -> Setup:
    """Lists of pictures as text; the first byte says of which kind."""
    from inception_v4.data.lists import PictureList

    def read(data: bytes) -> None:
        path = folder / f"a{('.csv', '.tsv', '.jsonl')[data[0] % 3 if data else 0]}"
        path.write_bytes(data[1:])
        for several in (False, True):
            try:
                found = PictureList(path, several=several)
                found.classes("natural")
                assert found.rows_of(found.rows[0].split)
            except ValueError as error:
                assert str(path) in str(error) and len(str(error)) < LONGEST and not isinstance(error, UnicodeError)

    table = b"\0path,label,split\na.jpg,cat|dog,train\nb.jpg,10,val\n"
    lines = b'\2{"path": "a.jpg", "label": ["cat", 3], "split": "train"}\n{"file_name": "b.jpg", "class": "dog"}\n'
    return [table, b"\1" + table[1:].replace(b",", b"\t"), lines], read


def pictures(folder: Path) -> Setup:
    """The headers and remarks of JPEG files, and small pictures to their pixels."""
    from PIL import Image

    from inception_v4.data import jpeg, orientation
    from inception_v4.data.pictures import CorruptImage, Decoding, decode_box, decode_picture

    def headers(data: bytes) -> None:
        try:
            frame = jpeg.header_of(data)
        except jpeg.IsUnusual:
            return
        jpeg.decodes_row_by_row(data, frame)
        assert 1 <= orientation.orientation_of([data[start:end] for start, end in frame.remarks]) <= 8

    def read(data: bytes) -> None:
        headers(data)
        for how in (Decoding(max_pixels=1 << 16), Decoding(exif_rotation=False, max_pixels=1 << 12)):
            try:
                assert decode_picture(data, "a.jpg", how).shape[1:].numel() <= how.max_pixels
                decode_box(data, "a.jpg", lambda tall, wide: jpeg.Box(tall // 3, 0, max(tall // 2, 1), wide), how)
            except CorruptImage as error:
                assert "a.jpg" in str(error) and "\n" not in str(error) and len(str(error)) < LONGEST, str(error)

    seeds = []
    for mode, number in (("RGB", 6), ("L", 3), ("RGB", 0)):
        content, exif = io.BytesIO(), Image.Exif()
        exif[0x112] = number
        picture = Image.linear_gradient("L").resize((24, 16)).convert(mode)
        xmp = b'<x tiff:Orientation="8"/>' if not number else b""
        picture.save(content, "jpeg", exif=exif if number else b"", progressive=mode == "L", xmp=xmp)
        seeds.append(content.getvalue())
    return seeds, read


def archives(folder: Path) -> Setup:
    """ZIP files that are unpacked: never outside their folder, never more than they declare."""
    from inception_v4.storage import archives as unpacking

    vars(unpacking)["say"] = lambda line: None
    seeds = []
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(folder / "seed", "w", how) as archive:
            for name in ("train/cat/a.jpg", "train/dog/b.jpg", "empty/"):
                archive.writestr(name, b"picture" * 9)
        seeds.append((folder / "seed").read_bytes())
    (folder / "seed").unlink()
    place, archive_path = folder / "deep" / "inside", folder / "a.zip"

    def read(data: bytes) -> None:
        archive_path.write_bytes(data)
        place.mkdir(parents=True)
        try:
            unpacking.unpack_zip(archive_path, place)
        except unpacking.ArchiveError as error:
            _checked(error, archive_path)
        finally:
            outside = {path.name for path in (*folder.iterdir(), *(folder / "deep").iterdir())}
            shutil.rmtree(folder / "deep")
        assert outside == {"a.zip", "deep", "inside"}, outside

    return seeds, read


READERS = {
    reader.__name__: reader
    for reader in (
        mindspore, tensorflow, tensorflow_index, snappy, pickled, zipped, safetensors, shards, contents, lists,
        pictures, archives,
    )
}  # fmt: skip


def search(name: str, work: Path, seconds: int) -> None:
    """One reader, in this process, which ends with it; what libFuzzer says goes to stderr."""
    import atheris

    (work / "files").mkdir(parents=True)
    (work / "corpus").mkdir()
    sys.path.insert(0, str(ROOT))
    # Ours, and tarfile, whose way through a header decides what ours gets to see.
    del sys.modules["tarfile"]
    with atheris.instrument_imports(include=["inception_v4", "tarfile"]):
        import tarfile  # noqa: F401

        seeds, read = READERS[name](work / "files")
    for number, seed in enumerate(seeds):
        read(seed)
        (work / "corpus" / f"seed{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-rss_limit_mb={MOST_MB}", f"-timeout={SLOWEST}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={work}/failure-", str(work / "corpus")], read)
    atheris.Fuzz()


def replay(file: Path, names: list[str]) -> int:
    """Raises what the failure raised; where it is mended, nothing."""
    sys.path.insert(0, str(ROOT))
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            READERS[name](Path(folder))[1](file.read_bytes())
    return 0


def judge(name: str, seconds: int, keep: Path) -> tuple[str, bool]:
    """A line of the table about a reader, from a process of its own; and whether it failed."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", dir=memory) as place:
        work = Path(place)
        alone = ["--alone", str(work / "work"), "--seconds", str(seconds), name]
        words = [sys.executable, "-W", "ignore", __file__, *alone]
        with open(work / "said", "w") as said:
            try:
                code = subprocess.run(words, stdout=said, stderr=said, timeout=2 * seconds + 120).returncode
            except subprocess.TimeoutExpired:
                code = -1
        text = (work / "said").read_text(errors="replace")
        counts = re.findall(r"number_of_executed_units: (\d+)", text) or re.findall(r"^#(\d+)", text, re.M) or ["0"]
        features = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text) or [("0", "0", "0")]
        verdict = "nothing"
        if code:
            keep.mkdir(parents=True, exist_ok=True)
            kept = [shutil.copy(found, keep / f"{name}-{found.name}") for found in (work / "work").glob("failure-*")]
            (keep / f"{name}.log").write_text(text)
            verdict = f"FAILED (exit code {code}): {', '.join(map(str, kept)) or 'no input'}, {keep / name}.log"
            raised = re.search(r"=== Uncaught Python exception: ===\n.*?(?=\n\n|\n==\d+==)", text, re.S)
            print(raised[0] if raised else text[-3000:], file=sys.stderr)
        return "\t".join((name, counts[-1], *features[-1][1:], verdict)), bool(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"default: all of {', '.join(READERS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader, beside some five to start")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="readers at a time")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for inputs of failures")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="let READER read this file alone, without atheris")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.readers:
        if name not in READERS:
            parser.error(f"no reader {name!r}: {', '.join(READERS)}")
    if options.replay:
        return replay(options.replay, options.readers)
    if options.alone:
        search(options.readers[0], options.alone, options.seconds)
    if subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True).returncode:
        parser.error("atheris is not installed: pip install -e '.[fuzz]' (Linux)")
    print("reader\texecutions\tfeatures\tcorpus\tfound")
    with ThreadPoolExecutor(options.jobs) as pool:
        results = []
        for line, failed in pool.map(lambda n: judge(n, options.seconds, options.keep), options.readers or READERS):
            print(line, flush=True)
            results.append(failed)
    return int(any(results))


if __name__ == "__main__":
    sys.exit(main())
