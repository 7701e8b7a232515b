"""PyTorch's own files: state dicts and training checkpoints, never code."""

from __future__ import annotations

import datetime
import pathlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inception_v4.weights.files.plaindata import ALLOWED, Array, Dtype, Named
from inception_v4.weights.record import DAMAGED, Raw, WeightsError

_MODEL_KEYS = ("state_dict", "model", "model_state_dict", "module")
_EMA_KEYS = ("ema", "state_dict_ema", "model_ema", "ema_state_dict")
_MAX_NESTING = 3
_SHOWN = (Array, Dtype, Named, pathlib.PurePath, datetime.date, datetime.time, datetime.timedelta, torch.device)


class _Unusual(ValueError):
    """A tensor that is no plain block of numbers."""


def read_pickled(path: Path) -> Raw:
    """A state dict, alone or wrapped by a training program.

    Raises:
        WeightsError: the pickle holds code or other objects, is damaged, or holds no state dict.
    """
    content = _load(path)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise WeightsError(f"{path} holds a {kind}, not a state dict: save model.state_dict() instead")
    try:
        state = _unwrap(content, _MODEL_KEYS)
        ema = _unwrap({k: v for k, v in content.items() if k in _EMA_KEYS}, _EMA_KEYS)
    except _Unusual as error:
        raise WeightsError(f"{path}: {error}: save the state dict with dense, contiguous tensors") from error
    if state is None and ema is None:
        keys = ", ".join(_word(key) for key in list(content)[:10]) or "nothing"
        raise WeightsError(f"{path} holds no state dict under a known name (it has {keys}): save model.state_dict()")
    taken = [*_MODEL_KEYS, *_EMA_KEYS, "info"]
    if _is_state_dict(content):
        taken += [name for name, value in content.items() if isinstance(value, Tensor)]
    rest = {name: value for name, value in content.items() if name not in set(taken)}
    info = content.get("info")
    return Raw(
        state or {},
        ema=ema,
        info=info if isinstance(info, dict) else None,
        training={name: rest[name] for name in ("optimizer", "step") if name in rest},
        extras={_word(name): _describe(value) for name, value in rest.items()},
    )


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise _damaged(path, error) from error
        raise WeightsError(
            f"{path} is refused: it needs {found[1]}, and unpickling code is not safe; "
            f"save only the tensors (model.state_dict()) where you trust it; for a whole model: import torch; "
            f"model = torch.load({path.name!r}, weights_only=False); "
            f"torch.save(model.state_dict(), {f'{path.stem}-state.pth'!r})"
        ) from error
    except Exception as error:  # the unpickler raises almost anything on damaged bytes
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = (str(error).strip().splitlines() or [""])[0][:120]
    return WeightsError(f"{path} is {DAMAGED} ({type(error).__name__}: {reason})")


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, Tensor) and "." in str(k) for k, v in value.items())


def _unwrap(content: dict[str, Any], keys: tuple[str, ...], depth: int = 0) -> dict[str, Tensor] | None:
    """The state dict in `content` or below one of `keys`."""
    if _is_state_dict(content):
        return {str(k): _plain(str(k), v) for k, v in content.items() if isinstance(v, Tensor)}
    if depth == _MAX_NESTING:
        return None
    for key in keys:
        if isinstance(content.get(key), dict):
            return _unwrap(content[key], (*_MODEL_KEYS, *_EMA_KEYS), depth + 1)
    return None


def _plain(name: str, tensor: Tensor) -> Tensor:
    """Its numbers, where each of them has a place of its own in the file: a few bytes can be repeated to any size."""
    kind = next((word for word in ("is_nested", "is_quantized", "is_meta") if getattr(tensor, word)), "")
    if kind or tensor.layout != torch.strided:
        what = kind.removeprefix("is_") or str(tensor.layout).removeprefix("torch.")
        raise _Unusual(f"{_word(name)} is a {what} tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise _Unusual(f"{_word(name)} shows {tensor.untyped_storage().nbytes()} bytes as {list(tensor.shape)[:8]}")
    return tensor.detach()


def _word(key: object) -> str:
    """A key for a message of one line."""
    return " ".join(str(key).split())[:80]


def _describe(value: Any) -> str:
    if isinstance(value, (int, float, str, bool)):
        return repr(value)[:40]
    if isinstance(value, _SHOWN):
        return str(value).replace("\n", " ")[:80]
    if isinstance(value, (dict, list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
