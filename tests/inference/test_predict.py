"""`predict` over many files: order, broken and missing ones, ways to name them, interruption, memory.

The network of most tests is an ONNX file that names a picture's strongest colour: its answers are known beforehand and
cost nothing, and it goes the way of every exported file.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from colours import COLOURS, colour_network
from exported import folder, weights_file
from photos import encoded
from PIL import Image
from running import command, environment
from temporary import NewFolder

from inception_v4.cli.main import run
from inception_v4.data.pictures import CorruptImage
from inception_v4.data.workers import worker_count
from inception_v4.distributed import World
from inception_v4.inference.predict import Prediction, Predictor, UnreadPicture
from inception_v4.inference.rows import TableRows

__all__ = ["folder"]

HEADER = "picture,rank,class,description,probability,error"


@pytest.fixture(scope="module")
def colours(module_folder: NewFolder) -> Path:
    """A network whose logits are the mean red, green and blue."""
    return colour_network(module_folder("colours"))


def fill(root: Path, count: int, *, broken: int = 0) -> list[Path]:
    """`count` pictures, red, green and blue in turn, as links to three files; some of them broken, spread evenly."""
    root.mkdir()
    kinds = [root.parent / f"{name}.{root.name}.png" for name in COLOURS]
    for name, kind in zip(COLOURS, kinds, strict=True):
        kind.write_bytes(encoded(Image.new("RGB", (90, 80), name if name != "green" else "lime"), "PNG"))
    files = [root / f"{i:05d}.png" for i in range(count)]
    bad = set(range(count // broken // 2, count, count // broken)) if broken else set()
    for i, file in enumerate(files):
        if i in bad:
            file.write_bytes(b"\x89PNG and no more")
        else:
            file.hardlink_to(kinds[i % 3])
    return files


def predict(
    capfd: pytest.CaptureFixture[str], network: Path, *words: object, batch_size: int = 4
) -> tuple[int, str, str]:
    code = run(["predict", "--ckpt-path", str(network), "--device=cpu", f"--batch-size={batch_size}", *map(str, words)])
    shown = capfd.readouterr()
    return code, shown.out, shown.err


@pytest.mark.parametrize("workers", [0, 2])
def test_every_picture_has_its_row_in_order(
    colours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    files = fill(tmp_path / "many", 50, broken=5)
    words = (tmp_path / "many", f"--workers={workers}", "--top-k=1")
    code, out, err = predict(capfd, colours, *words, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and out.startswith(HEADER + "\n")
    assert [row["picture"] for row in rows] == [str(file) for file in files]
    bad = [i for i, row in enumerate(rows) if row["error"]]
    assert bad == [5, 15, 25, 35, 45] and all(rows[i]["class"] == rows[i]["rank"] == "" for i in bad)
    assert all(row["class"] == COLOURS[i % 3] for i, row in enumerate(rows) if i not in bad)
    first, *lines = err.strip().splitlines()
    assert (
        first.startswith("50 pictures, 75 px, onnxruntime")
        and len(lines) == 6
        and all(f"{bad[k]:05d}.png" in lines[k] for k in range(5))
    )
    assert lines[5] == "5 of 50 pictures could not be read"
    code, out, _ = predict(capfd, colours, *words, "--jsonl")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and [item.get("class") for item in found] == [row["class"] or None for row in rows]
    assert [item["error"] for item in found if "error" in item] == [rows[i]["error"] for i in bad]
    code, array, _ = predict(capfd, colours, *words, "--json")
    assert code == 1 and json.loads(array) == found and array.count("\n") == 1


def test_what_becomes_of_unreadable_pictures_can_be_chosen(
    colours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "many", 20, broken=1)
    words = (tmp_path / "many", "--workers=0", "--csv", "--top-k=1")
    code, out, err = predict(capfd, colours, *words, "--on-corrupt=skip")
    assert code == 0 and len(out.splitlines()) == 1 + 19 and "skipped: cannot decode" in err
    code, out, err = predict(capfd, colours, *words, "--on-corrupt=error")
    assert code == 1 and "error: cannot decode" in err and "00010.png" in err
    assert [row["picture"][-9:] for row in csv.DictReader(io.StringIO(out))] == [f"{i:05d}.png" for i in range(8)]
    code, out, err = predict(capfd, colours, tmp_path / "many" / "00010.png", "--jsonl")
    assert (code, out) == (1, "") and "\nerror: cannot decode" in err, "a single one is an error"
    code, _, err = predict(capfd, colours, tmp_path / "many", "--json", "--csv")
    assert code == 2 and "one of --json and --csv" in err


def test_a_table_where_nobody_looks_is_tab_separated(
    colours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = fill(tmp_path / "few", 4, broken=1)
    code, out, _ = predict(capfd, colours, tmp_path / "few", "--top-k=2")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 1 and rows[0] == ["picture", "class", "%"] and {len(row) for row in rows} == {3}
    assert [row[0] for row in rows[1:]] == [str(files[0]), "", str(files[1]), "", str(files[2]), str(files[3]), ""]
    assert rows[5][1].startswith("error: cannot decode")


def test_names_that_are_no_pictures_have_a_row_among_others(
    colours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = fill(tmp_path / "few", 2)[0]
    (tmp_path / "empty").mkdir()
    (tmp_path / "shot.CR2").write_bytes(b"II*\0")
    address = "https://example.org/cat.jpg"
    cases = {
        address: f"{address} is an address, not a file: download it first",
        str(tmp_path / "none.jpg"): f"no picture or folder {tmp_path / 'none.jpg'}",
        str(tmp_path / "empty"): f"no pictures in {tmp_path / 'empty'}: it needs .jpg or .png files",
        str(tmp_path / "shot.CR2"): f"{tmp_path / 'shot.CR2'}: .CR2 files are not read: develop them with the "
        "camera's program and save JPEG or PNG",
        str(tmp_path / "no*.jpg"): f"no picture or folder {tmp_path / 'no*.jpg'}",
    }
    code, out, err = predict(capfd, colours, good, *cases, good, "--jsonl", "--top-k=1")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and [item.get("class") for item in found] == ["red", *[None] * len(cases), "red"]
    assert found[1:-1] == [{"picture": name, "error": error} for name, error in cases.items()]
    assert err.splitlines()[1:] == [*cases.values(), "5 of 7 pictures could not be read"]
    for name, error in cases.items():
        assert predict(capfd, colours, name, "--jsonl") == (1, "", f"error: {error}\n"), "alone it is a plain error"


def test_a_quoted_pattern_is_spelled_out(colours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few, more = fill(tmp_path / "few", 2), fill(tmp_path / "few" / "more", 2)
    for litter in ("few/notes.txt", "few/more/._00000.png", "few/@eaDir/00000.png"):
        (tmp_path / litter).parent.mkdir(exist_ok=True)
        (tmp_path / litter).write_bytes(b"")
    odd = few[0].parent / "a[1].png"
    odd.hardlink_to(few[1])

    def names(pattern: str) -> list[str]:
        code, out, _ = predict(capfd, colours, tmp_path / pattern, "--jsonl")
        assert code == 0
        return [json.loads(line)["picture"] for line in out.splitlines()]

    beside = [*map(str, few), str(odd), *(str(few[0].parent / f"{name}.more.png") for name in COLOURS)]
    assert names("few/0*.png") == [str(file) for file in few]
    assert names("few/*.png") == sorted(beside)
    everything = sorted([*beside, *map(str, more)], key=lambda name: name.split(os.sep))
    assert names("few/**/*.png") == names("few/*") == names("few/**") == names("few") == everything
    assert names("few/a[1].png") == [str(odd)], "a file of that very name"


def test_names_on_standard_input(
    colours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fill(tmp_path / "few", 5)
    odd = tmp_path / os.fsdecode(b"caf\xe9 *.png")
    odd.hardlink_to(files[2])
    lines = b"\n".join([*map(os.fsencode, files[:2]), b"", b"none.jpg\r", os.fsencode(odd), os.fsencode(files[4])])
    words = command("predict", "-", "--ckpt-path", str(colours), "--device=cpu", "--csv", "--top-k=1")
    done = subprocess.run(words, input=lines, capture_output=True, env=environment(), timeout=200, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    rows = [row.split(b",") for row in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == [*map(os.fsencode, files[:2]), b"none.jpg", os.fsencode(odd), bytes(files[4])]
    assert [row[2].decode() for row in rows] == ["red", "green", "", "blue", "green"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    code, out, err = predict(capfd, colours, "-")
    assert (code, out) == (1, "") and "one name a line" in err


def test_the_stream_of_a_predictor_is_lazy_and_agrees_with_the_call(colours: Path, tmp_path: Path) -> None:
    files = fill(tmp_path / "many", 24, broken=2)
    predictor = Predictor(str(colours), device="cpu", batch_size=4)
    found = list(predictor.stream(files, 2, workers=1))
    good = [item for item in found if isinstance(item, Prediction)]
    assert good == predictor([item.picture for item in good], 2)
    bad = [item.picture for item in found if isinstance(item, UnreadPicture)]
    assert bad == [str(files[6]), str(files[18])] and len(found) == 24
    for few, children in ((files[:6], 0), (files[:1] * 40, min(2, worker_count(None, World())))):
        unfinished = predictor.stream(few)
        next(unfinished)
        assert len(multiprocessing.active_children()) == children, "a process takes longer to start than to read a few"
        unfinished.close()
    lazy = predictor.stream(files, workers=0, on_corrupt="error")
    assert [next(lazy).picture for _ in range(4)] == [str(file) for file in files[:4]]
    with pytest.raises(CorruptImage, match="00006"):
        list(lazy)


def test_a_progress_bar_leaves_the_rows_alone(colours: Path, tmp_path: Path) -> None:
    """The bar is drawn on the terminal (stderr) while stdout is a file."""
    files = fill(tmp_path / "many", 40, broken=1)
    words = command(
        "predict", str(tmp_path / "many"), "--ckpt-path", str(colours), "--device=cpu", "--csv", "--top-k=1"
    )
    terminal, end = pty.openpty()
    with open(tmp_path / "rows.csv", "wb") as out:
        child = subprocess.Popen(words, stdout=out, stderr=end, env=environment() | {"TERM": "xterm"})
    os.close(end)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
    os.close(terminal)
    assert child.wait(60) == 1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert [row["picture"] for row in rows] == [str(file) for file in files]
    assert b"predicting" in shown and b"40/40" in shown and b"00020.png" in shown


def test_what_was_written_before_an_interruption_stays(colours: Path, tmp_path: Path) -> None:
    files = fill(tmp_path / "many", 3)
    (tmp_path / "names").write_text("\n".join(str(files[i % 3]) for i in range(200_000)))
    words = command("predict", "-", "--ckpt-path", str(colours), "--device=cpu", "--workers=2", "--jsonl", "--top-k=1")
    rows = tmp_path / "rows.jsonl"
    with open(rows, "wb") as out, open(tmp_path / "names", "rb") as names:
        child = subprocess.Popen(
            words, stdin=names, stdout=out, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
        )
    try:
        until = time.monotonic() + 120
        while rows.stat().st_size < 50_000 and time.monotonic() < until and child.poll() is None:
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the workers as well
        _, err = child.communicate(timeout=60)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    assert child.returncode == 130 and err.partition("\n")[2].strip() == "error: interrupted"
    text = rows.read_text()
    found = [json.loads(line)["picture"] for line in text.splitlines()]
    assert text.endswith("\n") and 100 < len(found) < 200_000
    assert found == [str(files[i % 3]) for i in range(len(found))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["colours", "weights"])
def test_memory_does_not_grow_with_the_number_of_pictures(
    kind: str, colours: Path, folder: Path, tmp_path: Path
) -> None:
    """The largest process of the command, as the system counts it."""
    network = colours if kind == "colours" else weights_file(folder)

    def peak(count: int, broken: int) -> int:
        fill(tmp_path / str(count), count, broken=broken)
        words = (
            "predict",
            str(tmp_path / str(count)),
            "--ckpt-path",
            str(network),
            "--device=cpu",
            "--workers=2",
            "--no-cache",
        )
        with open(tmp_path / f"{count}.csv", "wb") as out, open(tmp_path / f"{count}.err", "wb") as err:
            child = subprocess.Popen(command(*words, "--csv", "--top-k=1"), stdout=out, stderr=err, env=environment())
            _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
        assert child.returncode == 1, (tmp_path / f"{count}.err").read_text()
        rows = list(csv.DictReader(io.StringIO((tmp_path / f"{count}.csv").read_text())))
        said = (tmp_path / f"{count}.err").read_text().splitlines()
        assert sum(not row["error"] for row in rows) == count - broken
        assert sum(bool(row["error"]) for row in rows) == broken == len([line for line in said if ".png" in line])
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    few, many = peak(200, 2), peak(2000, 20)
    print(f"{kind}: {few / 1e6:.0f} MB for 200 pictures, {many / 1e6:.0f} MB for 2,000")
    assert many - few < 100e6


def test_tables_on_a_terminal_come_as_they_fill(capsys: pytest.CaptureFixture[str]) -> None:
    results = [
        Prediction(f"{i}.jpg", ("red",), (0.5,)) if i % 7 else UnreadPicture(f"{i}.jpg", "gone") for i in range(45)
    ]
    printed = []
    with TableRows() as rows:
        for result in results:
            rows.write(result)
            printed.append(capsys.readouterr().out)
    printed.append(capsys.readouterr().out)
    assert [i for i, text in enumerate(printed) if text] == [19, 39, 45]
    lines = "".join(printed).splitlines()
    assert lines.count("picture\tclass\t%") == 3 and "8.jpg\tred\t50.00" in lines and "7.jpg\terror: gone\t" in lines
    assert [line.split("\t")[0] for line in lines if ".jpg" in line] == [result.picture for result in results]
