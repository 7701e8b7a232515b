"""Commands that take long show on a terminal how far they are, and elsewhere plain lines alone."""

from __future__ import annotations

import io
import re
import tarfile
import time
from pathlib import Path

import pytest
from live import enliven
from photos import class_folders
from rich.console import Console
from running import run
from temporary import NewFolder
from terminal import run_on_terminal, shows_estimate

from inception_v4 import InceptionV4, save_weights
from inception_v4 import console as console_module
from inception_v4.console import progress, track
from inception_v4.data.imagenet import TRAIN_TAR, extract_train
from inception_v4.data.shapes import generate
from inception_v4.export.plan import calibration_pictures
from inception_v4.preprocessing import Preprocessing
from inception_v4.weights import WeightsInfo


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal gets."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, highlight=False, color_system=None)
    monkeypatch.setattr(console_module, "console", console)
    return screen


@pytest.fixture(scope="module")
def weights(module_folder: NewFolder) -> Path:
    path = module_folder("weights") / "w.safetensors"
    info = WeightsInfo(num_classes=5, preprocessing=Preprocessing(image_size=75))
    return save_weights(enliven(InceptionV4(5)), path, info)


def test_bars_inside_each_other_share_a_terminal(terminal: io.StringIO) -> None:
    with progress("outer", 2) as count_on:
        for _ in track([1, 2, 3], "inner"):
            time.sleep(0.15)  # the display is drawn ten times a second
        count_on()
        with pytest.raises(OSError), progress("broken"):
            raise OSError
        count_on()
    assert re.search("inner .*[12]/3", terminal.getvalue())
    assert re.search("outer .* 2/2", terminal.getvalue().splitlines()[-2])
    with progress("next", 1):
        ...
    assert re.search("next .* 0/1", terminal.getvalue().splitlines()[-2])


def test_nothing_is_shown_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("outer", 1) as count_on:
        count_on()
    assert list(track(iter([1]), "one", 1)) == [1]
    assert capfd.readouterr() == ("", "")


def test_drawing_shapes(terminal: io.StringIO, tmp_path: Path) -> None:
    generate(tmp_path, train=6, val=4, classes=2, size=16)
    assert "drawing pictures" in terminal.getvalue() and "10/10" in terminal.getvalue()


def test_unpacking_imagenet(terminal: io.StringIO, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / TRAIN_TAR, "w") as outer:
        for wnid in ("n00000001", "n00000002"):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                _add(tar, f"{wnid}_1.JPEG", bytes(1_500_000))
            _add(outer, f"{wnid}.tar", inner.getvalue())
    extract_train(tmp_path, tmp_path / "train")
    text = terminal.getvalue()
    assert f"unpacking {tmp_path / TRAIN_TAR} (0.0 GB)" in text.replace("\n", "") and "unpacking, MB" in text
    assert "3/3" in text


def test_reading_pictures_for_8_bit_files(terminal: io.StringIO, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "p", {"a": 5, "b": 5})
    how = Preprocessing(image_size=75)
    ranges, compared = calibration_pictures(str(folder), WeightsInfo(num_classes=2, preprocessing=how))
    assert len(ranges) == 8 and len(compared) == 2
    assert "reading pictures" in terminal.getvalue() and "10/10" in terminal.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.slow
def test_convert_shows_its_comparison_on_a_terminal_alone(weights: Path, tmp_path: Path) -> None:
    class_folders(tmp_path / "p", {"a": 2})
    pictures = sorted(str(path) for path in (tmp_path / "p").rglob("*.*"))
    words = ("convert", str(weights), "w.ckpt", "--verify", *pictures)
    code, text = run_on_terminal(*words, cwd=tmp_path)
    assert code == 0, text
    assert shows_estimate(text, "comparing outputs") and shows_estimate(text, "reading pictures")
    assert "2 given pictures: logits differ" in text
    done = run(*words, cwd=tmp_path)
    assert done.stderr == "" and "\r" not in done.stdout and "comparing" not in done.stdout


@pytest.mark.slow
def test_predict_shows_tables_above_its_bar(weights: Path, tmp_path: Path) -> None:
    class_folders(tmp_path / "p", {"a": 25})
    code, text = run_on_terminal("predict", "p", "--ckpt-path", str(weights), "--top-k", "1", cwd=tmp_path)
    assert code == 0, text
    assert shows_estimate(text, "predicting") and "25/25" in text
    assert text.count("│ p/a/") == 25 and text.count("┃ picture") == 2, "every picture once, in two tables"


@pytest.mark.slow
def test_export_says_what_it_is_doing_and_how_long_it_takes(weights: Path, tmp_path: Path) -> None:
    code, text = run_on_terminal("export", str(weights), "-o", "w.pt2", cwd=tmp_path)
    assert code == 0, text
    for stage in ("reading ", "writing w.pt2 (up to a minute)", "comparing it with PyTorch (some seconds)"):
        assert stage in text
