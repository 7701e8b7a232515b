"""A run directory made by hand: real weights, pictures, settings, curves and answers, without the training."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from finding import CORNERS, NAMES, finder, scene

from inception_v4.settings.recipes import build_config, to_yaml


def make_pictures(root: Path, *, per_class: int = 6) -> Path:
    """`root/{train,val}/<class>`: one picture of val is also one of train, one is there twice, one is broken."""
    for split, offset in (("train", 0), ("val", 1000)):
        for k, name in enumerate(list(NAMES)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                place = list(CORNERS.values())[i % 4]
                scene(name, *place, seed=offset + 100 * k + i).save(folder / f"{i:03d}.png")
    shutil.copy(root / "train" / "disc" / "000.png", root / "val" / "disc" / "leaked.png")
    shutil.copy(root / "train" / "bars" / "001.png", root / "train" / "nothing" / "again.png")
    whole = (root / "train" / "bars" / "002.png").read_bytes()
    (root / "train" / "bars" / "002.png").write_bytes(whole[: len(whole) // 2])
    return root


def make_run(folder: Path, data: Path, weights: Path | None, *, answers: bool = True, **changes: object) -> Path:
    """A finished run of ten epochs on `data`; every third answer about a validation picture is wrong."""
    folder.mkdir(parents=True)
    settings = {"data_dir": str(data), "dataset": "folder", "epochs": 10, "lr": 0.02, "batch_size": 4, **changes}
    (folder / "config.yaml").write_text(to_yaml(build_config(settings)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve(float(str(settings["lr"])))))
    if weights is not None:
        (folder / "best.safetensors").hardlink_to(weights)
    if answers:
        digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None
        write_answers(folder / "predictions.jsonl", sorted((data / "val").rglob("*.png")), digest)
    return folder


def curve(lr: float) -> list[dict[str, object]]:
    """Records as a run writes them; one loss is null, and the last line of the file may be cut."""
    rows: list[dict[str, object]] = []
    for step in range(1, 101):
        loss = None if step == 7 else 2 * np.exp(-step * lr) + 0.1 * np.sin(step)
        rows.append({"kind": "train", "epoch": (step - 1) // 10, "step": step, "progress": step / 10, "loss": loss,
                     "lr": lr * (1 - step / 100), "images_per_second": 12.5, "skipped_steps": 0})  # fmt: skip
        if step % 10 == 0:
            top1 = 95 * (1 - np.exp(-step * lr))
            rows.append({"kind": "val", "epoch": step // 10 - 1, "step": step, "progress": step / 10,
                         "loss": 1.5 / step, "top1": top1, "top5": 100.0, "samples": 19,
                         "ema_loss": 2.0, "ema_top1": top1 - 20, "ema_top5": 90.0})  # fmt: skip
    return rows


def write_answers(path: Path, pictures: list[Path], digest: str | None) -> None:
    classes = list(NAMES)
    rows = []
    for i, picture in enumerate(pictures):
        label = classes.index(picture.parent.name)
        answer = (label + 1) % 3 if i % 3 == 0 else label
        share = 0.5 + 0.49 * (i + 1) / len(pictures)
        others = [k for k in range(3) if k != answer]
        top = [[answer, share], [others[0], 0.7 * (1 - share)], [others[1], 0.3 * (1 - share)]]
        rows.append({"path": str(picture), "label": label, "top": top, "prob_label": dict(top)[label]})  # type: ignore
    right = sum(row["label"] == row["top"][0][0] for row in rows)  # type: ignore[index]
    head = {"classes": classes, "weights_sha256": digest, "top1": 100 * right / len(rows), "samples": len(rows)}
    path.write_text("".join(json.dumps(row) + "\n" for row in [head, *rows]))


def made(folder: Path, *, per_class: int = 6) -> Path:
    """A run with everything."""
    return make_run(folder / "runs" / "shapes", make_pictures(folder / "pictures", per_class=per_class), finder(folder))


def several_classes(run: Path) -> Path:
    """`run` as if pictures had several classes each: mAP is highest in its fifth epoch, 90 %, top-1 in its last."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "val":
            row |= {"map": 90 - abs(row["epoch"] - 4), "macro_f1": 50.0, "micro_f1": 60.0}
            row |= {"ema_map": 10.0, "ema_macro_f1": 5.0, "ema_micro_f1": 6.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head, *answers = map(json.loads, (run / "predictions.jsonl").read_text().splitlines())
    answers = [row | {"labels": sorted({row["label"], (row["label"] + 2) % 3})} for row in answers]
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [head, *answers]))
    return run
