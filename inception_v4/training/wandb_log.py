"""A run's figures in Weights & Biases (`--logger wandb`). Its variables hold: WANDB_MODE, WANDB_PROJECT, WANDB_DIR."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from inception_v4.files import atomic_write
from inception_v4.training.trackers import FINISHED, TrackerMissing

_IDENTITY = "wandb-run-id.txt"
"""In the run directory: the same run goes on there when this one is resumed."""


def require_login() -> None:
    """Ask for the key before the run begins, as `wandb login` does; on no terminal it must be there.

    Raises:
        TrackerMissing: there is none.
    """
    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared", "run"):
        return
    import wandb

    try:
        found = wandb.login()
    except Exception as error:  # wandb has errors of its own for each way to have no key
        raise TrackerMissing(f"wandb: {error}: run `wandb login`, or set WANDB_MODE=offline") from error
    if not found:
        raise TrackerMissing("wandb has no key: run `wandb login`, or set WANDB_MODE=offline")


class WandbTracker:
    """One run of Weights & Biases: offline ones lie in the run directory, for `wandb sync`."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        quiet = {
            "console": "off", "silent": True, "disable_git": True, "save_code": False,
            # The command line and the machine's paths are nobody's business.
            "x_disable_meta": True, "x_save_requirements": False,
        }  # fmt: skip
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "inception-v4"),
            id=os.environ.get("WANDB_RUN_ID") or _identity(folder),
            name=os.environ.get("WANDB_NAME", folder.resolve().name),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            config=settings,
            resume="allow",
            settings=wandb.Settings(**quiet),
        )

    def log(self, step: int, figures: dict[str, float]) -> None:
        # Steps that a resumed run does again are there already, and wandb passes over them.
        self._run.log(figures, step=step)

    def close(self, outcome: str) -> None:
        self._run.finish(exit_code=0 if outcome == FINISHED else 1)


def _identity(folder: Path) -> str:
    path = folder / _IDENTITY
    if not path.is_file():
        with atomic_write(path) as temporary:
            temporary.write_text(secrets.token_hex(4) + "\n", encoding="ascii")
    return path.read_text(encoding="ascii").strip()
