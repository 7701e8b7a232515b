"""How far `predict` with each engine is from PyTorch in float32: python tools/engine_agreement.py WEIGHTS PICTURES

Prints a table: the share of the pictures whose first class is the same, and the largest difference of a probability.
Give trained weights: for random ones every class is as likely as another.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from inception_v4.console import track
from inception_v4.data.named_files import pictures_in
from inception_v4.inference.predict import Predictor

WAYS: dict[str, dict[str, Any]] = {
    "as `predict` chooses": {},
    "PyTorch, bfloat16": {"runtime": "torch", "amp": "bf16"},
    "OpenVINO, float32": {"runtime": "openvino", "amp": "off"},
    "ONNX Runtime, float32": {"runtime": "onnx", "amp": "off"},
}
MANY = 1_000_000
"""Pictures from which on every engine is worth making."""


def answers(weights: str, pictures: list[str], **options: Any) -> tuple[str, Tensor]:
    """What runs the network, and the probabilities [N, K] of the pictures."""
    predictor = Predictor(weights, device="cpu", **options)
    predictor.expect(MANY)
    size = predictor.batch_size
    chunks = [pictures[start : start + size] for start in range(0, len(pictures), size)]
    batches = track(chunks, predictor.engine, len(chunks))
    return predictor.engine, torch.cat([predictor.probabilities(chunk) for chunk in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="WEIGHTS", help="trained weights: a file or a run directory")
    parser.add_argument("pictures", metavar="PICTURES", nargs="+", help="files and folders")
    options = parser.parse_args()
    pictures = pictures_in(options.pictures)
    _, expected = answers(options.weights, pictures, runtime="torch", amp="off")
    top = expected.topk(2).values
    first, second = top.mean(0).tolist()
    print(f"{len(pictures)} pictures; mean probability of the first class {first:.2f}, of the second {second:.2f}\n")
    print("| runs | engine | same first class | largest difference of a probability | mean |")
    print("|---|---|--:|--:|--:|")
    for way, how in WAYS.items():
        engine, found = answers(options.weights, pictures, **how)
        same = (found.argmax(1) == expected.argmax(1)).float().mean()
        gap = (found - expected).abs()
        print(f"| {way} | {engine} | {same:.2%} | {gap.max():.1e} | {gap.mean():.1e} |", flush=True)


if __name__ == "__main__":
    main()
