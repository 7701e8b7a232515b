"""The command line as a user meets it: help, bad input, exit codes, machine-readable output."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from in_process import outcome
from running import TINY, as_flags, environment

from inception_v4.data.shapes import draw_shape


class Bomb:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, ("touch exploded",)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of error of a command that must fail."""
    code, out, err = outcome(capsys, *words)
    errors = [line for line in err.splitlines() if line.startswith("error")]
    assert code in (1, 2) and out == "" and "Traceback" not in err
    assert len(errors) == 1 and err.rstrip().endswith(errors[0])
    return errors[0]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes with a validation split."""
    for split in ("train", "val"):
        for kind in ("circle", "square"):
            (tmp_path / "photos" / split / kind).mkdir(parents=True)
            for index in range(4):
                draw_shape(kind, index, 80).save(tmp_path / "photos" / split / kind / f"{index}.jpg")
    return tmp_path / "photos"


def train_flags(folder: Path, output: Path) -> list[str]:
    return [*as_flags(TINY | {"dataset": "folder", "data_dir": str(folder)}), f"--output-dir={output}"]


def test_help_is_quick() -> None:
    """No more than 0.3 s of the processor beyond an empty program, the median of five."""

    def median(*words: str) -> float:
        times = []
        for _ in range(5):
            before = os.times()
            subprocess.run([sys.executable, *words], capture_output=True, check=True, env=environment())
            after = os.times()
            times.append(sum(after[2:4]) - sum(before[2:4]))  # of children, whatever else the machine does
        return sorted(times)[2]

    assert median("-m", "inception_v4", "--help") - median("-c", "pass") < 0.3


@pytest.mark.parametrize("command", ["train", "validate", "predict", "convert", "env", "draw"])
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = outcome(capsys, command, "--help")
    assert code == 0 and len(out.splitlines()) > 5


def test_unknown_words_are_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--epochs" in refused(capsys, "train", "--epoch=3")
    assert "'epohcs'" in refused(capsys, "train", "-c", str(_recipe("epohcs: 3")))
    assert "quickstart" in refused(capsys, "train", "-c", "quikstart")
    assert "trian" in refused(capsys, "trian")


def _recipe(text: str) -> Path:
    path = Path(os.environ["XDG_CACHE_HOME"]) / "recipe.yaml"
    path.write_text(text)
    return path


def test_dry_run_prints_the_settings_and_accepts_any_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(
        capsys, "train", "--dry-run", "--batch_size", "8", "--lr=0.5", "epochs=3", "--no-shuffle", "--ema",
        "--sync_bn", "True",
    )  # fmt: skip
    assert code == 0
    for line in ("batch_size: 8", "lr: 0.5", "epochs: 3", "shuffle: false", "ema: true", "sync_bn: true"):
        assert f"  {line}\n" in out


def test_bad_data_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, photos: Path) -> None:
    flags = train_flags(photos, tmp_path / "out")
    missing = train_flags(tmp_path / "fotos", tmp_path / "out")
    assert "fotos" in refused(capsys, "train", *missing)
    assert "in_channels 2: pictures are read as RGB, or as grey for 1" in refused(
        capsys, "train", *flags, "--in-channels=2"
    )
    assert "num_classes 1 " in refused(capsys, "train", *flags, "--num-classes=1")
    assert "75" in refused(capsys, "train", *flags, "--image-size=74")
    (photos / "train" / "empty").mkdir()
    (photos / "val" / "empty").mkdir()
    assert str(photos / "train" / "empty") in refused(capsys, "train", *flags)
    assert not (tmp_path / "out" / "best.safetensors").exists()


@pytest.mark.slow
def test_a_truncated_picture_stops_or_is_skipped(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, photos: Path
) -> None:
    victim = photos / "train" / "circle" / "2.jpg"
    victim.write_bytes(victim.read_bytes()[:400])
    flags = train_flags(photos, tmp_path / "out")
    message = refused(capsys, "train", *flags)
    assert str(victim) in message and "--on-corrupt skip" in message
    code, _, err = outcome(capsys, "train", *flags, "--on-corrupt=skip", "--output-dir", str(tmp_path / "skipped"))
    assert code == 0 and "1 unreadable pictures were skipped" in err and "2.jpg" in err


def test_absent_device_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, photos: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    flags = train_flags(photos, tmp_path / "out")
    message = refused(capsys, "train", *flags, "--device=cuda")
    assert "cuda" in message.lower() and "cpu" not in message.lower().split("cuda")[0]
    assert "tpu" in refused(capsys, "train", *flags, "--device=tpu")


def test_bad_weights_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, photos: Path, finished_run: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    whole = finished_run / "best.safetensors"
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(whole.read_bytes()[:100_000])
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"model": Bomb()}))
    picture = str(photos / "val" / "circle" / "0.jpg")
    for name in ("truncated.safetensors", "code.pth", "missing.safetensors"):
        assert name in refused(capsys, "predict", picture, "--ckpt-path", name)
    assert not (tmp_path / "exploded").exists()
    message = refused(capsys, "validate", "--ckpt-path", str(whole), "--data-dir", str(photos), "--num-classes=5")
    assert "2 classes" in message and "5" in message
    assert "--pretrained" in refused(capsys, "validate", "--data-dir", str(photos))
    assert "--pretrained" in refused(capsys, "predict", picture)
    assert "nowhere.jpg" in refused(capsys, "predict", "nowhere.jpg", "--ckpt-path", str(whole))


def test_validate_prints_one_json_object(capsys: pytest.CaptureFixture[str], photos: Path, finished_run: Path) -> None:
    words = ("validate", "--ckpt-path", str(finished_run), "--data-dir", str(photos), "--device=cpu", "--workers=0")
    code, out, _ = outcome(capsys, *words, "--json")
    assert code == 0 and out.count("\n") == 1
    result = json.loads(out)
    assert result["samples"] == 8 and 0 <= result["top1"] <= 100 == result["top5"]
    assert result["preprocessing"]["image_size"] == 75
    code, out, _ = outcome(capsys, *words, "--per-class", "--image-size=80")
    assert code == 0 and {"circle", "square"} <= set(out.split())


def test_predict_names_pictures_in_three_formats(
    capsys: pytest.CaptureFixture[str], photos: Path, finished_run: Path
) -> None:
    words = ("predict", str(photos / "val"), str(photos / "train/circle/0.jpg"), "--ckpt-path", str(finished_run))
    words += ("--device=cpu", "--batch-size=4")
    code, out, _ = outcome(capsys, *words, "--json")
    found = json.loads(out)
    assert code == 0 and len(found) == 9
    for item in found:
        assert item["class"] in ("circle", "square")
        assert sum(entry["probability"] for entry in item["top"]) == pytest.approx(1, abs=1e-5)
    code, out, _ = outcome(capsys, *words, "--csv", "--top-k=1")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["class"] for row in rows] == [item["class"] for item in found]
    assert [float(row["probability"]) for row in rows] == pytest.approx([i["probability"] for i in found], abs=1e-5)
    code, out, _ = outcome(capsys, *words)
    assert code == 0 and "picture" in out.splitlines()[0] and len(out.splitlines()) == 1 + 9 * 2


@pytest.mark.slow
def test_an_unreadable_picture_in_predict(capsys: pytest.CaptureFixture[str], photos: Path, finished_run: Path) -> None:
    bad = photos / "val" / "circle" / "bad.jpg"
    bad.write_bytes(b"not a picture")
    words = ("predict", str(photos / "val"), "--ckpt-path", str(finished_run), "--device=cpu", "--json")
    assert "bad.jpg" in refused(capsys, *words, "--on-corrupt=error")
    code, out, err = outcome(capsys, *words, "--on-corrupt=skip")
    assert code == 0 and len(json.loads(out)) == 8 and "bad.jpg" in err
    code, out, err = outcome(capsys, *words)
    assert code == 1 and [item["picture"] for item in json.loads(out) if "error" in item] == [str(bad)]
    assert len(json.loads(out)) == 9 and err.count("bad.jpg") == 1 and "1 of 9 pictures" in err


def test_convert_and_back(capsys: pytest.CaptureFixture[str], tmp_path: Path, finished_run: Path) -> None:
    code, out, _ = outcome(capsys, "convert", str(finished_run / "best.safetensors"), str(tmp_path / "w.ckpt"))
    assert code == 0 and "mindcv" in out
    code, out, _ = outcome(capsys, "convert", str(tmp_path / "w.ckpt"), str(tmp_path / "back.safetensors"))
    assert code == 0 and "2 classes" in out


def test_env_reports(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(capsys, "env", "--json")
    report = json.loads(out)
    assert code == 0 and report["versions"]["torch"] == torch.__version__
    assert report["devices"]["cpu"]["available"] is True


@pytest.mark.slow
def test_debug_shows_the_traceback() -> None:
    words = [sys.executable, "-m", "inception_v4", "train", "--data-dir=nowhere", "--dataset=folder"]
    quiet = subprocess.run(words, capture_output=True, text=True, env=environment())
    loud = subprocess.run([*words, "--debug"], capture_output=True, text=True, env=environment())
    assert quiet.returncode != 0 and "Traceback" not in quiet.stderr and quiet.stderr.count("\n") == 1
    assert loud.returncode != 0 and "Traceback" in loud.stderr


def test_draw_makes_a_picture_to_try(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = outcome(capsys, "draw", str(tmp_path / "star.jpg"))
    assert code == 0 and "a star" in out and (tmp_path / "star.jpg").stat().st_size > 500
    assert "circle" in refused(capsys, "draw", str(tmp_path / "x.jpg"), "--shape=blob")
