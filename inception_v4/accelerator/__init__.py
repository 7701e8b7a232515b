"""Every difference between cpu, cuda, npu (Ascend), mps and xpu. Nothing outside this package knows a device by name.

One class per kind of device (`base`, `devices`, `npu`), in one table here; `select` picks the row. Asking for what
is not there is a `DeviceError` that says why and what to do: there is no silent fallback. torch is imported inside
functions only, because `prepare_environment` has to run before its first import.

Knows devices, number types and the environment. Must never know the network, a picture or a setting's name.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from inception_v4.accelerator import report
from inception_v4.accelerator.base import AMP_TYPES, Accelerator, CopyStream, DeviceError
from inception_v4.accelerator.devices import Cuda, Mps, Xpu
from inception_v4.accelerator.npu import Npu, prepare_npu
from inception_v4.accelerator.report import package_commit, package_versions

__all__ = [
    "AMP_TYPES",
    "Accelerator",
    "CopyStream",
    "DeviceError",
    "environment_report",
    "onnx_providers",
    "package_commit",
    "package_versions",
    "prepare_environment",
    "select",
]

ROWS: dict[str, type[Accelerator]] = {row.type: row for row in (Npu, Cuda, Xpu, Mps, Accelerator)}
"""The kinds of device, in the order in which `auto` tries them."""


def prepare_environment(device: str = "auto") -> None:
    """Set the environment variables that count only before torch's first import. Values that are set already win."""
    kind = device.strip().lower().partition(":")[0]
    prepare_npu(wanted=kind == "npu" or (kind == "auto" and Npu.expected()))
    if kind == "mps":
        # The rare operation without a Metal kernel runs on the CPU, and torch says so.
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    # Else torch's profiler writes its stages, and which GPUs it misses, on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def select(device: str = "auto", *, local_rank: int | None = None) -> Accelerator:
    """The device of this process.

    Args:
        device: `auto` (npu, cuda, xpu, mps, cpu: the first that can be used), a type, or `type:index`.
        local_rank: number of this process on its machine, and of its device; default torchrun's LOCAL_RANK.

    Raises:
        DeviceError: the device is not there; with the reason and the remedy.
    """
    kind, index = _parse(device)
    row = ROWS[_best() if kind == "auto" else kind]
    reason = row.absence()
    if reason:
        raise DeviceError(f"device {device!r} cannot be used: {reason}")
    if not row.has_index:
        return row()
    if local_rank is None and "LOCAL_RANK" in os.environ:
        local_rank = int(os.environ["LOCAL_RANK"])
    return row(_checked_index(row, device, index=index, local_rank=local_rank))


def onnx_providers(device: str = "auto") -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's execution providers for a device, best first, and the options that choose one of several devices.

    Args:
        device: as for `select`. Without an index it is this process's number on its machine.

    Raises:
        DeviceError: no such kind of device, or ONNX Runtime has no provider for it.
    """
    kind, index = _parse(device)
    rows = [row for row in ROWS.values() if row.has_index or row is Accelerator] if kind == "auto" else [ROWS[kind]]
    number = int(os.environ.get("LOCAL_RANK", "0")) if index is None else index
    found = [
        (row.onnx_provider, {"device_id": str(number)} if row.has_index else {}) for row in rows if row.onnx_provider
    ]
    if not found:
        raise DeviceError(f"ONNX Runtime has no execution provider for {device}: use --device cpu")
    return found


def environment_report() -> dict[str, Any]:
    """What `inception-v4 env` prints: versions, devices or why they are absent, and what works, by trying it."""
    return report.collect(ROWS) | {"auto": _best()}


def _parse(device: str) -> tuple[str, int | None]:
    kind, colon, number = device.strip().lower().partition(":")
    if kind not in ("auto", *ROWS) or (colon and (kind == "auto" or not number.isdigit())):
        raise DeviceError(f"device {device!r} is none of auto, {', '.join(sorted(ROWS))} (with :i for one of several)")
    return kind, int(number) if colon else None


def _best() -> str:
    for kind, row in ROWS.items():
        expected = row.expected()
        if not (expected or row.probing_is_free):
            continue
        reason = row.absence()
        if reason is None:
            return kind
        if expected:
            logging.getLogger(__name__).warning("this machine's %s cannot be used: %s", row.label, reason)
    raise AssertionError("the CPU is always there")


def _checked_index(row: type[Accelerator], device: str, *, index: int | None, local_rank: int | None) -> int:
    if index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise DeviceError(f"device {device!r} is one device for several processes: use {row.type!r} with torchrun")
    number = index if index is not None else (local_rank or 0)
    count = row.count()
    if number < count:
        return number
    names = f"{row.type}:0" if count == 1 else f"{row.type}:0 to {row.type}:{count - 1}"
    if index is None:
        raise DeviceError(
            f"process {number} of this machine has no {row.label} of its own: there are {count} ({names}); start "
            f"torchrun with --nproc-per-node={count}"
        )
    raise DeviceError(f"device {device!r} does not exist: there are {count} ({names})")
