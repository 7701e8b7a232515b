"""The structure of a package, read with `ast`: its files, what imports what, and what rooms may not."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Graph = dict[str, set[str]]
"""Which files a file imports, both as dotted names without the package's own."""


def files_of(package: Path) -> dict[str, Path]:
    """Files by dotted name; a folder's `__init__` has the folder's name, the package's own "__init__"."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
        found[".".join(parts)] = path
    return found


def imports(package: Path) -> Graph:
    """Every import of the package's own files, at the top or inside a function, absolute or relative."""
    files = files_of(package)
    return {
        name: {target for node in ast.walk(ast.parse(path.read_text())) for target in _targets(node, name, path, files)}
        for name, path in files.items()
    }


def _targets(node: ast.AST, name: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    package = _package_of(files)
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.startswith(f"{package}."):
                yield alias.name.removeprefix(f"{package}.")
    if not isinstance(node, ast.ImportFrom):
        return
    base = node.module or ""
    if node.level:
        folder = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        above = folder[: len(folder) - node.level + 1]
        base = ".".join([package, *above, *filter(None, [node.module])])
    if base != package and not base.startswith(f"{package}."):
        return
    inner = base.removeprefix(package).removeprefix(".")
    for alias in node.names:
        # `from package.room import file` names a file, `from package.room.file import name` something in it.
        whole = f"{inner}.{alias.name}" if inner else alias.name
        if whole in files:
            yield whole
        elif inner:
            yield inner


def _package_of(files: Mapping[str, Path]) -> str:
    return files["__init__"].parent.name


def room_of(name: str) -> str:
    """The room of a file: its folder, or itself where it lies at the top."""
    return name.split(".")[0]


def upward(graph: Graph, rooms: Sequence[str]) -> list[str]:
    """Imports of a room that does not stand further down in `rooms`."""
    floor = {room: number for number, room in enumerate(rooms)}
    return sorted(
        f"{name} imports {target}"
        for name, targets in graph.items()
        for target in targets
        if room_of(target) != room_of(name) and floor[room_of(target)] <= floor[room_of(name)]
    )


def cycles(graph: Graph) -> list[list[str]]:
    """Groups of files that import each other in a circle (strongly connected, by Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in graph.get(name, ()):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in graph.get(name, ()):
                found.append(sorted(group))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def shared_names(package: Path) -> dict[str, list[str]]:
    """Public names that several files define at their top, and which."""
    homes: dict[str, list[str]] = defaultdict(list)
    for name, path in files_of(package).items():
        for defined in sorted(set(_defined(ast.parse(path.read_text())))):
            homes[defined].append(name)
    return {defined: sorted(files) for defined, files in homes.items() if len(files) > 1}


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if not node.name.startswith("_"):
                yield node.name
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                yield target.id
