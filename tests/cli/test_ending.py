"""The end of a command: at once, and with all that other programs and people wait for."""

from __future__ import annotations

import os
import pstats
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, environment

LATE = "print('in a buffer until the end')"


def ended(words: tuple[str, ...], *, before: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """A command in a process that has done `before`."""
    code = f"import atexit, sys, threading, time\n{before}\nfrom inception_v4.cli.main import program\nprogram()"
    settings: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        text=True,
        env=environment() | {"PYTHONUNBUFFERED": ""},
        check=False,
        **settings,
    )  # type: ignore[call-overload, no-any-return]


SAID = """
import os
leave = os._exit
os._exit = lambda code: (os.write(2, b"at once"), leave(code))
"""


@pytest.mark.parametrize(("words", "code"), [(("--version",), 0), (("draw", "no.suffix"), 1), (("env", "--no"), 2)])
def test_a_command_ends_at_once_with_its_code_and_words(words: tuple[str, ...], code: int) -> None:
    done = ended(words, before=SAID + 'atexit.register(print, "registered")')
    assert done.returncode == code and done.stderr.endswith("at once")
    assert done.stdout.endswith("registered\n"), "what waits for the end is done"
    assert ("error: " in done.stderr or "Usage" in done.stderr) == bool(code)


@pytest.mark.parametrize(
    ("words", "before"),
    [
        (("--version",), "sys.setprofile(lambda *_: None)"),
        (("--version",), "threading.Thread(target=lambda: (time.sleep(1), print('thread'))).start()"),
        (("--version",), "os.environ['RANK'] = '0'"),
        (("train", "--help"), ""),
    ],
)
def test_whoever_waits_for_pythons_own_end_gets_it(words: tuple[str, ...], before: str) -> None:
    done = ended(words, before=SAID + before)
    assert done.returncode == 0 and done.stdout and "at once" not in done.stderr
    assert "thread" not in before or done.stdout.endswith("thread\n")


def test_a_profile_of_a_command_is_written(tmp_path: Path) -> None:
    words = ["-m", "cProfile", "-o", str(tmp_path / "profile"), "-m", "inception_v4", "--version"]
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment(), check=True, capture_output=True)
    assert pstats.Stats(str(tmp_path / "profile")).total_calls > 1000  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", [("env", "--help"), ("validate",)])
def test_output_that_cannot_be_written_is_said(words: tuple[str, ...]) -> None:
    """By the command itself, or at the end."""
    with open("/dev/full", "w") as full:
        done = ended(words, before=LATE, stdout=full)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")
    assert done.stderr.endswith("No space left on device\n")


@pytest.mark.parametrize(("words", "code"), [(("env", "--help"), 0), (("validate",), 1)])
def test_a_reader_that_has_gone_changes_no_code(words: tuple[str, ...], code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        done = ended(words, before=LATE, stdout=nobody)
    assert done.returncode == code and "roken pipe" not in done.stderr
