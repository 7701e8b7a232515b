"""The launch that a run belongs to: what torchrun starts again goes on with its own run, and with no other."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from inception_v4.distributed import World
from inception_v4.files import atomic_write

RECORD = "launch.json"
_UNNAMED = ("", "none")
"""Run ids of launches that were given none."""


@dataclass(frozen=True)
class Launch:
    """One call of torchrun on one or more machines; its restarts belong to it, and machines may come and go.

    Attributes:
        run_id: torchrun's --rdzv-id, which is random with --standalone; empty where nobody gave one.
        agents: host, process number and start of each torchrun. Empty: this is not torchrun's.
    """

    run_id: str = ""
    agents: tuple[str, ...] = ()

    @classmethod
    def current(cls, world: World) -> Launch:
        """This one, the same in all processes."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        run_id = os.environ["TORCHELASTIC_RUN_ID"]
        agents = tuple(sorted(set(world.gather_objects(_agent()))))
        return cls("" if run_id in _UNNAMED else run_id, agents)

    @classmethod
    def of(cls, folder: Path) -> Launch:
        """The one that wrote into a run directory last; without agents where none did."""
        try:
            found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            return cls(str(found["run_id"]), tuple(map(str, found["agents"])))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def began(self, folder: Path) -> bool:
        """Whether the run in `folder` is this launch's: of the same id, or of a torchrun that is still there."""
        earlier = Launch.of(folder)
        same_id = bool(self.run_id) and self.run_id == earlier.run_id
        return same_id or bool(set(self.agents) & set(earlier.agents))

    def find(self, folders: Path) -> Path | None:
        """This launch's run among the directories in `folders`."""
        records = sorted(folders.glob(f"*/{RECORD}"), key=lambda record: record.stat().st_mtime, reverse=True)
        return next((record.parent for record in records if self.began(record.parent)), None)

    def record(self, folder: Path) -> None:
        """Make the run in `folder` this launch's."""
        if self.agents:
            with atomic_write(folder / RECORD) as temporary:
                temporary.write_text(json.dumps({"run_id": self.run_id, "agents": self.agents}), encoding="utf-8")


def _agent() -> str:
    """The torchrun that started this process; a number that is used again has another start."""
    parent = os.getppid()
    try:
        # The 22nd field of proc(5)'s stat; the second may have spaces and ends with the last bracket.
        start = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        start = "?"  # no Linux
    return f"{socket.gethostname()}:{parent}:{start}"
