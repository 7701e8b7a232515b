"""Run by test_npu_commands.py: command lines one after the other in one process, so that torch is imported once.

Reads a JSON object {name: words} from stdin, and prints one {name: {code, out, err, modes}}: the exit code, what the
command wrote, and the modes that the device was left in. The first command has to be one for the NPU.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any

from inception_v4.cli.main import run


def outcome(words: list[str]) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    modes = sys.modules["torch_npu"].npu.modes
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "modes": dict(modes)}


print(json.dumps({name: outcome(words) for name, words in json.load(sys.stdin).items()}))
