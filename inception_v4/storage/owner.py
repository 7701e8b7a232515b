"""A lock's owner: the process as a lock names it, and whether it still lives where that can be seen."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOCK_NAME = "run.lock"
"""The lock's name in the folder or address that it locks."""


class FolderInUse(ValueError):
    """Another process writes there; one line that names its host and pid."""


@dataclass(frozen=True)
class Owner:
    """A lock's owner, and what is told people about it.

    Attributes:
        says: what the lock says; empty where it is no lock's text.
    """

    says: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def this(cls) -> Owner:
        """This process, with a token that no other lock has, and what tells its machine and its numbering of processes
        (a container's) from others."""
        pid = os.getpid()
        return cls({
            "host": socket.gethostname(), "pid": pid, "started": _process_started(pid), **_machine(),
            "token": uuid.uuid4().hex, "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        })  # fmt: skip

    @classmethod
    def read(cls, content: bytes) -> Owner:
        try:
            owner = json.loads(content)
        except ValueError:
            owner = {}
        return cls(owner if isinstance(owner, dict) else {})

    def text(self, **more: Any) -> str:
        """What a lock of this owner says."""
        return json.dumps({**self.says, **more})

    def holds_with(self, other: Owner) -> bool:
        """Whether both are one holding of one lock."""
        return "token" in self.says and self.says["token"] == other.says.get("token")

    @property
    def who(self) -> str:
        """For people."""
        says = self.says
        if "host" not in says:
            return "an owner that its lock does not name"
        return f"process {says.get('pid')} on {says['host']}, since {says.get('since', 'an unknown time')}"

    @property
    def is_here(self) -> bool:
        """Whether the owner's pid is one that this process can look up."""
        mine = _machine()
        return bool(mine["boot"]) and all(self.says.get(name) == value for name, value in mine.items())

    @property
    def runs_here(self) -> bool:
        """Whether an owner whose pid can be looked up still lives."""
        started = _process_started(self.says.get("pid"))
        return started is not None and started == self.says.get("started")

    def in_use(self, place: object, *, setting: str) -> FolderInUse:
        """The refusal of a run whose place this one writes to; `setting` gives it another place."""
        return FolderInUse(f"{place} is written to by {self.who}: wait for it or stop it, or give another {setting}")

    def watched(self, place: object, seconds: float) -> str:
        """What is said where only time can tell whether an owner lives."""
        return f"{place} is locked by {self.who}: watching for a sign of life for {seconds:g} s"

    def gone(self, place: object) -> str:
        """What is said where its lock is taken over."""
        return f"{place} was locked by {self.who}, which is gone: the lock is taken over"


def _machine() -> dict[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    return {
        "boot": boot.read_text(encoding="ascii").strip() if boot.exists() else "",
        "processes": os.readlink(namespace) if namespace.is_symlink() else "",
    }


def _process_started(pid: Any) -> str | None:
    """Clock ticks from the machine's start to the process's, which tell it from a later one of the same pid."""
    try:
        stat = Path(f"/proc/{int(pid)}/stat").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError, TypeError):
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]  # a zombie writes nothing
