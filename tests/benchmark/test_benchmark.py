"""The benchmark: what it computes is checked, never how fast."""

from __future__ import annotations

import json
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from running import run

from inception_v4.accelerator import select
from inception_v4.benchmark import contestants
from inception_v4.benchmark import measure as benchmark
from inception_v4.benchmark.contestants import FORMS, Entry, Form, Setup
from inception_v4.benchmark.measure import Group, Row, Timing, chosen, flops_per_image, measure
from inception_v4.benchmark.suites import SUITES
from inception_v4.benchmark.tables import loader_verdict, tables, to_markdown
from inception_v4.cli.main import run as run_command
from inception_v4.data.shapes import draw_shape
from inception_v4.inference.sessions import RuntimeUnavailable

FAST = Timing(repeats=2, seconds=0.0)


def group(*entries: Entry, task: str = "infer", batch_size: int = 2) -> Group:
    return Group(task, batch_size, 75, entries)


@pytest.mark.slow
def test_contestants_are_timed_and_their_outputs_compared() -> None:
    entries = [Entry("timm", "fp32"), Entry("plain", "fp32"), Entry("fused", "fp32"), Entry("fused", "bf16")]
    rows = measure(group(*entries), select("cpu"), FAST)
    assert [(row.form, row.precision) for row in rows] == [(e.form, e.precision) for e in entries]
    assert [row.error for row in rows] == [None] * 4
    assert all(0 < row.low <= row.ms <= row.high and row.first_seconds > row.ms / 1e3 for row in rows)
    assert rows[0].ratio == 1.0 and rows[0].difference == 0.0
    assert all(row.difference < 1e-4 for row in rows[1:3])
    assert 1e-4 < rows[3].difference < 0.1, "bfloat16 is seen to be bfloat16"
    assert rows[1].images_per_second == pytest.approx(2e3 / rows[1].ms)
    assert rows[1].tflops == pytest.approx(rows[1].images_per_second * flops_per_image(75) / 1e12)


@pytest.mark.slow
def test_exported_files_of_both_kinds_compute_the_same() -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    entries = [Entry("timm", "fp32"), Entry("onnxruntime", "fp32"), Entry("fused in onnxruntime", "fp32")]
    rows = measure(group(*entries), select("cpu"), FAST)
    assert [row.error for row in rows] == [None] * 3
    assert all(row.difference < 1e-4 for row in rows)


@pytest.mark.slow
def test_a_training_step_is_one_and_its_loss_is_timms() -> None:
    entries = [Entry("timm", "fp32"), Entry("plain", "fp32"), Entry("plain checkpointing", "fp32")]
    rows = measure(group(*entries, task="train", batch_size=32), select("cpu"), FAST)
    assert [row.error for row in rows] == [None] * 3
    assert all(row.difference < 1e-4 for row in rows), "before the first update the losses are equal"
    assert rows[0].tflops == pytest.approx(3 * rows[0].images_per_second * flops_per_image(75) / 1e12)
    setup = Setup(select("cpu"), task="train", batch_size=2, image_size=75)
    step = FORMS["plain"].build(setup, "fp32")
    assert len({float(step()) for _ in range(3)}) == 3, "the weights change"
    setup.close()


@pytest.mark.slow
def test_what_is_not_installed_is_a_row_with_the_remedy_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str, *others: str) -> None:
        raise RuntimeUnavailable(f"this needs {package}: pip install {package}")

    monkeypatch.setattr(contestants, "require", missing)
    rows = measure(group(Entry("timm", "fp32"), Entry("plain", "fp32")), select("cpu"), FAST)
    assert "pip install timm" in rows[0].error and rows[0].ms is None
    assert rows[1].error is None and rows[1].ms > 0 and rows[1].ratio is None
    header, cells = tables([rows[0].__dict__, rows[1].__dict__])[0]
    assert {len(row) for row in cells} == {len(header)}


def test_rounds_are_interleaved_in_rotating_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def build(name: str):
        def run_once() -> torch.Tensor:
            calls.append(name)
            return torch.ones(1)

        return lambda setup, precision: run_once

    for name in "abc":
        monkeypatch.setitem(FORMS, name, Form(("infer",), ("fp32",), build(name)))
    measure(group(*(Entry(name, "fp32") for name in "abc")), select("cpu"), Timing(repeats=3, seconds=1e-9))
    turns = calls[9:]  # three passes of each to warm up, then two calls to a turn
    assert turns == list("aabbcc" + "bbccaa" + "ccaabb")


def test_a_forward_pass_at_the_papers_size_has_24_6_billion_operations() -> None:
    assert flops_per_image(299) == pytest.approx(24.6e9, rel=0.01)


@pytest.mark.long
def test_memory_of_a_contestant_is_its_own() -> None:
    if select("cpu").peak_memory() is None:
        pytest.skip("this system does not count a process's memory")
    peaks = [
        benchmark._alone(group(task="train", batch_size=64), Entry(form, "fp32"))
        for form in ("plain", "plain checkpointing")
    ]
    (plain, tensors), (frugal, frugal_tensors) = peaks
    assert frugal < plain < 8e9
    weights = 4 * 42.7e6
    # Weights, gradients and the optimizer's two states at least.
    assert 4 * weights < frugal_tensors < tensors < plain


