"""Exported files run alone: the same numbers as in PyTorch, on real pictures, through validate and predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import CLASSES, HOW, drawn, exported, folder, logits, network, onnx_file, photographs, run, weights_file
from photos import class_folders
from temporary import NewFolder

from inception_v4.inference.network import accelerator_for, open_network, runtime_for
from inception_v4.inference.outputs import OutputsError, read_labels, score_outputs
from inception_v4.inference.predict import Predictor
from inception_v4.inference.sessions import RUNTIMES, ExportedFileError, RuntimeUnavailable

__all__ = ["folder"]

ROUNDING = 1e-4


def opened(file: Path, runtime: str | None = None, **options: object):
    runtime = runtime_for(str(file), runtime)
    return open_network(str(file), accelerator_for(runtime, "cpu"), runtime=runtime, device="cpu", **options)


@pytest.fixture(params=["onnx", "openvino", pytest.param("pt2", marks=pytest.mark.slow)])
def ready(request: pytest.FixtureRequest, folder: Path):
    """The live weights in each runtime; OpenVINO reads the ONNX file."""
    if request.param == "pt2":
        return opened(exported(folder, "live.pt2"))
    pytest.importorskip("openvino" if request.param == "openvino" else "onnxruntime")
    return opened(onnx_file(folder), request.param)


def test_real_photos_give_the_same_logits(ready) -> None:
    pictures = photographs(6)
    found, expected = ready.model(ready.prepare(HOW)(pictures)), logits(pictures)
    assert (found - expected).abs().max() < ROUNDING
    assert (expected[0] - expected[1]).abs().max() > 0.1, "two pictures differ by far more than that"


def test_every_batch_size_and_the_description(ready) -> None:
    assert ready.info.class_names == CLASSES and ready.info.preprocessing == HOW
    for count in (1, 2, 5):
        found = ready.model(ready.prepare(HOW)(drawn(count)))
        assert found.shape == (count, 6) and (found - logits(drawn(count))).abs().max() < ROUNDING


@pytest.fixture(scope="module")
def data(module_folder: NewFolder) -> Path:
    return class_folders(module_folder("data") / "val", dict.fromkeys(CLASSES, 3)).parent


def validated(capsys, *words: object) -> dict:
    code, out, err = run(capsys, "validate", "--device", "cpu", "--workers", 0, "--batch-size", 4, "--json", *words)
    assert code == 0, err
    return json.loads(out)


def test_validate_and_predict_on_the_file_alone(folder: Path, data: Path, tmp_path: Path, capsys) -> None:
    alone = tmp_path / "alone.onnx"
    alone.symlink_to(onnx_file(folder))
    expected = validated(capsys, "--ckpt-path", weights_file(folder), "--data-dir", data)
    found = validated(capsys, "--ckpt-path", alone, "--data-dir", data)
    assert found["samples"] == 18 and found["preprocessing"] == expected["preprocessing"] == HOW.to_dict()
    assert (found["top1"], found["top5"]) == (expected["top1"], expected["top5"]) and 0 < found["top1"] < 100
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    pictures = [str(p) for p in sorted(data.rglob("*.jpg"))[::5]]
    by_weights, by_file = (
        Predictor(str(weights_file(folder)), device="cpu", amp="off"),
        Predictor(str(alone), device="cpu"),
    )
    for one, other in zip(by_weights(pictures), by_file(pictures), strict=True):
        assert one.classes == other.classes
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_what_a_file_is_fixed_to_is_said(folder: Path, data: Path, capsys) -> None:
    file = onnx_file(folder)
    base = ("validate", "--device", "cpu", "--ckpt-path", file, "--data-dir", data)
    for words, message in (
        (("--image-size", 107), "was exported for 75 px, not 107: export again with --image-size 107"),
        (("--amp", "bf16"), "use amp off"),
        (("--num-classes", 7), "has 6 classes, not 7"),
        (("--runtime", "pt2"), "does not read"),
        (("--runtime", "torch"), "use --runtime onnx or openvino"),
    ):
        code, _, err = run(capsys, *base, *words)
        assert code == 1 and message in err, words


def test_files_that_run_elsewhere_are_broken_or_foreign(folder: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ExportedFileError, match="--from-outputs FOLDER --labels FILE"):
        runtime_for("model.om")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        opened(tmp_path / "none.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(onnx_file(folder).read_bytes()[:1000])
    with pytest.raises(ExportedFileError, match="cannot be opened"):
        opened(cut)
    (tmp_path / "cut.pt2").write_bytes(b"PK")
    with pytest.raises(ExportedFileError, match="no archive"):
        opened(tmp_path / "cut.pt2")
    with pytest.raises(RuntimeUnavailable, match="has no CANNExecutionProvider"):
        open_network(str(onnx_file(folder)), accelerator_for("onnx", "cpu"), runtime="onnx", device="npu:0")


@pytest.mark.parametrize(
    ("device", "rank", "expected"),
    [
        ("cuda:1", None, ("CUDAExecutionProvider", {"device_id": "1"})),
        ("cuda", None, ("CUDAExecutionProvider", {"device_id": "0"})),
        ("cuda", "3", ("CUDAExecutionProvider", {"device_id": "3"})),
        ("cuda:0", "3", ("CUDAExecutionProvider", {"device_id": "0"})),
        ("auto", "2", ("CUDAExecutionProvider", {"device_id": "2"})),
        ("cpu", "3", ("CPUExecutionProvider", {})),
    ],
)
def test_onnx_runtime_gets_the_number_of_the_device(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, rank: str | None, expected: tuple[str, dict[str, str]]
) -> None:
    """What a build for GPUs would be told; the session itself then runs here."""
    ort = pytest.importorskip("onnxruntime")
    file = onnx_file(folder)  # its export has sessions of its own
    told, start = [], ort.InferenceSession

    class Session(start):
        def __init__(self, path: str, options: object, providers: list) -> None:
            told.extend(providers)
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return [told[0][0]]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    session = RUNTIMES["onnx"].open(file, device)
    assert told[0] == expected
    assert all(f"{name} {value}" in session.engine for name, value in expected[1].items())


def test_another_programs_onnx_file_is_run_with_a_remark(folder: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(onnx_file(folder)))
    model.ClearField("metadata_props")
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    foreign = opened(tmp_path / "foreign.onnx")
    assert "does not say how its pictures are prepared; assumed: 75 px" in foreign.messages[0]
    assert foreign.info.num_classes == 6 and foreign.info.class_names is None
    found = foreign.model(foreign.prepare(foreign.info.preprocessing.replace(mean=HOW.mean, std=HOW.std))(drawn(2)))
    assert (found - logits(drawn(2))).abs().max() < ROUNDING


def write_outputs(folder: Path, rows: torch.Tensor, form: str = ".bin") -> list[str]:
    """As the ModelZoo's program for the Ascend 310 leaves them."""
    folder.mkdir()
    names = [f"val.{i:05d}" for i in range(len(rows))]
    for name, row in zip(names, rows.numpy(), strict=True):
        if form == ".bin":
            row.astype("<f4").tofile(folder / f"{name}_0.bin")
        elif form == ".npy":
            np.save(folder / f"{name}_0.npy", row[None])
        else:
            np.savetxt(folder / f"{name}_0.txt", row[None])
    return names


