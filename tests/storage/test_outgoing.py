"""What commands write can belong at an address: uploaded whole, read back from there, or one line with the remedy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from exported import CLASSES, drawn, folder, quick_onnx, run, weights_file
from PIL import Image
from temporary import NewFolder

from inception_v4.storage.outgoing import check_target, outgoing, send_files
from inception_v4.storage.remote import Place, StorageError
from inception_v4.weights import read_weights

__all__ = ["folder", "quick_onnx"]


@pytest.fixture(autouse=True)
def own_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is on its way lies: to see that nothing is left there."""
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    return own


@pytest.fixture(scope="module")
def pictures(module_folder: NewFolder) -> Path:
    """Two drawn ones of each class."""
    root = module_folder("pictures")
    for number, picture in enumerate(drawn(2 * len(CLASSES))):
        path = root / CLASSES[number % len(CLASSES)] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    return root


def _names(address: str) -> list[str]:
    return [entry.name for entry in Place(address).entries()]


def _fetched(address: str, name: str, target: Path) -> Path:
    Place(address).get(next(entry for entry in Place(address).entries() if entry.name == name), target)
    return target


def test_files_beside_and_below_go_with_the_file_which_comes_last(
    store: Callable[[str], str], own_temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, put = [], Place.put
    monkeypatch.setattr(Place, "put", lambda self, source, name: (order.append(name), put(self, source, name))[1])
    with outgoing(store("out/a.xml")) as file:
        file.path.write_text("whole")
        file.path.with_suffix(".bin").write_bytes(b"1")
        (file.path.parent / "charts").mkdir()
        (file.path.parent / "charts" / "a.png").write_bytes(b"2")
        (file.path.parent / ".a.tmp").write_bytes(b"half")
        assert file.told(f"wrote {file.path} and {file.path.parent}/charts") == (
            f"wrote {store('out/a.xml')} and {store('out/charts')}"
        )
    assert order == ["a.bin", "charts/a.png", "a.xml"] and sorted(order) == _names(store("out"))
    assert not list(own_temporary.glob("inception-v4-*"))


def test_a_path_stays_a_path(tmp_path: Path) -> None:
    with outgoing(str(tmp_path / "a")) as file:
        assert file.path == tmp_path / "a" and file.told("x") == "x"


def test_errors_of_the_work_name_the_address_and_what_was_whole_goes_there(
    store: Callable[[str], str], own_temporary: Path
) -> None:
    with pytest.raises(OSError) as caught, outgoing(store("out/a.onnx")) as file:
        file.path.with_suffix(".json").write_text("whole")
        raise OSError(28, "No space left", str(file.path))
    assert caught.value.filename == store("out/a.onnx")
    with pytest.raises(ValueError, match=rf"^{store('out/b.onnx')}: other$"), outgoing(store("out/b.onnx")) as file:
        raise ValueError(f"{file.path}: other")
    assert _names(store("out")) == ["a.json"] and not list(own_temporary.glob("inception-v4-*"))


def test_what_cannot_be_uploaded_stays_and_is_named(store: Callable[[str], str], own_temporary: Path) -> None:
    nowhere = "s3://no-such-bucket-here/x/a.onnx"
    kept = r"no-such-bucket-here.*; what was to be uploaded is in .*: copy it"
    with pytest.raises(StorageError, match=kept) as caught, outgoing(nowhere) as file:
        file.path.write_text("hours of work")
    (left,) = own_temporary.glob("inception-v4-*")
    assert str(left) in str(caught.value) and (left / "a.onnx").read_text() == "hours of work"
    with pytest.raises(StorageError, match=f"is in {left}"):
        send_files("s3://no-such-bucket-here/x", left, [left / "a.onnx"])
    assert (left / "a.onnx").exists()


@pytest.mark.parametrize("target", ["s3://bucket", "s3://bucket/", "ftp://host/x", "s3://me:secret@bucket/x"])
def test_targets_that_cannot_be_are_refused_before_the_work(target: str) -> None:
    with pytest.raises(ValueError, match=r"give a longer address|web address|carries a login") as caught:
        check_target(target)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_an_onnx_file_is_exported_to_an_address_and_validated_from_there(
    store: Callable[[str], str], folder: Path, quick_onnx: None, pictures: Path, capsys, own_temporary: Path
) -> None:
    target = store("models/live.onnx")
    code, out, err = run(capsys, "export", weights_file(folder), "--output", target)
    assert code == 0, err
    assert f"wrote {target} (16" in out and "same first class" in out and str(own_temporary) not in out + err
    assert _names(store("models")) == ["live.onnx"] and not list(own_temporary.glob("inception-v4-*"))
    words = ("--data-dir", pictures, "--val-split", ".", "--workers", 0, "--device", "cpu")
    rows = store("results/rows.jsonl"), store("results/confusion.csv")
    code, out, err = run(
        capsys, "validate", "--ckpt-path", target, *words, "--save-predictions", rows[0], "--confusion", rows[1]
    )
    assert code == 0, err
    assert "(12 pictures" in out and f"wrote {rows[0]}" in err and f"wrote {rows[1]}" in err
    assert _names(store("results")) == ["confusion.csv", "rows.jsonl"]
    code, out, err = run(capsys, "predict", next(pictures.rglob("*.png")), "--ckpt-path", target, "--device", "cpu")
    assert code == 0, err


@pytest.mark.slow
def test_a_wrong_suffix_and_an_unreachable_bucket_are_one_line_each(
    store: Callable[[str], str], folder: Path, quick_onnx: None, capsys, own_temporary: Path
) -> None:
    code, _, err = run(capsys, "export", weights_file(folder), "-o", store("models/live.bin"))
    assert code == 2 and f"error: {store('models/live.bin')}: '.bin' is no format" in err
    code, _, err = run(capsys, "export", weights_file(folder), "-o", "s3://no-such-bucket-here/x/live.onnx")
    assert code == 1 and "what was to be uploaded is in" in err.splitlines()[-1]
    assert len(list(own_temporary.rglob("live.onnx"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("installed", [True, False])
def test_an_om_file_comes_with_what_atc_needs_and_without_atc_that_alone(
    store: Callable[[str], str], folder: Path, quick_onnx: None, installed: bool, tmp_path: Path, monkeypatch, capsys
) -> None:
    if installed:  # a stand-in that writes the file it is asked for
        program = tmp_path / "bin" / "atc"
        program.parent.mkdir()
        program.write_text('#!/bin/sh\nfor w in "$@"; do case $w in --output=*) echo om > "${w#*=}.om";; esac; done\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    words = ("export", weights_file(folder), "--format", "om", "--soc-version", "Ascend310P3", "--aipp")
    code, out, err = run(capsys, *words, "-o", store("chip/live.om"))
    assert code == int(not installed), err
    made = ["live.om", "live.om.json"] if installed else []
    assert _names(store("chip")) == sorted(["live.aipp.cfg", *made, "live.onnx"])
    assert f"wrote {store('chip/live.om')}" in out if installed else "so run there: atc " in err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["live.pt2", "live.xml", "live.mindir"])
def test_every_other_format_is_exported_to_an_address_and_read_from_there(
    store: Callable[[str], str], folder: Path, pictures: Path, capsys, name: str
) -> None:
    if name.endswith(".xml"):
        pytest.importorskip("openvino")
    if name.endswith(".mindir") and not os.environ.get("INCEPTION_V4_MINDSPORE_PYTHON"):
        pytest.skip("INCEPTION_V4_MINDSPORE_PYTHON names no interpreter with MindSpore")
    code, _, err = run(capsys, "export", weights_file(folder), "-o", store(f"models/{name}"))
    assert code == 0, err
    beside = {"live.xml": ["live.bin"], "live.mindir": ["live.mindir.json"]}.get(name, [])
    assert _names(store("models")) == sorted([name, *beside])
    if not name.endswith(".mindir"):
        words = ("--data-dir", pictures, "--val-split", ".", "--workers", 0, "--device", "cpu")
        code, out, err = run(capsys, "validate", "--ckpt-path", store(f"models/{name}"), *words)
        assert code == 0 and "(12 pictures" in out, err


@pytest.mark.slow
def test_averages_and_conversions_with_their_descriptions(
    store: Callable[[str], str], folder: Path, capsys, own_temporary: Path
) -> None:
    live, target = weights_file(folder), store("weights/mean.ckpt")
    code, _, err = run(capsys, "average", live, live, "-o", target, "--to", "mindcv", "--device", "cpu")
    assert code == 0 and f"wrote {target}: the mean of 2 of 2, mindcv" in err, err
    assert _names(store("weights")) == ["mean.ckpt", "mean.ckpt.json"]
    assert not list(own_temporary.glob("inception-v4-*"))
    assert read_weights(target).info.class_names == CLASSES, "its description comes along"
    code, out, err = run(capsys, "convert", target, store("weights/again.safetensors"))
    assert code == 0 and str(own_temporary) not in out + err, err
    assert read_weights(store("weights/again.safetensors")).info.class_names == CLASSES


@pytest.mark.slow
def test_explanations_go_to_an_address(store: Callable[[str], str], folder: Path, pictures: Path, capsys) -> None:
    picture = next(pictures.rglob("*.png"))
    code, out, err = run(
        capsys, "explain", picture, "--ckpt-path", weights_file(folder), "--method", "gradcam", "--top-k", 1,
        "--device", "cpu", "-o", store("pages/explained"),
    )  # fmt: skip
    assert code == 0, err
    assert out.strip() == store(f"pages/explained/{picture.stem}.png")
    assert len(_names(store("pages/explained"))) == 2


@pytest.mark.slow
def test_a_run_at_an_address_is_reported_there(
    store: Callable[[str], str], finished_run: Path, capsys, tmp_path: Path
) -> None:
    pytest.importorskip("jinja2")
    for name in ("config.yaml", "metrics.jsonl", "predictions.jsonl", "best.safetensors", "provenance.json"):
        Place(store("runs/one")).put(finished_run / name, name)
    code, out, err = run(capsys, "report", store("runs/one"), "--no-inspect", "--device", "cpu")
    assert code == 0, err
    assert out.strip() == store("runs/one/report.html") and store("runs/one/report-charts") in err
    page = _fetched(store("runs/one"), "report.html", tmp_path / "page.html").read_text()
    assert "Report of one" in page and store("runs/one") in page and "/remote/" not in page
    assert any(name.startswith("report-charts/") for name in _names(store("runs/one")))
    code, _, err = run(capsys, "report", store("runs/none"), "--device", "cpu")
    assert code == 1 and "holds no files: check the address" in err
    code, _, err = run(capsys, "report", finished_run, "--no-inspect", "--device", "cpu", "-o", store("pages/x.html"))
    assert code == 0 and "x.html" in _names(store("pages")), err


@pytest.mark.slow
def test_a_push_is_looked_at_in_a_local_folder_alone(store: Callable[[str], str], finished_run: Path, capsys) -> None:
    code, _, err = run(capsys, "push", finished_run, "me/x", "--dry-run", "-o", store("hub"))
    assert code == 2 and "give --output-dir a local folder" in err
    for name in ("config.yaml", "metrics.jsonl", "predictions.jsonl", "best.safetensors"):
        Place(store("runs/two")).put(finished_run / name, name)
    code, out, err = run(capsys, "push", store("runs/two"), "me/x", "--dry-run")
    assert code == 0 and "model.safetensors" in out + err, err
