"""What a container lets its processes have: control groups of both versions, which the machine's own counts ignore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_limits(root: Path = _ROOT, own: Path = _OWN) -> list[int]:
    """Bytes that this process's groups may use, one number for each limit that is set."""
    found = [
        _words(folder / name) for folder in _folders(root, own) for name in ("memory.max", "memory.limit_in_bytes")
    ]
    return [int(words[0]) for words in found if words and words[0].isdecimal()]


def cpu_limits(root: Path = _ROOT, own: Path = _OWN) -> list[float]:
    """CPUs' worth of time that this process's groups may use, one number for each limit that is set."""
    limits = []
    for folder in _folders(root, own):
        first = _words(folder / "cpu.cfs_quota_us")[:1] + _words(folder / "cpu.cfs_period_us")[:1]
        for words in (_words(folder / "cpu.max"), first):
            if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
                limits.append(int(words[0]) / int(words[1]))
    return limits


def _folders(root: Path, own: Path) -> Iterator[Path]:
    """Those of this process's groups and of the groups around them, as far as they can be seen."""
    try:
        lines = [line.strip().split(":", 2) for line in own.read_text().splitlines()]
    except OSError:  # another system
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        for place in [root / name for name in controllers.split(",")] if controllers else [root]:
            group = place / path.lstrip("/")
            # In a container the path may be one that only the machine outside has.
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(place))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
