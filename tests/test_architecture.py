"""The rooms of the package and what holds in all of them: imports, names and sizes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from structure import cycles, files_of, imports, room_of, shared_names, upward

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "inception_v4"

ROOMS = (
    "__main__",
    "cli",
    "timm_plugin",
    "__init__",
    "pages",
    "benchmark",
    "export",
    "training",
    "inference",
    "weights",
    "data",
    "storage",
    "settings",
    "distributed",
    "network",
    "accelerator",
    "console",
    "files",
    "preprocessing",
)
"""A file imports from its own room and from rooms further down, nothing else; no files in a circle."""

LAZY = "__init__"
"""The package's own file names what is public, as text that is imported when it is asked for."""

PROTOCOLS = {
    "cli": {"command"},
    "settings.dialects": {
        "COMBINATIONS", "DEFAULTS", "IGNORED", "QUIET", "REFUSED", "RULES", "SIGNS", "dropped", "implied",
    },
    "weights.layouts": {"PREPROCESSING", "decode", "encode", "table"},
}  # fmt: skip
"""Names that every file of a folder has, so that a registry can hold one row for each."""


def test_rooms_import_only_from_rooms_below() -> None:
    assert upward(imports(PACKAGE), ROOMS) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert cycles(imports(PACKAGE)) == []


def test_every_room_says_what_it_knows_and_what_it_must_never_know() -> None:
    folders = {path.parent for path in PACKAGE.rglob("__init__.py")} - {PACKAGE}
    assert {room_of(name) for name in files_of(PACKAGE)} == set(ROOMS)
    for folder in folders:
        text = " ".join((ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "").split())
        assert re.search(r"Knows .*\. Must never ", text), f"{folder}: say what it knows and what it must never know"


def test_the_house_is_read_from_ls() -> None:
    entries = [entry for entry in PACKAGE.iterdir() if not entry.name.startswith("__pycache__")]
    assert sum(entry.is_dir() for entry in entries) <= 12
    assert sum(entry.is_file() for entry in entries) <= 8


def test_one_name_means_one_thing() -> None:
    allowed = {(folder, name) for folder, names in PROTOCOLS.items() for name in names}
    wrong = {
        name: files
        for name, files in shared_names(PACKAGE).items()
        if len({file.rpartition(".")[0] for file in files}) > 1 or (files[0].rpartition(".")[0], name) not in allowed
    }
    assert wrong == {}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A sound package of three rooms, to plant faults in."""
    package = tmp_path / "house"
    for name, text in {
        "__init__": "",
        "roof/__init__": "",
        "roof/top": "from house.hall import lamp\n\n\ndef shine():\n    from house.cellar.coal import heat\n",
        "hall": "lamp = 1\n",
        "cellar/__init__": "",
        "cellar/coal": "from .wood import log\n",
        "cellar/wood": "log = 1\n",
    }.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


PLANTED_ROOMS = ("__init__", "roof", "hall", "cellar")


def test_the_rules_find_nothing_in_a_sound_house(planted: Path) -> None:
    graph = imports(planted)
    assert graph["roof.top"] == {"hall", "cellar.coal"} and graph["cellar.coal"] == {"cellar.wood"}
    assert upward(graph, PLANTED_ROOMS) == [] and cycles(graph) == [] and shared_names(planted) == {}


@pytest.mark.parametrize(
    "line",
    [
        "from house.roof import top",
        "from ..roof.top import shine",
        "import house.roof.top",
        "from house.hall import lamp",
    ],
)
@pytest.mark.parametrize("place", ["{}\n", "def later():\n    {}\n"])
def test_a_planted_upward_import_is_found(planted: Path, line: str, place: str) -> None:
    (planted / "cellar" / "wood.py").write_text(place.format(line))
    assert [found.partition(" ")[0] for found in upward(imports(planted), PLANTED_ROOMS)] == ["cellar.wood"]


@pytest.mark.parametrize(
    "line", ["from . import coal", "from .coal import heat", "def f():\n    from house.cellar import coal"]
)
def test_a_planted_circle_is_found(planted: Path, line: str) -> None:
    (planted / "cellar" / "wood.py").write_text(line + "\n")
    assert cycles(imports(planted)) == [["cellar.coal", "cellar.wood"]]


def test_a_planted_second_meaning_is_found(planted: Path) -> None:
    (planted / "cellar" / "wood.py").write_text("class lamp: ...\n")
    assert shared_names(planted) == {"lamp": ["cellar.wood", "hall"]}


def test_device_words_stay_in_the_accelerator() -> None:
    pattern = re.compile(r"torch\.(cuda|npu|mps|xpu)\b|torch_npu|torch\.backends\.(cuda|mps|cudnn)")
    wrong = [
        f"{name}: {match[0]}"
        for name, path in files_of(PACKAGE).items()
        if room_of(name) != "accelerator"
        for match in pattern.finditer(path.read_text())
    ]
    assert wrong == []


def test_importing_the_package_or_the_command_line_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, inception_v4, inception_v4.cli.main, inception_v4.cli.train, inception_v4.cli.validate; "
        "print([m for m in ('torch', 'timm', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350, "split it: one job per file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno
            assert length <= 60, f"{node.name} has {length} lines"


def test_no_catch_all_names_and_no_hollow_code() -> None:
    files = list(files_of(PACKAGE).values())
    assert not {"utils", "common", "helpers", "misc"} & {part for path in files for part in path.with_suffix("").parts}
    unfinished = re.compile(r"\b(TODO|FIXME|XXX)\b")
    assert [p.name for p in files if unfinished.search(p.read_text())] == []
    swallowed = [
        f"{path.name}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body)
    ]
    assert swallowed == []


def test_public_names_are_not_module_names_and_exist() -> None:
    import inception_v4

    assert not set(inception_v4.__all__) & {name.rpartition(".")[2] for name in files_of(PACKAGE)}
    for name in inception_v4.__all__:
        assert getattr(inception_v4, name).__name__ == name
