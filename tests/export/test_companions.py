"""Files that come with an exported one: they replace what came with an earlier one, and nothing of anybody else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from exported import folder, quick_onnx, run, weights_file

from inception_v4.export import exporting
from inception_v4.export import formats as export_formats
from inception_v4.export.exporting import export_model
from inception_v4.export.om import OmTarget
from inception_v4.export.plan import Plan
from inception_v4.export.target import ExportError, Target
from inception_v4.files import publish, staged
from inception_v4.weights.convert import convert_weights

__all__ = ["folder", "quick_onnx"]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> Plan:
        raise AssertionError("the weights were read before it was refused")

    monkeypatch.setattr(exporting, "_plan", read)


def test_the_weights_are_not_replaced_by_openvinos_other_file(
    folder: Path, tmp_path: Path, capsys, no_work: None
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    weights = Path(shutil.copy(weights_file(folder), tmp_path / "pytorch_model.bin"))
    before = weights.read_bytes()
    output = tmp_path / "pytorch_model.xml"
    for more in ((), ("--dry-run",)):
        code, _, err = run(capsys, "export", weights, "-o", output, *more)
        assert code == 2 and len(err.splitlines()) == 1
        assert "pytorch_model.bin, which would replace the weights: give another output name" in err
    output.write_text("an earlier export")
    with pytest.raises(ExportError, match="would replace the weights"):
        export_model(weights, output)
    assert weights.read_bytes() == before and output.read_text() == "an earlier export"


@pytest.mark.parametrize(
    ("output", "other", "target"),
    [
        ("x.xml", "x.bin", Target()),
        ("x.om", "x.onnx", Target(om=OmTarget("Ascend310P3"))),
        ("x.om", "x.aipp.cfg", Target(om=OmTarget("Ascend310P3", aipp=True))),
        ("x.om", "x.om.json", Target(om=OmTarget("Ascend310P3"))),
    ],
)
def test_files_of_something_else_are_not_replaced(
    folder: Path, tmp_path: Path, no_work: None, output: str, other: str, target: Target
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (tmp_path / other).write_text("mine")
    with pytest.raises(ExportError, match=rf"comes with {other}, which would replace a file of something else"):
        export_model(weights_file(folder), tmp_path / output, target)
    assert [path.name for path in tmp_path.iterdir()] == [other]
    (tmp_path / output).write_text("an earlier export")
    with pytest.raises(AssertionError, match="weights were read"):  # it goes on
        export_model(weights_file(folder), tmp_path / output, target)


def test_the_preprocessing_of_the_chip_counts_only_where_it_is_written(tmp_path: Path) -> None:
    om = export_formats.FORMATS["om"]
    for aipp in (True, False):
        target = Target(om=OmTarget("Ascend310P3", aipp=aipp))
        names = [path.name for path in export_formats.companions(om, tmp_path / "x.om", target)]
        assert ("x.aipp.cfg" in names) is aipp


def test_an_earlier_export_is_replaced_with_what_came_with_it(folder: Path, quick_onnx: None, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    for _ in range(2):
        report = export_model(weights_file(folder), tmp_path / "x.xml", Target(check=False))
        assert [path.name for path in report.files] == ["x.xml", "x.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.xml"]


def test_publishing_moves_nothing_where_one_file_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "x.cfg").write_text("mine")
    with staged(tmp_path / "x.out") as part:
        for name in ("x.abc", "x.cfg", "x.out"):
            (part / name).write_text("new")
        with pytest.raises(FileExistsError, match=r"x\.out was not written: x\.cfg, .*give another output name"):
            publish(part, tmp_path / "x.out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.cfg"] and (tmp_path / "x.cfg").read_text() == "mine"


def test_a_conversion_does_not_replace_someone_elses_json(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pth.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"a\.pth\.json, which comes with it, would replace"):
        convert_weights(weights_file(folder), tmp_path / "a.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth.json"]
    assert (tmp_path / "a.pth.json").read_text() == "mine"
