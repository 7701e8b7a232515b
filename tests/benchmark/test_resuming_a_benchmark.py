"""A benchmark that is stopped keeps its finished tables, and goes on from them on the same machine alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import run
from terminal import run_on_terminal, shows_estimate

from inception_v4.benchmark.groups import Earlier, read_earlier, run_groups
from inception_v4.benchmark.measure import Entry, Group, Row, Timing

WORDS = ("benchmark", "--form", "plain", "--form", "fused", "--peer", "none", "--precision", "fp32",
         "--image-size", "75", "--repeats", "1", "--batch-size", "1")  # fmt: skip
TWO = (*WORDS, "--batch-size", "2")
FILES = ("--json", "all.json", "--markdown", "all.md")


@pytest.mark.slow
def test_ctrl_c_keeps_the_finished_tables_and_the_same_command_goes_on(tmp_path: Path) -> None:
    code, text = run_on_terminal(*TWO, *FILES, cwd=tmp_path, until=lambda text: "group 2 of 2" in text)
    assert code == 130, text
    (line,) = (line for line in text.splitlines() if "interrupted" in line)
    assert line.strip() == (
        "interrupted: 1 of 2 tables were finished; the same command goes on with --resume-from all.json"
    )
    assert "Traceback" not in text
    assert shows_estimate(text, "infer, batch 1, 75 px: preparing") and shows_estimate(text, "batch 1, 75 px: rounds")
    assert text.index("images/s") < text.index("group 2 of 2"), "a table is shown when it is ready"
    first = json.loads((tmp_path / "all.json").read_text())
    assert [(row["batch_size"], row["form"]) for row in first["rows"]] == [(1, "plain"), (1, "fused")]
    assert "| infer, batch 1, 75 px |" in (tmp_path / "all.md").read_text()

    done = run(*TWO, *FILES, "--resume-from", "all.json", cwd=tmp_path)
    assert "infer, batch 1, 75 px: taken over from all.json" in done.stderr
    assert done.stderr.count("preparing") == 2 and "infer, batch 2, 75 px: 2 contestants" in done.stderr
    assert "\r" not in done.stdout + done.stderr, "plain lines where there is no terminal"
    whole = json.loads((tmp_path / "all.json").read_text())
    assert whole["rows"][:2] == first["rows"] and [row["batch_size"] for row in whole["rows"]] == [1, 1, 2, 2]
    assert [line.split("\t")[0] for line in done.stdout.splitlines() if line.startswith("infer")] == [
        "infer, batch 1, 75 px", "infer, batch 2, 75 px",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "all.md"]

    before = (tmp_path / "all.json").read_bytes()
    refused = run(*WORDS, "--repeats", "2", *FILES, "--resume-from", "all.json", cwd=tmp_path, expect=1)
    assert len(refused.stderr.splitlines()) == 1
    assert "repeats is 1 there and 2 here; infer, batch 2, 75 px is measured there alone" in refused.stderr
    assert (tmp_path / "all.json").read_bytes() == before


GROUP = Group("infer", 1, 75, (Entry("plain", "fp32"),))
ROW = Row("infer", 1, 75, "plain", "fp32", ms=2.0, low=1.9, high=2.1, images_per_second=500.0)
STATE = {"device": "a box", "threads": 2, "torch": "2.15.0", "load": 0.5}


@pytest.mark.parametrize(
    ("state", "settings", "group", "message"),
    [
        ({}, {}, GROUP, None),
        ({"load": 3.0, "matrix_tflops": {"fp32": 1.0}}, {}, GROUP, None),
        ({"threads": 4}, {}, GROUP, "threads is 2 there and 4 here"),
        ({"torch": "2.16.0"}, {}, GROUP, "torch is 2.15.0 there and 2.16.0 here"),
        ({"openvino": "2026.4"}, {}, GROUP, "openvino is None there and 2026.4 here"),
        ({}, {"memory": True}, GROUP, "memory is False there and True here"),
        ({}, {}, Group("infer", 1, 75, (Entry("fused", "fp32"),)), "infer, batch 1, 75 px has other contestants there"),
        ({}, {}, Group("infer", 1, 80, GROUP.entries), "infer, batch 1, 75 px is measured there alone"),
    ],
)
def test_figures_of_other_conditions_are_refused(
    state: dict[str, Any], settings: dict[str, Any], group: Group, message: str | None
) -> None:
    earlier = Earlier(Path("a.json"), STATE, Timing()._asdict(), [ROW])
    if message is None:
        earlier.check(STATE | state, Timing()._asdict() | settings, [group])
        return
    with pytest.raises(ValueError, match=rf"^a\.json is of another run: {message}\. Measure anew"):
        earlier.check(STATE | state, Timing()._asdict() | settings, [group])


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"loaders": []}', '{"environment": {}, "settings": {}, "rows": [{}]}'],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json has no figures of a suite"):
        read_earlier(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        read_earlier(tmp_path / "b.json")


def test_the_highest_load_of_both_runs_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inception_v4.benchmark import groups

    monkeypatch.setattr(groups, "environment", lambda accelerator: STATE | {"load": 0.1})
    earlier = Earlier(Path("a.json"), STATE | {"matrix_tflops": {"fp32": 1.0}}, Timing()._asdict(), [ROW])
    ((group, result),) = run_groups([GROUP], "cpu", options=Timing(), earlier=earlier)
    assert group == GROUP
    assert result["environment"] == STATE | {"matrix_tflops": {"fp32": 1.0}} and result["rows"] == [ROW.__dict__]


def test_figures_of_later_groups_are_never_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is measured first: the file that is written after it may be the one that they come from."""
    from inception_v4.benchmark import groups

    monkeypatch.setattr(groups, "environment", lambda accelerator: STATE)
    before = Group("infer", 2, 75, GROUP.entries)
    earlier = Earlier(Path("a.json"), STATE, Timing(1, 0.0)._asdict(), [ROW])
    steps = list(run_groups([before, GROUP], "cpu", options=Timing(1, 0.0), earlier=earlier))
    assert [(group, [row["batch_size"] for row in result["rows"]]) for group, result in steps] == [
        (before, [2, 1]), (GROUP, [2, 1]),
    ]  # fmt: skip


def test_resuming_a_measurement_of_loaders_is_refused(tmp_path: Path) -> None:
    assert "leave it out" in run("benchmark", "--data", "x", "--resume-from", "a.json", expect=2).stderr