def test_every_suite_names_contestants_that_exist() -> None:
    for parts in SUITES.values():
        for part in parts:
            entries = chosen(part.forms, part.precisions, task=part.task)
            assert {entry.form for entry in entries} == set(part.forms)
            assert entries[0].form == part.forms[0]


def test_only_the_peers_that_were_asked_for() -> None:
    forms = ("timm", "timm compiled", "openvino", "fused", "fused in openvino")
    assert {e.form for e in chosen(forms, ["fp32"], task="infer", peers=["timm"])} == {*forms} - {"openvino"}
    assert {e.form for e in chosen(forms, ["fp32"], task="infer", peers=[])} == {"fused", "fused in openvino"}


@pytest.mark.slow
def test_compiling_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced in earnest; the machine code, which takes minutes, is left out."""
    original = torch.compile
    asked = []

    def compile_without_code(model: torch.nn.Module, **how: object) -> torch.nn.Module:
        asked.append(how["dynamic"])
        return original(model, backend="eager", dynamic=how["dynamic"])  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch, "compile", compile_without_code)
    said: list[str] = []
    entries = [Entry("plain", "fp32"), Entry("plain compiled", "fp32")]
    assert [row.error for row in measure(group(*entries), select("cpu"), FAST, said.append)] == [None] * 2
    (notice,) = (i for i, line in enumerate(said) if "compiles the network for this CPU, once: " in line)
    assert said[notice - 1] == "  preparing plain compiled fp32"
    assert asked == [False], "for one batch size, as the files of other runtimes are"
    assert all(form.compiles == ("compiled" in name or "graphs" in name) for name, form in FORMS.items())


@pytest.mark.slow
def test_an_export_counts_for_each_that_runs_it() -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    setup = Setup(select("cpu"), task="infer", batch_size=1, image_size=75)
    path = setup.file("fused")
    assert setup.spared == 0 and path.is_file()
    assert setup.file("fused") == path
    exporting = setup.spared
    assert exporting > 0
    setup.share(FORMS["fused in onnxruntime"])
    assert setup.spared == 0
    setup.file("int8")
    assert setup.spared == exporting, "what it is made from was there"
    setup.file("int8")
    assert setup.spared > 2 * exporting
    setup.close()


def test_a_contestant_that_is_killed_in_its_own_process_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, "a", Form(("infer",), ("fp32",), lambda setup, precision: lambda: torch.ones(1)))

    def killed(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(benchmark, "_alone", killed)
    (row,) = measure(group(Entry("a", "fp32")), select("cpu"), FAST._replace(memory=True))
    assert "killed" in row.error and row.memory is None


def test_markdown_has_a_table_for_each_group() -> None:
    figures = {"ms": 2.0, "low": 1.9, "high": 2.1, "images_per_second": 500.0, "first_seconds": 1.0, "tflops": 0.5}
    rows = [Row("infer", size, 75, "plain", "fp32", ratio=None, **figures).__dict__ for size in (1, 8)]
    text = to_markdown({"device": "a box", "timm": None}, tables(rows))
    assert text.startswith("device: a box\n") and "timm" not in text
    assert text.count("| --- | --- |") == 2 and "| plain | fp32 | 2.0 | 10.0 | 500.00 | 1.0 | 0.50 |\n" in text


@pytest.mark.slow
def test_the_command_prints_one_object(tmp_path) -> None:
    forms = ("--form", "timm", "--form", "fused", "--precision", "fp32")
    size = ("--batch-size", "1", "--image-size", "75", "--repeats", "1")
    done = run("benchmark", *forms, *size, "--json", "-", "--markdown", str(tmp_path / "table.md"))
    result = json.loads(done.stdout)
    assert [row["form"] for row in result["rows"]] == ["timm", "fused"]
    assert result["environment"]["matrix_tflops"]["fp32"] > 0
    assert "| fused | fp32 |" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_the_loader_is_measured_and_judged(tmp_path) -> None:
    for number in range(8):
        (tmp_path / f"class{number % 2}").mkdir(exist_ok=True)
        draw_shape("star", number, 80).save(tmp_path / f"class{number % 2}" / f"{number}.jpg")
    words = f"--data {tmp_path} --image-size 75 --batch-size 8 --repeats 1 --workers 0 --precision fp32".split()
    done = run("benchmark", *words, "--json", str(tmp_path / "loader.json"))
    result = json.loads((tmp_path / "loader.json").read_text())
    assert {row["loader"] for row in result["loaders"]} == {"ours", "ours, from shards", "timm", "torchvision"}
    assert len({row["recipe"] for row in result["loaders"]}) == 3
    assert all(row["images_per_second"] > 0 for row in result["loaders"])
    assert result["training_images_per_second"] > 0
    assert "one device trains" in done.stdout and "images/s in fp32" in done.stdout


def test_the_verdict_names_the_workers_that_would_do() -> None:
    assert "keeps up" in loader_verdict(200, 100, "bf16", 2)
    assert "--workers 5 " in loader_verdict(200, 450, "bf16", 2)
    assert "--workers 3 " in loader_verdict(200, 450, "bf16", 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--form", "fusd"], "'fused'"),
        (["--form", "fused", "--task", "train"], "nothing is left"),
        (["--image-size", "74"], "75"),
        (["--suite", "tpu"], "quick"),
    ],
)
def test_wrong_options_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["benchmark", *words]) == 2
    assert message in capsys.readouterr().err
