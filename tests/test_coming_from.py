"""docs/coming-from.md: every line of it runs, and its tables are the rules the program uses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from inception_v4.cli import run
from inception_v4.config import build_config
from inception_v4.dialects import DIALECTS, table

DOCUMENT = Path(__file__).parent.parent / "docs" / "coming-from.md"
FIXTURES = Path(__file__).parent / "fixtures"
FILES = {
    "configs/inceptionv4/inception_v4_ascend.yaml": "mindcv_inception_v4_ascend.yaml",
    "inception_v4_ascend.yaml": "mindcv_inception_v4_ascend.yaml",
    "default_config.yaml": "modelzoo_default_config.yaml",
    "default_config_gpu.yaml": "modelzoo_default_config_gpu.yaml",
    "default_config_cpu.yaml": "modelzoo_default_config_cpu.yaml",
    "args.yaml": "timm_args.yaml",
}
"""The files of other projects that the document names, as their settings lie among the fixtures."""


def lines() -> list[str]:
    """The commands of the right-hand columns."""
    cells = re.findall(r"^\| .* \| `((?:python|torchrun|inception-v4) .*)` \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(cells) > 20
    return cells


def words(line: str) -> list[str]:
    """Arguments of `inception-v4` for a line of the document."""
    command, *rest = re.sub(
        r"^(python |torchrun --nproc-per-node \d+ )?(tools/(\w+)\.py|inception-v4)", r"\3", line
    ).split(" ", 1)
    arguments = shlex.split(" ".join([command, *rest]))
    known = [(f"{prefix}{name}", f"{prefix}{FIXTURES / file}") for name, file in FILES.items()
             for prefix in ("", "--config_path=", "--config=")]  # fmt: skip
    return [dict(known).get(word, word) for word in arguments]


@pytest.mark.parametrize("line", lines())
def test_every_line_runs(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = words(line)
    assert arguments[0] in ("train", "validate")
    assert run([*arguments, "--dry-run"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    sections = yaml.safe_load(shown.out)
    config = build_config({name: value for section in sections.values() for name, value in section.items()})
    assert config.network.model == "inception_v4"
    foreign = "_config" in line or "inception_v4_ascend" in line or "args.yaml" in line
    assert foreign == ("read as a recipe of" in shown.err)


def test_a_wrong_line_would_be_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--image_resise", "224", "--dry-run"]) != 0
    assert (
        run(["train", "-c", str(FIXTURES / "modelzoo_default_config.yaml"), "--resume_opt", "True", "--dry-run"]) != 0
    )
    assert "resume_opt=True" in capsys.readouterr().err


@pytest.mark.parametrize("name", DIALECTS)
def test_tables_of_settings_are_up_to_date(name: str) -> None:
    text = table(DIALECTS[name])
    assert text in DOCUMENT.read_text(), f"replace the table of {name} by the output of inception_v4.dialects.table"
