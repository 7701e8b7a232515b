"""Scores of outputs that a network left in files on another machine, such as one with an Ascend 310."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from inception_v4.accelerator import select
from inception_v4.accelerator.precision import Precision
from inception_v4.console import track
from inception_v4.data.loader import Batch
from inception_v4.distributed import World
from inception_v4.files import parse_json
from inception_v4.inference.evaluate import evaluate
from inception_v4.inference.results import PLAIN, ResultOptions
from inception_v4.inference.validate import suspicions
from inception_v4.storage.fetch import local_copy
from inception_v4.weights import WeightsInfo
from inception_v4.weights.class_names import class_names_of

READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".bin": lambda path: np.frombuffer(path.read_bytes(), "<f4"),
    ".npy": np.load,
    ".txt": np.loadtxt,
}
"""Of one picture's outputs: raw float32, numpy's own format, or numbers in text."""

_BATCH = 256
_SUMS_TO_ONE = 1e-2
"""Probabilities in float16 add up to 1 within this."""


class OutputsError(ValueError):
    """Outputs or labels that cannot be scored; one line with the file and the remedy."""


def score_outputs(
    folder: str | Path, labels: str | Path, options: ResultOptions = PLAIN
) -> tuple[dict[str, Any], list[str]]:
    """Loss, top-1 and top-5 of the outputs in a folder, by the same arithmetic as `validate`.

    Args:
        folder: one file per picture, called `<picture>_0.bin` or `<picture>.bin` (see `READERS`), with its K logits
            or probabilities.
        labels: JSON `{"picture": label}`, or lines `picture label` with a space, tab, comma or colon between. Pictures
            with or without folder and suffix; labels as numbers, or ImageNet's synsets where K is 1000 or 1001.
        options: files to write.

    Returns:
        The result as plain values, as `validate` gives it, and remarks for people.

    Raises:
        OutputsError: a file that is not understood, of another length, or without a label.
    """
    files = output_files(Path(local_copy(str(folder))))
    by_picture = read_labels(Path(local_copy(str(labels))))
    pictures = [_picture(path, by_picture, labels) for path in files]
    _check_single(files, pictures)
    rows = _read_rows(files)
    names = class_names_of(WeightsInfo(num_classes=rows.shape[1]))
    known = [_label(by_picture[name], names, rows.shape[1], labels) for name in pictures]
    remarks = []
    if bool((rows >= 0).all()) and bool((rows.sum(1) - 1).abs().max() < _SUMS_TO_ONE):
        remarks.append("the outputs are probabilities: each file's add up to 1")
        rows = rows.clamp_min(torch.finfo(rows.dtype).tiny).log()
    if missing := len(by_picture) - len(set(pictures)):
        remarks.append(f"{missing} of {len(by_picture)} labelled pictures have no outputs and are not counted")
    result = evaluate(
        lambda outputs: outputs,
        _batches(rows, torch.tensor(known)),
        prepare=lambda outputs: outputs,
        precision=Precision(select("cpu")),
        world=World(),
        batch_size=_BATCH,
    )
    remarks += [f"wrote {path}" for path in options.write(result, lambda index: str(files[index]), classes=names)]
    return {**result.figures(names), "weights": str(folder)}, remarks + suspicions(result)


def _batches(rows: Tensor, labels: Tensor) -> Iterator[Batch]:
    indices = torch.arange(len(rows))
    for parts in zip(rows.split(_BATCH), labels.split(_BATCH), indices.split(_BATCH), strict=True):
        yield Batch(*parts)


def output_files(folder: Path) -> list[Path]:
    """The output files of a folder, sorted by name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give the one that holds the outputs")
    files = sorted(path for path in folder.iterdir() if path.suffix in READERS)
    if not files:
        raise OutputsError(f"{folder} holds no outputs: it needs a file {', '.join(READERS)} for each picture")
    return files


def read_labels(path: Path) -> dict[str, str]:
    """Label by picture, without folder and suffix.

    Raises:
        OutputsError: no text, a line without a label, or a picture with two.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OutputsError(f"{path} is no text in UTF-8: give the file of labels") from error
    if path.suffix == ".json":
        try:
            pairs = [(str(name), str(label)) for name, label in parse_json(text).items()]
        except (ValueError, AttributeError) as error:
            raise OutputsError(f'{path} is not JSON of the form {{"picture": label}} ({error})') from error
    else:
        pairs = [_pair(line, number, path) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    labels: dict[str, str] = {}
    for name, label in pairs:
        stem = _stem(name)
        if labels.setdefault(stem, label) != label:
            raise OutputsError(f"{path} gives {stem} the labels {labels[stem]} and {label}: keep one")
    return labels


def _pair(line: str, number: int, path: Path) -> tuple[str, str]:
    match = re.fullmatch(r"\s*(\S.*?)\s*[\s,:]\s*([^\s,:]+)\s*", line)
    if match is None:
        raise OutputsError(f"{path} line {number} ({line.strip()[:40]!r}) is not `picture label`")
    return match[1], match[2]


def _stem(name: str) -> str:
    """A picture's name without folder and picture suffix; other dots belong to the name."""
    return re.sub(r"\.(jpe?g|png|bmp|webp|gif|tiff?|ppm)$", "", re.split(r"[/\\]", name)[-1], flags=re.IGNORECASE)


def _picture(path: Path, labels: dict[str, str], source: str | Path) -> str:
    """The picture whose outputs `path` holds."""
    for name in (path.stem, re.sub(r"_0$", "", path.stem)):
        if _stem(name) in labels:
            return _stem(name)
    raise OutputsError(f"{path}: {source} has no label for {re.sub(r'_0$', '', path.stem)!r}")


def _check_single(files: list[Path], pictures: list[str]) -> None:
    """Refuses two outputs of one picture, which would count twice."""
    first: dict[str, Path] = {}
    for path, name in zip(files, pictures, strict=True):
        if (other := first.setdefault(name, path)) is not path:
            raise OutputsError(f"{other} and {path.name} are both of the picture {name!r}: keep one")


def _read_rows(files: list[Path]) -> Tensor:
    """The outputs [N, K] of all files."""
    rows: list[np.ndarray] = []
    for path in track(files, "reading outputs"):
        try:
            row = np.asarray(READERS[path.suffix](path), dtype=np.float32).reshape(-1)
        except (ValueError, TypeError, OSError, EOFError, BadZipFile) as error:
            raise OutputsError(f"{path} cannot be read ({error}): it needs a picture's outputs") from error
        if len(row) != len(rows[0] if rows else row) or len(row) < 2:
            raise OutputsError(f"{path} holds {len(row)} numbers, {files[0].name} {len(rows[0]) if rows else 0}: "
                               "each file needs one number per class")  # fmt: skip
        if not np.isfinite(row).all():
            raise OutputsError(f"{path} holds NaN or infinity: run the network again, in another precision")
        rows.append(row)
    return torch.from_numpy(np.stack(rows))


def _label(text: str, names: tuple[str, ...] | None, classes: int, source: str | Path) -> int:
    if names and text in names:
        return names.index(text)
    if not text.isdecimal() or int(text) >= classes:
        raise OutputsError(f"{source}: the label {text!r} is no class of the {classes} outputs, which count from 0")
    return int(text)
