"""CIFAR in its binary layout, with random pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PER_FILE = 4


def records(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8), rng.integers(0, classes, PER_FILE)


def binary_files(folder: Path, names: list[str], dataset: str = "cifar10") -> None:
    """The binary layout with the same pictures for each name (fine labels; coarse ones are 7)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        stem = name.removesuffix(".bin")
        data, labels = records(len(stem) + sum(map(ord, stem)), 10 if dataset == "cifar10" else 100)
        head = labels[:, None].astype(np.uint8)
        if dataset == "cifar100":
            head = np.concatenate([np.full_like(head, 7), head], axis=1)
        (folder / name).write_bytes(np.concatenate([head, data], axis=1).tobytes())
