"""Writes the small files of `fixtures/` with the real MindSpore; run it with MindSpore's Python to renew them."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"

import mindspore as ms
import numpy as np
from mindcv.models import create_model

HERE = Path(__file__).parent / "fixtures"
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
TYPES = ["bool_", *INTEGERS, "float16", "float32", "float64"]


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The same numbers as `test_weights_msckpt.py` expects."""
    count = int(np.prod(shape))
    numbers = (np.arange(count) * 37 % 101 - 20) % 100
    return numbers.astype(getattr(np, dtype)).reshape(shape)


def all_types() -> dict[str, ms.Tensor | str | int | float]:
    """Every type and rank, special values, and what `append_dict` makes of Python's values."""
    shapes = {"scalar": (), "vector": (5,), "matrix": (2, 3), "kernel": (2, 1, 3, 2)}
    tensors = {f"{t}.{name}": ms.Tensor(values(t, shape)) for t in TYPES for name, shape in shapes.items()}
    tensors["special"] = ms.Tensor(np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32))
    tensors["bfloat16.vector"] = ms.Tensor(values("float32", (5,)), ms.bfloat16)
    return tensors


def save(name: str, **options: object) -> None:
    target = HERE / name
    if target.exists():
        target.chmod(0o600)
    data = [{"name": key, "data": value} for key, value in all_types().items()]
    append = {"epoch_num": 3, "rate": 0.25, "flag": True, "note": "Grüße, 你好"}
    ms.save_checkpoint(data, str(target), append_dict=append, **options)
    target.chmod(0o644)


def main() -> None:
    HERE.mkdir(exist_ok=True)
    save("all_types.ckpt")
    save("all_types_crc.ckpt", crc_check=True)
    network = create_model("inception_v4")
    names = {parameter.name: list(parameter.shape) for parameter in network.get_parameters()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in names.items())
    (HERE / "mindcv_parameters.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
    os._exit(0)  # MindSpore's own shutdown may hang
