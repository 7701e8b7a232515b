"""The real torch-npu, read but not run: fetched by pip, unpacked into the user's cache, looked up with `ast`."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from npu_simulator import CACHE


def fetch() -> Path:
    """The newest torch-npu for this Python, unpacked; fetched once. RuntimeError where pip cannot reach one."""
    cache = CACHE / "torch-npu"
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--retries=1", "--timeout=20", "--dest", str(cache), "torch-npu"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"torch-npu cannot be fetched: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    wheel = sorted(cache.glob("*.whl"))[-1]
    unpacked = cache / wheel.stem
    if not unpacked.exists():
        part = cache / f"{wheel.stem}.{os.getpid()}"
        zipfile.ZipFile(wheel).extractall(part)
        part.rename(unpacked)
    return unpacked


class Sources:
    """Definitions in the unpacked wheel, found by following its imports."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @functools.cache  # noqa: B019 - one object per test run
    def tree(self, module: str) -> ast.Module | None:
        path = self.root / Path(*module.split("."))
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return ast.parse(file.read_text())
        return None

    def find(self, module: str, name: str) -> ast.AST | str | None:
        """What `module.name` is: a definition, an assignment, the name of a submodule, or None."""
        tree = self.tree(module)
        if tree is None:
            return None
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
                return node
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                return node.value
        for node in tree.body:
            for origin, original in self._imports(module, node, name):
                found = self.find(origin, original)
                if found is not None:
                    return found
        return f"{module}.{name}" if self.tree(f"{module}.{name}") is not None else None

    def _imports(self, module: str, node: ast.stmt, name: str) -> list[tuple[str, str]]:
        if not isinstance(node, ast.ImportFrom):
            return []
        is_package = (self.root / Path(*module.split(".")) / "__init__.py").is_file()
        parts = module.split(".") if is_package else module.split(".")[:-1]
        base = parts[: len(parts) - node.level + 1] if node.level else []
        origin = ".".join([*base, *(node.module.split(".") if node.module else [])])
        wanted = [alias for alias in node.names if alias.name == "*" or (alias.asname or alias.name) == name]
        return [
            (origin, name if alias.name == "*" else alias.name) for alias in wanted if origin.startswith("torch_npu")
        ]

    def parameters(self, node: ast.AST) -> set[str] | None:
        """The names that a function, or a class when it is made, takes; None where that is not in Python."""
        if isinstance(node, ast.ClassDef):
            made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name in ("__init__", "__new__")]
            return self.parameters(made[0]) if made else None
        if not isinstance(node, ast.FunctionDef):
            return None
        return {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}

    def mentions(self, node: ast.AST, word: str) -> bool:
        """Whether an attribute `word` is defined in a class, or named in a string of it (`__setattr__`)."""
        return any(
            (isinstance(n, ast.FunctionDef) and n.name == word) or (isinstance(n, ast.Constant) and n.value == word)
            for n in ast.walk(node)
        )