@pytest.mark.parametrize("form", [".bin", ".npy", ".txt"])
def test_outputs_of_another_machine_are_scored_as_validate_does(tmp_path: Path, form: str, capsys) -> None:
    rows = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(10, (300,), generator=torch.Generator().manual_seed(1))
    names = write_outputs(tmp_path / "result_Files", rows, form)
    lines = [f"{name}.JPEG {label}" for name, label in zip(names, labels.tolist(), strict=True)]
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    words = ("--from-outputs", tmp_path / "result_Files", "--labels", tmp_path / "labels.txt")
    code, out, _ = run(capsys, "validate", *words, "--json")
    result = json.loads(out)
    top5 = (rows.topk(5).indices == labels[:, None]).any(1)
    assert code == 0 and result["samples"] == 300
    assert result["top1"] == pytest.approx(100 * (rows.argmax(1) == labels).double().mean().item())
    assert result["top5"] == pytest.approx(100 * top5.double().mean().item())
    assert result["loss"] == pytest.approx(torch.nn.functional.cross_entropy(rows, labels).item(), abs=1e-5)


def test_probabilities_offsets_and_missing_pictures_are_noticed(tmp_path: Path, capsys) -> None:
    rows = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    names = write_outputs(tmp_path / "out", rows.softmax(1))
    shifted = {name: (label + 1) % 10 for name, label in zip(names, rows.argmax(1).tolist(), strict=True)}
    (tmp_path / "labels.json").write_text(json.dumps(shifted | {"another": 1}))
    words = ("validate", "--result_path", tmp_path / "out", "--label_file", tmp_path / "labels.json")
    code, out, err = run(capsys, *words)
    assert code == 0 and "(60 pictures)" in out
    assert "outputs are probabilities" in err and "1 of 61 labelled pictures have no outputs" in err
    assert "labels look off" in err
    logs, _ = score_outputs(tmp_path / "out", tmp_path / "labels.json")
    plain = torch.nn.functional.cross_entropy(rows, torch.tensor([shifted[n] for n in names])).item()
    assert logs["loss"] == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("line", ["a/b c.JPEG 3", "b c.jpg,3", "b c:3", "b c\t3", "  x/b c , 3"])
