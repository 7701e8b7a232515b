"""`report`: what the page says of a run whose data, curves and answers are known, and how a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from browsing import browser, look_like, overflow
from made_run import made, make_run, several_classes
from PIL import Image
from running import ROOT, environment
from temporary import NewFolder

from inception_v4.cli.main import run
from inception_v4.inference.metrics import class_scores, confusion, reliability
from inception_v4.inference.predictions import PredictedPicture, Predictions
from inception_v4.pages.inspection import inspect_data
from inception_v4.pages.report import staleness, write_report
from inception_v4.pages.run_record import read_run, settings_that_differ
from inception_v4.pages.thumbnails import confident_mistakes, unsure_hits
from inception_v4.settings.schema import Data


@pytest.fixture(scope="module")
def folder(module_folder: NewFolder) -> Path:
    return module_folder("report")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    return made(folder, per_class=3)


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    path, charts = write_report([finished], device="cpu")
    assert path == finished / "report.html" and path.stat().st_size < 5e6
    assert {chart.stem for chart in charts} == {
        "loss", "accuracy", "learning-rate", "classes", "confusion", "calibration"
    }  # fmt: skip
    for chart in charts:
        with Image.open(chart) as image:
            assert image.width > 400 and len(image.convert("RGB").getcolors(1 << 24)) > 20
    return path.read_text()


def plain(page: str) -> str:
    """What a reader reads."""
    body = re.sub(r"<svg.*?</svg>|<style>.*?</style>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_the_page_says_what_the_run_did(page: str, finished: Path) -> None:
    text = plain(page)
    assert "82.14 % best top-1" in text and "100 steps" in text
    assert "10 validation pictures: top-1 60.00 %, top-5 100.00 %" in text
    assert "1 validation picture is also a training picture" in text and "broken: 1" in text
    assert f"inception-v4 train -c {finished}/config.yaml" in text
    assert "lr 0.02" in text and "label_smoothing" not in text
    # Four mistakes and six right answers, each a picture and its heat.
    assert page.count('src="data:image/jpeg;base64,') == 2 * 10 and "not there" not in page
    assert f'title="{finished.parent.parent}/pictures/val/disc/leaked.png">…/val/disc/leaked.png</div>' in page


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert "<script" not in page and "@import" not in page and "url(" not in page.replace("url(#", "")
    assert not [a for a in re.findall(r'(?:src|href)="([^"]*)"', page) if not a.startswith(("data:", "#"))]
    assert "#010203" not in page and "currentColor" in page


def test_names_are_text_and_not_markup(folder: Path, finished: Path) -> None:
    evil = make_run(folder / "<b>evil", folder / "pictures", None)
    rows = [json.loads(line) for line in (evil / "predictions.jsonl").read_text().splitlines()]
    rows[0]["classes"][0] = "<img src=x onerror=alert(1)>"
    (evil / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = write_report([evil], device="cpu", look_through=False)[0].read_text()
    assert "<img src=x" not in text and "<b>evil" not in text and "&lt;b&gt;evil" in text
    assert "are not there" in text  # no weights, no heat


def test_two_runs_are_compared(folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(folder / "compared" / "shapes", folder / "pictures", None)
    other = make_run(folder / "compared" / "faster", folder / "pictures", None, answers=False, lr=0.05, epochs=12)
    words = ["report", str(first), str(other), "--no-inspect", "--device=cpu", f"-o{folder / 'two.html'}"]
    assert run(words) == 0 and capsys.readouterr().out.strip() == str(folder / "two.html")
    text = plain((folder / "two.html").read_text())
    assert "setting shapes faster" in text and "lr 0.02 0.05" in text and "epochs 10 12" in text
    assert "inception-v4 validate --ckpt-path" in text  # how to get the answers that the second has not kept
    differing = settings_that_differ([read_run(first), read_run(other)])
    assert [name for name, _ in differing] == ["lr", "epochs"]


def test_answers_of_other_weights_are_noticed(folder: Path, finished: Path) -> None:
    stale = make_run(folder / "stale", folder / "pictures", finished / "best.safetensors")
    assert staleness(read_run(stale)) == ""
    head, *rows = (stale / "predictions.jsonl").read_text().splitlines()
    changed = json.dumps(json.loads(head) | {"weights_sha256": "0" * 64})
    (stale / "predictions.jsonl").write_text("\n".join([changed, *rows]))
    assert "are of other weights" in staleness(read_run(stale))


def test_scores_by_hand() -> None:
    labels, first = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]
    confidence = [0.9, 0.62, 0.95, 0.7, 0.55, 0.78]
    columns = zip("uvwxyz", labels, first, confidence, strict=True)
    rows = [PredictedPicture(name, label, ((answer, sure),), sure) for name, label, answer, sure in columns]
    answers = Predictions(("a", "b", "c", "never met"), None, 400 / 6, rows)
    assert confusion(answers).tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    scores = class_scores(answers, answers.names)
    table = {row.name: (row.pictures, row.precision, row.recall, row.f1) for row in scores}
    assert table["a"] == pytest.approx((3, 100, 200 / 3, 80)) and table["b"] == pytest.approx((2, 50, 50, 50))
    assert table["c"] == pytest.approx((1, 50, 100, 200 / 3)) and len(table) == 3
    assert confident_mistakes(answers, 9) == [2, 4] and unsure_hits(answers, 2) == [1, 3]
    # Bins of 1/15: 0.9 and 0.95 are neighbours; every picture has one of its own.
    gaps = [0.1, 0.38, 0.95, 0.3, 0.55, 0.22]
    assert reliability(answers).ece == pytest.approx(100 * sum(gaps) / 6)


def test_the_data_is_looked_through(finished: Path) -> None:
    config = read_run(finished).config
    found = inspect_data(config.data, config.run.seed)
    assert [Path(p.split(": ")[1]).name for p in found.leaked[0]] == ["000.png", "leaked.png"] and found.leaked_val == 1
    assert len(found.repeated) == len(found.contradictory) == 1 and "again.png" in " ".join(found.repeated[0])
    assert len(found.broken) == 1 and "bars/002.png" in found.broken[0][0]
    assert found.counts == {"train": [3, 3, 4], "val": [3, 4, 3]}
    gone = inspect_data(config.data.model_copy(update={"data_dir": "/nowhere"}), 0)
    assert "could not be opened" in gone.remark and not gone.counts


def test_what_is_no_run_is_one_line(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["report", str(tmp_path)]) == 1 and "is no run directory" in capsys.readouterr().err
    damaged = make_run(tmp_path / "damaged", finished.parent.parent / "pictures", None)
    (damaged / "predictions.jsonl").write_text('{"classes": null}\n{"path"')
    with pytest.raises(ValueError, match="damaged"):
        read_run(damaged)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert run(["report", str(finished)]) == 1
    assert "pip install 'inception-v4[report]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_picture_of_the_page_is_taken(finished: Path, tmp_path: Path) -> None:
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("needs Chromium: apt-get install chromium")
    words = [sys.executable, str(ROOT / "tools" / "report_picture.py"), str(finished), str(tmp_path / "top.png")]
    done = subprocess.run([*words, "--height=900"], capture_output=True, text=True, env=environment(), timeout=280)
    assert done.returncode == 0 and "1280 x 900 px" in done.stdout, done.stderr
    with Image.open(tmp_path / "top.png") as image:
        rows = np.asarray(image.convert("L")).min(1)
    assert image.size == (1280, 900) and (tmp_path / "top.png").stat().st_size < 300_000
    assert (rows < 128).mean() > 0.3 and (rows[450:] < 128).any(), "there is ink down to its end"
    assert done.stdout.startswith(str(tmp_path)) and [path.name for path in tmp_path.iterdir()] == ["top.png"]


@pytest.mark.slow
def test_a_browser_shows_the_page_at_any_width_and_in_both_schemes(page: str, finished: Path) -> None:
    with browser() as driver:
        driver.get((finished / "report.html").as_uri())
        backgrounds = set()
        for width in (380, 1200):
            for scheme in ("light", "dark"):
                look_like(driver, width, scheme)
                assert overflow(driver) == 0, (width, scheme)
                colour = "return getComputedStyle(document.body).{}"
                ink, paper = (driver.execute_script(colour.format(name)) for name in ("color", "backgroundColor"))
                assert ink != paper
                backgrounds.add(paper)
        assert len(backgrounds) == 2
        assert driver.execute_script("return [...document.images].every(i => i.complete || i.loading == 'lazy')")
        assert driver.execute_cdp_cmd("Page.printToPDF", {})["data"]
        assert driver.get_log("browser") == []


@pytest.mark.long
def test_ten_thousand_pictures_take_half_a_minute(tmp_path: Path, finished: Path) -> None:
    data = tmp_path / "many"
    kinds = [finished.parent.parent / "pictures" / "train" / "disc" / f"{i:03d}.png" for i in range(3)]
    for split, count in (("train", 9000), ("val", 10_000)):
        for i in range(count):
            name = data / split / f"class{i % 100:02d}" / f"{i}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_bytes(kinds[i % 3].read_bytes() + str((split, i)).encode())
    many = make_run(tmp_path / "run", finished.parent.parent / "pictures", None, data_dir=str(data))
    head, *rows = map(json.loads, (many / "predictions.jsonl").read_text().splitlines())
    head |= {"classes": [f"class{k:02d}" for k in range(100)], "samples": 10_000}
    rows = [row | {"path": str(data / f"{i}")} for i, row in enumerate(rows * 1000)]
    (many / "predictions.jsonl").write_text("\n".join(map(json.dumps, [head, *rows[:10_000]])))
    began = time.perf_counter()
    page = write_report([many], device="cpu")[0]
    assert time.perf_counter() - began < 30 and page.stat().st_size < 5e6


@pytest.mark.parametrize(("monitor", "epoch"), [("top1", 9), ("loss", 3)])
def test_the_best_validation_is_the_one_whose_weights_were_kept(
    tmp_path: Path, finished: Path, monitor: str, epoch: int
) -> None:
    made_by = make_run(tmp_path / "run", finished.parent.parent / "pictures", None, answers=False, monitor=monitor)
    rows = [json.loads(line) for line in (made_by / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "val":
            row["loss"] = 0.5 + abs(row["epoch"] - 3)
    (made_by / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    best = read_run(made_by).best
    assert best is not None and best["epoch"] == epoch and not best["averaged"]
    text = plain(write_report([made_by], device="cpu", look_through=False)[0].read_text())
    assert ("0.5000 best loss" in text) == (monitor == "loss") and f"{epoch + 1} its epoch" in text


def test_pictures_of_several_classes_have_no_confusion_matrix(tmp_path: Path, finished: Path) -> None:
    weights, data = finished / "best.safetensors", finished.parent.parent / "pictures"
    told = several_classes(make_run(tmp_path / "run", data, weights, loss="bce", monitor="map"))
    path, charts = write_report([told], device="cpu", look_through=False)
    text = plain(path.read_text())
    assert "90.00 % best mAP" in text and "5 its epoch" in text and "of several classes each" in text
    assert "validate --per-class" in text and "Classes, worst first" not in text
    assert {chart.stem for chart in charts} == {"loss", "accuracy", "learning-rate", "calibration"}
    both = write_report([told, finished], tmp_path / "both.html", device="cpu", look_through=False)[0]
    assert "mAP 90.00 %" in plain(both.read_text())


def test_names_that_are_no_text_or_look_like_formulas(tmp_path: Path, finished: Path) -> None:
    odd = make_run(tmp_path / "odd", finished.parent.parent / "pictures", None)
    head, *rows = map(json.loads, (odd / "predictions.jsonl").read_text().splitlines())
    head["classes"] = ["$5-$10", "$1_$5", "plain"]
    rows[0]["path"] = "/pictures/\udcc4.png"  # a byte that is no UTF-8, as os.fsdecode gives it
    (odd / "predictions.jsonl").write_text("\n".join(map(json.dumps, [head, *rows])))
    page = write_report([odd], device="cpu", look_through=False)[0].read_text()
    assert "$5-$10" in page and "$1_$5" in page and "\\udcc4.png" in page


def test_pictures_in_shards_are_opened_where_they_lie(tmp_path: Path, finished: Path) -> None:
    data = finished.parent.parent / "pictures"
    assert run(["pack", str(data), str(tmp_path / "shards")]) == 0
    packed = Data(dataset="wds", data_dir=str(tmp_path / "shards"))
    found, plain_files = inspect_data(packed, 0), inspect_data(read_run(finished).config.data, 0)
    assert found.counts == plain_files.counts and len(found.leaked) == len(plain_files.leaked) == 1
    assert [reason for _, reason in found.broken] == [reason for _, reason in plain_files.broken]
