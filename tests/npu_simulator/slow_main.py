"""Run by test_npu_commands.py under torchrun: a command whose main process is slow to write checkpoints."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from inception_v4.accelerator import prepare_environment

prepare_environment("npu")

from inception_v4.cli.main import main  # noqa: E402
from inception_v4.training import folder  # noqa: E402
from inception_v4.training.checkpoint import save_checkpoint  # noqa: E402


def slowly(*arguments: Any, **options: Any) -> Path:
    time.sleep(float(os.environ["SLOW_SECONDS"]))
    return save_checkpoint(*arguments, **options)


folder.save_checkpoint = slowly  # type: ignore[attr-defined]
main()
