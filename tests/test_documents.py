"""README*.md, CONTRIBUTING.md and docs/: their commands are parsed by the real command line, their paths exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from inception_v4.cli.main import cli
from inception_v4.settings.recipes import find_recipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

PROGRAM = re.compile(r"(?:^|\s)(?:\S*inception-v4|\S*python3? (?:-m inception_v4|tools/(\w+)\.py)|torchrun .*? "
                     r"(?:-m inception_v4|tools/(\w+)\.py))(?:\s+(.*))?$")  # fmt: skip
"""A call of this project's command line; its groups are the scripts that stand for subcommands, and the words."""

CHOICES = re.compile(r"\[(.*?)\]|(\w[\w-]*)(?:\|[\w-]+)+")
"""In an outline of a command: what may be left out, and one of several words."""


def blocks(text: str) -> Iterator[str]:
    """The code blocks of a Markdown text, fenced or indented, without their indentation."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    yield from (match[2] for match in fence.finditer(text) if match[1] in ("", "bash", "sh", "console"))
    for match in re.finditer(r"(?:^|\n\n)((?:    .*\n)(?:(?:    .*)?\n)*)", fence.sub("", text) + "\n"):
        yield re.sub(r"^    ", "", match[1], flags=re.M)


def commands(text: str) -> Iterator[list[str]]:
    """Words of every call of this project's command line in the code blocks of a text, the subcommand first."""
    for block in blocks(text):
        # A line goes on after a backslash, and an outline where the next one starts with spaces.
        for line in re.sub(r"\s*\\\n\s*|\n {8,}", " ", block).splitlines():
            for part in re.split(r"&&|\||;|(?<!\S)>|(?<!\S)&$", _plain(line)):
                match = PROGRAM.search(part.strip())
                if match:
                    script, words = match[1] or match[2], shlex.split(match[3] or "")
                    yield [script, *words] if script else words


def _plain(line: str) -> str:
    """Without the comment; of an outline everything that may be given, and the first of several words."""
    line = re.sub(r"(?:^|\s)#.*", "", line)
    while CHOICES.search(line):
        line = CHOICES.sub(lambda match: match[1] if match[1] is not None else match[2], line)
    # `--ema|--no-ema`, and `...`: what the reader knows to put there.
    return re.sub(r"\|--\S+|(?<!\S)\.\.\.(?!\S)|\.\.\.$", "", line)


CALLS = [
    pytest.param(words, id=f"{path.name}: {' '.join(words)}")
    for path in DOCUMENTS
    for words in commands(path.read_text())
]


def parse(words: list[str]) -> None:
    """Raises `click.ClickException` or `ValueError` for a command, a flag or a recipe that does not exist."""
    with cli.make_context("inception-v4", list(words)) as context:
        command = cli.get_command(context, words[0])
        if command is None:
            raise click.UsageError(f"no command {words[0]}")
        with command.make_context(words[0], list(words[1:]), parent=context) as inner:
            if inner.params.get("config_file"):
                find_recipe(inner.params["config_file"])


@pytest.mark.parametrize("words", CALLS)
def test_commands_in_documents_exist(words: list[str]) -> None:
    parse(words)


def test_commands_are_found_in_all_forms() -> None:
    text = """# Title

    inception-v4 convert SRC DST [--to LAYOUT] [--classes drop-background|keep] [--ema|--no-ema]
                                 [--verify [PICTURE...]]

```bash
pip install . && inception-v4 train  # a first run
torchrun --nnodes $N --master-addr ${HOSTS%%,*} \\
    -m inception_v4 train ...
python tools/export.py x -o y.onnx
.venv/bin/inception-v4 predict a.jpg --csv > names.csv
```

Prose: `inception-v4 frobnicate`.

```python
inception-v4 is not python
```
"""
    assert sorted(commands(text)) == sorted([
        ["convert", "SRC", "DST", "--to", "LAYOUT", "--classes", "drop-background", "--ema", "--verify", "PICTURE"],
        ["train"], ["train"], ["export", "x", "-o", "y.onnx"], ["predict", "a.jpg", "--csv"],
    ])  # fmt: skip
    per_document = {path.name: sum(1 for _ in commands(path.read_text())) for path in DOCUMENTS}
    assert all(per_document[name] >= least for name, least in
               {"README.md": 17, "README_zh.md": 17, "ascend.md": 8, "ascend_zh.md": 8, "conversion.md": 6,
                "export.md": 6}.items()), per_document  # fmt: skip


@pytest.mark.parametrize(
    "line", ["trian", "train --no-such-flag", "train -c no_such_recipe", "export x --format tflite", "convert a.pth"]
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises((click.ClickException, ValueError, FileNotFoundError)):
        parse(line.split())


def code_paths(text: str) -> list[str]:
    """What stands in backquotes and names a file or a folder."""
    spans = re.findall(r"`([\w.-]+(?:/[\w.-]*)*)`", text)
    return [span for span in spans if "/" in span or Path(span).suffix in (".py", ".md", ".cfg", ".toml")]


def missing(text: str, *folders: Path) -> list[str]:
    return [path for path in code_paths(text) if not any((folder / path).exists() for folder in folders)]


def test_the_usual_changes_name_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("## The usual changes") :].partition("\n## ")[0]
    assert len(code_paths(table)) > 15 and missing(table, ROOT) == []
    assert missing(text, ROOT, ROOT / "inception_v4") == []


def test_the_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "inception_v4"
    assert len(code_paths(text)) > 15
    # A row of the table may name what is in its room.
    for line in text.splitlines():
        room = re.match(r"\| `(\w+)` \|", line)
        assert missing(line, ROOT, package, *([package / room[1]] if room else [])) == []
    rooms = re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `")))
    present = {path.stem for path in package.iterdir() if not path.name.startswith("__") and path.suffix in ("", ".py")}
    assert set(rooms) <= present and present - set(rooms) <= {"timm_plugin"}


def test_every_path_into_the_project_exists() -> None:
    """In any document: paths below the project's own folders, and modules to import."""
    for path in DOCUMENTS:
        text = path.read_text()
        named = re.findall(r"(?<![\w./-])((?:inception_v4|tests|tools|docs|\.ci)/[\w./-]*\w)", text)
        assert [name for name in named if not (ROOT / name).exists()] == [], path.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_point_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), f"{path.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
            assert heading in anchors, f"{path.name} links to {target}"
