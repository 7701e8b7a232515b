"""The structure of the package, read with `ast`: layers, cycles, device words, sizes, and what the README says."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "inception_v4"

LAYERS = (
    {"preprocessing", "jpeg", "recompute"},
    {
        "model",
        "accelerator",
        "schedule",
        "metrics",
        "schema",
        "shapes",
        "cache",
        "pictures",
        "folders",
        "matfile",
        "defaults",
        "tables",
        "mindir_worker",
    },
    {"distributed"},
    {"dialects", "fusion", "checkpoint", "cifar", "imagenet", "ascend_om", "crops", "sessions"},
    {"config", "weights", "optim", "runlog", "augment", "sources", "order", "timm_plugin"},
    {"data", "data_record", "factory", "report", "mindir"},
    {"engine", "quantization"},
    {"runtimes", "bench_data"},
    {"job", "validate", "predict", "convert", "export_formats"},
    {"train", "export", "outputs", "contestants"},
    {"benchmark"},
    {"cli"},
    {"export_command", "benchmark_command"},
    {"commands"},
    {"__main__"},
)
"""A module imports only from lower layers; inside a package its own files may import each other."""

LAZY = {"__init__", "cli", "commands"}
"""Modules whose imports happen when something is used."""


def modules() -> dict[str, list[Path]]:
    """Files by the module of the table they belong to."""
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found.setdefault(parts[0], []).append(path)
    return found


def imported(path: Path) -> set[str]:
    """The package's modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "inception_v4":
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("inception_v4.")}
    return names - {"__version__"}


def layer_of(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def test_every_module_has_a_layer() -> None:
    assert set(modules()) - {"__init__"} == set().union(*LAYERS)


def test_imports_go_downwards() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {target}"
        for name, paths in modules().items()
        for path in paths
        for target in imported(path)
        if name not in LAZY and target != name and layer_of(target) >= layer_of(name)
    ]
    assert wrong == []


def test_device_words_stay_in_the_accelerator() -> None:
    pattern = re.compile(r"torch\.(cuda|npu|mps|xpu)\b|torch_npu|torch\.backends\.(cuda|mps|cudnn)")
    wrong = [
        f"{path.relative_to(PACKAGE)}: {match[0]}"
        for name, paths in modules().items()
        if name != "accelerator"
        for path in paths
        for match in pattern.finditer(path.read_text())
    ]
    assert wrong == []


def test_importing_the_package_or_the_command_line_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, inception_v4, inception_v4.cli.main, inception_v4.cli.commands, inception_v4.settings.recipes; "
        "print([m for m in ('torch', 'timm', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400, "split it: one job per file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno
            assert length <= 75, f"{node.name} has {length} lines"


def test_no_catch_all_names_and_no_hollow_code() -> None:
    assert not {"utils", "common", "helpers", "misc"} & set(modules())
    files = [path for paths in modules().values() for path in paths]
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

    assert not set(inception_v4.__all__) & set(modules())
    for name in inception_v4.__all__:
        assert getattr(inception_v4, name).__name__ == name


def readme_commands() -> list[list[str]]:
    """Words of every `inception-v4 ...` line in the README's shell blocks."""
    text = (ROOT / "README.md").read_text()
    lines = [line for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.S) for line in block.splitlines()]
    found = []
    for line in lines:
        match = re.search(r"(?:inception-v4|-m inception_v4)\s+(\w.*)", line.split("#")[0])
        if match:
            found.append(shlex.split(match[1].split("&&")[0].split("|")[0].split(">")[0]))
    return found


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_the_readmes_commands_exist(words: list[str]) -> None:
    """Each is parsed by the real command line: unknown commands, flags and recipes fail."""
    from click.testing import CliRunner

    from inception_v4.cli.main import cli
    from inception_v4.settings.recipes import find_recipe

    command = cli.get_command(None, words[0])  # type: ignore[arg-type]
    assert command is not None, f"no command {words[0]}"
    context = command.make_context(words[0], list(words[1:]))
    if context.params.get("config_file"):
        find_recipe(context.params["config_file"])
    assert CliRunner().invoke(cli, [words[0], "--help"]).exit_code == 0
