"""Run under torchrun with CHOICE FOLDER pairs: what `find_resume` gives in each process, whose files lie in node<r>.

Writes node<r>/outcomes.json: for each pair the step or null, or the error; and the warnings.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from inception_v4.accelerator import select
from inception_v4.distributed import World, session
from inception_v4.training.checkpoint import CheckpointError, find_resume


def outcome(choice: str, folder: str, world: World) -> dict[str, object]:
    warnings: list[str] = []
    try:
        state = find_resume(choice, Path(folder), world=world, warn=warnings.append)
    except CheckpointError as error:
        return {"error": str(error)}
    return {"step": state and state["step"], "warnings": warnings}


if __name__ == "__main__":
    os.chdir(f"node{os.environ['RANK']}")
    with session(select("cpu")) as world:
        pairs = zip(sys.argv[1::2], sys.argv[2::2], strict=True)
        Path("outcomes.json").write_text(json.dumps([outcome(*pair, world) for pair in pairs]), encoding="utf-8")
