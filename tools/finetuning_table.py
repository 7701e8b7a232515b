"""What fine-tuning gives, by layers that learn and pictures per class: python tools/finetuning_table.py FOLDER

A network learns 24 kinds of drawn shapes, then fine-tunes to 5 others with 10, 50 and 200 pictures per class, with
the defaults of a folder and one difference at a time. Each figure is top-1 on 500 pictures that no run has seen, by the
weights that the run itself chose on pictures it held out. FOLDER keeps everything: the same command goes on after an
interruption, and takes its data and weights from there. About an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

from inception_v4.console import progress
from inception_v4.data.shapes import KINDS, draw_shape
from inception_v4.files import build_once

LEARNT, OTHERS = KINDS[:24], KINDS[24:29]
PER_CLASS, TEST_PER_CLASS = (10, 50, 200), 100
SOURCE = [
    "-c", "quickstart", "--shapes-classes", len(LEARNT), "--shapes-train", 6000, "--shapes-val", 480, "--epochs", 3,
]  # fmt: skip
WAYS: dict[str, list[object] | None] = {
    "all layers (the default)": [],
    "the classifier alone: `--freeze backbone`": ["--freeze", "backbone"],
    "deeper layers more: `--layer-decay 0.8`": ["--layer-decay", 0.8],
    "from scratch": None,
    "the classifier first, all after 2 epochs: `--freeze backbone --unfreeze-at 2`":
        ["--freeze", "backbone", "--unfreeze-at", 2],
    "all layers, three times the rate: `--lr 0.03`": ["--lr", 0.03],
    "all layers, a third of the rate: `--lr 0.003`": ["--lr", 0.003],
}  # fmt: skip


def inception_v4(*words: object) -> str:
    """What a command of the project prints; its progress goes to standard error."""
    command = [sys.executable, "-m", "inception_v4", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def draw(folder: Path, per_class: int, *, first_seed: int) -> Path:
    """`folder/<kind>/`, with pictures of other seeds than those of any other folder here."""

    def fill(part: Path) -> None:
        with progress(f"drawing {folder.name}", per_class * len(OTHERS)) as count_on:
            for kind in OTHERS:
                (part / kind).mkdir(exist_ok=True)
                for seed in range(first_seed, first_seed + per_class):
                    draw_shape(kind, seed).save(part / kind / f"{seed:06d}.jpg", quality=92)
                    count_on()

    return build_once(folder, fill)


def once(folder: Path, *words: object) -> float:
    """Train into `folder`, unless that is done; seconds of the command."""
    done = folder / "seconds.json"
    if not done.exists():
        began = time.monotonic()
        inception_v4("train", *words, "--output-dir", folder, "--resume", "auto")
        done.write_text(json.dumps(time.monotonic() - began))
    return float(json.loads(done.read_text()))


def top1(run: Path, test: Path) -> float:
    """Of the run's best weights on pictures that it has not seen, in percent."""
    found = inception_v4("validate", "--ckpt-path", run, "--data-dir", test, "--val-split", "val", "--json")
    return float(json.loads(found)["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="pictures, runs and figures")
    parser.add_argument("--seeds", type=int, default=1, help="runs behind each figure; the mean is shown")
    options = parser.parse_args()
    folder = options.folder
    source = folder / "source"
    taken = once(source, *SOURCE)
    last = json.loads(inception_v4("validate", "--ckpt-path", source, "--json"))
    print(f"{len(LEARNT)} kinds: top-1 {last['top1']:.1f} % on {last['samples']} pictures, {taken:.0f} s", flush=True)
    test = folder / "test"
    draw(test / "val", TEST_PER_CLASS, first_seed=1_000_000)
    data = {n: draw(folder / f"pictures-{n}", n, first_seed=10_000 * k) for k, n in enumerate(PER_CLASS)}
    print(f"| what learns | {' | '.join(f'{n} per class' for n in PER_CLASS)} | seconds |")
    print(f"|---|{' --: |' * (len(PER_CLASS) + 1)}")
    for number, (way, flags) in enumerate(WAYS.items()):
        given = [] if flags is None else ["--ckpt-path", source / "best.safetensors", *flags]
        shown, seconds = [], []
        for n in PER_CLASS:
            runs = {seed: folder / f"way{number}-{n}-seed{seed}" for seed in range(options.seeds)}
            for seed, run in runs.items():
                common = ["--data-dir", data[n], "--image-size", 75, "--seed", seed]
                seconds.append(once(run, *common, *given))
            shown.append(f"{fmean(top1(run, test) for run in runs.values()):.1f}")
        print(f"| {way} | {' | '.join(shown)} | {' + '.join(f'{s:.0f}' for s in seconds)} |", flush=True)


if __name__ == "__main__":
    main()
