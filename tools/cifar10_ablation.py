"""What each part of `cifar10_small` gives: python tools/cifar10_ablation.py DATA FOLDER

One epoch at 32 px of the recipe, and of the recipe with one difference at a time: pictures per second of training, and
top-1 on the 10,000 test pictures. FOLDER keeps everything: the same command goes on after an interruption.
Forty minutes on two CPU cores with bfloat16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finetuning_table import once

from inception_v4.training.runlog import METRICS, read_records

RECIPE = ["-c", "cifar10_small", "--amp", "bf16", "--epochs", 1, "--warmup-epochs", 0.1, "--image-size", 32]
ADAMW = ["--opt", "adamw", "--lr", 0.0015, "--opt-beta2", 0.98, "--weight-decay", 0.05]
WAYS: dict[str, list[object]] = {
    "the recipe": [],
    "AdamW: `--opt adamw --lr 0.0015 --opt-beta2 0.98 --weight-decay 0.05`": ADAMW,
    "the same with `--batch-size 256`": [*ADAMW, "--batch-size", 256],
    "Nesterov's momentum: `--opt nesterov --lr 0.05 --momentum 0.9`":
        ["--opt", "nesterov", "--lr", 0.05, "--momentum", 0.9],
    "one rate for all: `--opt-kwargs ns_steps=3`": ["--opt-kwargs", "ns_steps=3"],
    "`--batch-size 256`": ["--batch-size", 256],
    "`--init tf`, the default": ["--init", "tf"],
    "`--label-smoothing 0.1`": ["--label-smoothing", 0.1],
    "no random crop: `--train-crop centre`": ["--train-crop", "centre"],
    "`--scheduler warmup_cosine_decay`": ["--scheduler", "warmup_cosine_decay"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="where CIFAR-10 is")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="runs and figures")
    options = parser.parse_args()
    print("| difference | images/s | top-1 after an epoch |\n|---|--:|--:|")
    for number, (way, words) in enumerate(WAYS.items()):
        run = options.folder / f"{number}"
        once(run, *RECIPE, "--data-dir", options.data, *words)
        records = read_records(run / METRICS)
        rate = [r["images_per_second"] for r in records if r["kind"] == "train"][-1]
        top1 = [r["top1"] for r in records if r["kind"] == "val"][-1]
        print(f"| {way} | {rate:.0f} | {top1:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
