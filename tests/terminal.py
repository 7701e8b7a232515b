"""Running the real commands on a terminal, as a person sees them."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from running import command, environment


def run_on_terminal(
    *words: str, cwd: Path, until: Callable[[str], bool] | None = None, limit: float = 200
) -> tuple[int, str]:
    """Exit code of `inception-v4 words`, and what a terminal got from it, without its colours.

    Args:
        until: of the text so far; the command gets Ctrl-C when it is first true.
        limit: seconds until it is killed.
    """
    ours, theirs = pty.openpty()
    variables = {name: value for name, value in environment().items() if name not in ("CI", "NO_COLOR")}
    process = subprocess.Popen(
        command(*words), stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=variables | {"TERM": "xterm"}
    )
    os.close(theirs)
    watchdog = threading.Timer(limit, process.kill)
    watchdog.start()
    text = ""
    try:
        while part := _read(ours):
            text += part
            if until and until(text):
                until = None
                process.send_signal(signal.SIGINT)
        return process.wait(), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        os.close(ours)


def _read(descriptor: int) -> str:
    """Empty at the end, which Linux reports as an error."""
    try:
        return os.read(descriptor, 65536).decode(errors="replace")
    except OSError:
        return ""


def shows_estimate(text: str, description: str) -> bool:
    """A bar of that name has been drawn with its count, the time spent and the time to come."""
    return bool(re.search(rf"{re.escape(description)} \S* *\d+/\d+ \d+:\d\d:\d\d [-\d]+:[-\d]+:[-\d]+", text))
