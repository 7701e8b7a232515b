"""The extras of setup.cfg: what messages and pages tell people to install is there, and brings what is imported."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path

import pytest

from inception_v4.export.eight_bit import EIGHT_BIT_PACKAGES
from inception_v4.inference.engines import ENGINES
from inception_v4.settings.addresses import SCHEMES

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "inception_v4").rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docker").iterdir())]

FOR_DEVELOPERS = {"test", "dev"}
REMEDY = re.compile(r"(?:inception-v4|(?<=[\s'\"])\.)\[([\w,]+)\]")
"""What stands in the brackets of `inception-v4[...]` and of `.[...]`."""


def extras() -> dict[str, set[str]]:
    """Packages of each extra, spelt as they are imported where that differs by a dash alone."""
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    return {
        name: {re.split(r"[<>=;\[ ]", line)[0].replace("-", "_") for line in lines.split("\n") if line}
        for name, lines in found["options.extras_require"].items()
    }


def named_in(text: str) -> set[str]:
    return {name for inner in REMEDY.findall(text) for name in inner.split(",")}


def optional_calls() -> set[tuple[str, str]]:
    """Packages and extras of the package's calls `optional("package", "extra")`."""
    calls = (
        node
        for path in PACKAGE
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "optional"
    )
    return {(ast.unparse(call.args[0]).strip("'"), ast.unparse(call.args[1]).strip("'")) for call in calls}


def test_extras_that_people_are_told_of_exist() -> None:
    for path in [*PACKAGE, *PAGES]:
        assert named_in(path.read_text("utf-8")) <= set(extras()), path
    assert {"report", "demo", "serve", "s3", "npu"} <= {n for path in PAGES for n in named_in(path.read_text("utf-8"))}
    assert named_in("pip install 'inception-v4[a]' and '.[b,c]', not x.[d]") == {"a", "b", "c"}


@pytest.mark.parametrize("extra", sorted(set(extras()) - FOR_DEVELOPERS))
def test_every_extra_is_told_of(extra: str) -> None:
    assert any(extra in named_in(path.read_text("utf-8")) for path in PAGES), f"no page says what [{extra}] is for"


def test_extras_bring_what_is_imported() -> None:
    calls = optional_calls()
    assert ("jinja2", "report") in calls and ("package", "serve") in calls  # those of a loop have a variable
    for package, extra in calls:
        assert package == "package" or package in extras()[extra]
    assert {extra for extra in SCHEMES.values() if extra} <= set(extras())
    assert "wandb" in extras()["wandb"] and "mlflow" in extras()["mlflow"]


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_runtimes_extra_brings_all_that_it_does(runtime: str) -> None:
    """Weights run in it, and the 8-bit form is made."""
    assert {*ENGINES[runtime].packages, *EIGHT_BIT_PACKAGES[runtime]} <= extras()[runtime]


def test_image_builds_with_extras_that_exist() -> None:
    (asked,) = re.findall(r"^ARG EXTRAS=(\S+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.M)
    assert set(asked.split(",")) <= set(extras())
