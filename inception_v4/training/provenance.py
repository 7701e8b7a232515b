"""What a run was made with and what came out: versions, devices, commit, seeds, and the checksums of its weights."""

from __future__ import annotations

import json
import platform
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from inception_v4.accelerator import Accelerator, package_commit, package_versions
from inception_v4.distributed import World
from inception_v4.files import atomic_write, sha256_of

PROVENANCE = "provenance.json"
_WEIGHTS = ("best.safetensors", "last.safetensors")


def describe_start(
    accelerator: Accelerator, world: World, *, seed: int, step: int, deterministic: bool
) -> dict[str, Any]:
    """What this start of a run runs on; the same in every process, which all have to call it."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "seed": seed,
        "deterministic": deterministic,
        "versions": package_versions(),
        "commit": package_commit(),
        "system": platform.platform(),
        "devices": world.gather_objects(f"{socket.gethostname()}: {accelerator.describe()}"),
    }


def record_start(folder: Path, start: dict[str, Any]) -> None:
    """Add a start to those of the run directory: a run that goes on may do so on other machines."""
    _write(folder, {**_read(folder), "starts": [*_read(folder).get("starts", []), start]})


def record_weights(folder: Path) -> None:
    """Add the SHA-256 of the weights files of a run that is over."""
    sums = {name: sha256_of(folder / name) for name in _WEIGHTS if (folder / name).is_file()}
    _write(folder, {**_read(folder), "sha256": sums})


def _read(folder: Path) -> dict[str, Any]:
    path = folder / PROVENANCE
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        return {}  # of another program: it is replaced
    return found if isinstance(found, dict) else {}


def _write(folder: Path, record: dict[str, Any]) -> None:
    with atomic_write(folder / PROVENANCE) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
