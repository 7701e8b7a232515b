"""Training state on disk: written atomically, found again, pruned. Not weight formats: see `weights`."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inception_v4.files import atomic_write

if TYPE_CHECKING:
    from inception_v4.distributed import World

CHECKPOINT_VERSION = 3
"""2 counted the steps of an epoch, 3 counts its samples; 1 also had other random numbers for dropout and mixing."""
_READABLE = (1, 2, CHECKPOINT_VERSION)
_NAME = re.compile(r"step-([0-9]+)\.pt")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another kind; one line with the remedy."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write `state` as the checkpoint of `step`, then delete all but this one and the newest others, `keep` in all.

    Raises:
        DiskFull: no room; the checkpoints that were there stay.
    """
    path = folder / f"step-{step:08d}.pt"
    with atomic_write(path, needed=_bytes_in(state)) as temporary:
        torch.save(state | {"version": CHECKPOINT_VERSION}, temporary)
    # A run that went back behind checkpoints that cannot be read writes steps before theirs.
    others = [other for other in list_checkpoints(folder) if other != path]
    for old in others[::-1][keep - 1 :]:
        old.unlink()
    return path


def _bytes_in(state: Any) -> int:
    """Of the tensors in it, which are nearly all of a checkpoint."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(_bytes_in, parts))


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a folder, oldest first. Temporary files never carry such a name."""
    return list(_by_step(folder).values())


def _by_step(folder: Path) -> dict[int, Path]:
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step-*.pt") if path.is_file())
    found = {int(match[1]): path for match, path in named if match}
    return dict(sorted(found.items()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved in `path`, on the host. Nothing in the file is executed (`weights_only`).

    Raises:
        CheckpointError: missing, truncated, altered since it was written, or not written by this project.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: give a step-*.pt file, a run directory or `auto`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Remarks on foreign pickle protocols: the error says what matters.
            _verify(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({reason}): it is damaged; resume from another one"
        ) from error
    if not isinstance(state, dict) or "version" not in state:
        raise CheckpointError(f"{path} is not a training checkpoint: use --ckpt-path to start from weights")
    if state["version"] not in _READABLE:
        raise CheckpointError(
            f"checkpoint {path} has format {state['version']}, this program reads {CHECKPOINT_VERSION}"
        )
    return state


def _verify(path: Path) -> None:
    """Compare every part with the checksum that the file keeps of it, which torch does not look at."""
    with zipfile.ZipFile(path) as archive:
        if altered := archive.testzip():
            raise zipfile.BadZipFile(f"{altered} does not have its checksum")


def find_resume(choice: str, folder: Path, *, world: World, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The state that `--resume choice` means: the same in every process, each of which looks in its own file system.

    `auto` is the newest checkpoint of `folder` that all processes can read, or None when there is none yet. A path
    may be a file, a run directory or its checkpoints folder; then an unreadable checkpoint is an error.

    Raises:
        CheckpointError: in every process, when there is no checkpoint that all of them can read; says what each found.
            Or `folder` has later steps than the chosen checkpoint.
    """
    if choice != "auto":
        state = _load_together(partial(_chosen, Path(choice).expanduser()), world)
        _require_no_later(state["step"], folder, world)
        return state
    found = _by_step(folder)
    steps = world.gather_objects(list(found))
    for step in sorted(set(found).intersection(*steps), reverse=True):
        try:
            state = _load_together(partial(found.__getitem__, step), world)
        except CheckpointError as error:
            warn(str(error))
            continue
        if world.size > 1 and step < max(map(max, steps)):
            warn(f"going on from step {step}, the newest that every process can read")
        return state
    if not any(steps):
        return None
    findings = [f"found {'steps ' + ', '.join(map(str, theirs)) if theirs else 'none'}" for theirs in steps]
    raise CheckpointError(
        f"no checkpoint in {folder} can be read by every process ({_by_process(findings)}): copy a readable one to "
        "each machine, put output_dir on a disk that all of them share, or start anew in another --output-dir"
    )


def _require_no_later(step: int, folder: Path, world: World) -> None:
    """What a run writes from `step` on would be taken for older than what is there already, and pruned."""
    later = {found for theirs in world.gather_objects(list(_by_step(folder))) for found in theirs if found > step}
    if later:
        raise CheckpointError(
            f"{folder} holds steps {', '.join(map(str, sorted(later)))}, later than step {step} of the chosen "
            "checkpoint: give another --output-dir, move those files away, or go on from the newest with --resume auto"
        )


def _chosen(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = list_checkpoints(path) or list_checkpoints(path / "checkpoints")
    if not found:
        raise CheckpointError(f"no step-*.pt checkpoint in {path}: give a run directory that has one")
    return found[-1]


def _load_together(find: Callable[[], Path], world: World) -> dict[str, Any]:
    """The state in every process's own file, which must have the same content everywhere."""
    state = None
    try:
        path = find()
        state = load_checkpoint(path)
        finding = f"step {state['step']}, checksum {_checksum(path):08x}"
    except CheckpointError as error:
        finding = str(error)
    findings = world.gather_objects(finding)
    if state is None or len(set(findings)) > 1:
        raise CheckpointError(_by_process(findings))
    return state


def _checksum(path: Path) -> int:
    """Of the checksums that the file keeps of its parts: nothing else of it is read."""
    with zipfile.ZipFile(path) as archive:
        return zlib.crc32(repr([part.CRC for part in archive.infolist()]).encode())


def _by_process(findings: list[str]) -> str:
    """What each process found, in one line; once where it is the same in all."""
    groups: dict[str, list[str]] = {}
    for rank, finding in enumerate(findings):
        groups.setdefault(finding, []).append(str(rank))
    if len(groups) == 1:
        return findings[0]
    return "; ".join(f"process {', '.join(ranks)}: {finding}" for finding, ranks in groups.items())