def test_forms_of_label_lines(tmp_path: Path, line: str) -> None:
    (tmp_path / "l.txt").write_text(f"{line}\n\n")
    assert read_labels(tmp_path / "l.txt") == {"b c": "3"}


@pytest.mark.parametrize(
    ("labels", "extra", "message"),
    [
        ("val.00000 3\nval.00001\n", b"", "line 2 .*is not `picture label`"),
        ("val.00000 3\nval.00000 4\n", b"", "the labels 3 and 4: keep one"),
        ("val.00000 3\n", b"", "no label for 'val.00001'"),
        ("val.00000 3\nval.00001 10\n", b"", "'10' is no class of the 10 outputs"),
        ("val.00000 3\nval.00001 4\nz 1\n", b"12345678", "holds 2 numbers, val.00000_0.bin 10"),
        ("val.00000 3\nval.00001 4\nz 1\n", np.full(10, np.nan, "<f4").tobytes(), "NaN"),
        ("val.00000 3\nval.00001 4\nz 1\n", bytes(42), r"z_0\.bin cannot be read"),
        ("val.00000 3\nval.00001 \u00b2\n", b"", "is no class of the 10 outputs"),
    ],
)
def test_outputs_that_cannot_be_scored(tmp_path: Path, labels: str, extra: bytes, message: str) -> None:
    write_outputs(tmp_path / "out", torch.randn(2, 10))
    if extra:
        (tmp_path / "out" / "z_0.bin").write_bytes(extra)
    (tmp_path / "l.txt").write_text(labels)
    with pytest.raises(OutputsError, match=message):
        score_outputs(tmp_path / "out", tmp_path / "l.txt")


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"\x93NUMPY", b"text"])
def test_damaged_arrays_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.npy").write_bytes(content)
    (tmp_path / "l.txt").write_text("a 3\n")
    with pytest.raises(OutputsError, match=r"a\.npy (cannot be read|holds)"):
        score_outputs(tmp_path / "out", tmp_path / "l.txt")


def test_two_outputs_of_one_picture_and_labels_that_are_no_text(tmp_path: Path) -> None:
    write_outputs(tmp_path / "out", torch.randn(2, 10))
    (tmp_path / "out" / "val.00001.bin").write_bytes((tmp_path / "out" / "val.00001_0.bin").read_bytes())
    (tmp_path / "l.txt").write_text("val.00000 3\nval.00001 4\n")
    with pytest.raises(OutputsError, match=r"val\.00001\.bin and val\.00001_0\.bin are both of the picture"):
        score_outputs(tmp_path / "out", tmp_path / "l.txt")
    (tmp_path / "l.txt").write_bytes(b"val.00000 \xff\n")
    with pytest.raises(OutputsError, match="no text in UTF-8"):
        score_outputs(tmp_path / "out", tmp_path / "l.txt")


def test_settings_beside_scored_outputs_are_said_to_have_no_effect(tmp_path: Path, capsys) -> None:
    write_outputs(tmp_path / "out", torch.randn(2, 10))
    (tmp_path / "l.txt").write_text("val.00000 3\nval.00001 4\n")
    words = ("validate", "--from-outputs", tmp_path / "out", "--labels", tmp_path / "l.txt", "--ckpt-path", "w.ckpt")
    code, _, err = run(capsys, *words, "--runtime", "onnx")
    assert code == 0 and "runtime, ckpt_path -> no effect: the outputs are scored as they are" in err


def test_the_live_network_is_live() -> None:
    assert len(logits(drawn(8)).argmax(1).unique()) > 1 and not network().training
