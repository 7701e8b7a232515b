"""Names for pictures."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inception_v4.console import say, track
from inception_v4.data.augment import eval_transform
from inception_v4.data.folders import picture_files
from inception_v4.data.pictures import CorruptImage, Decoding, read_picture
from inception_v4.data.suffixes import Sieve, remedy
from inception_v4.inference.factory import create_model
from inception_v4.inference.network import accelerator_for, open_network, runtime_for
from inception_v4.weights.class_names import class_names_of, describe_class
from inception_v4.weights.source import PRETRAINED

__all__ = ["Prediction", "Predictor", "create_model", "pictures_in"]


@dataclass(frozen=True)
class Prediction:
    """The classes of one picture, most probable first."""

    picture: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        ranked = zip(self.classes, self.probabilities, strict=True)
        return {
            "picture": self.picture,
            "class": self.classes[0],
            "probability": self.probabilities[0],
            "top": [{"class": name, "description": describe_class(name), "probability": p} for name, p in ranked],
        }


class Predictor:
    """A weights or exported file that names pictures.

        predictor = Predictor("runs/photos/best.safetensors")
        print(predictor(["cat.jpg"])[0].classes[0])

    It leaves the switches of the process (determinism, TF32, current device, memory) as they are.

    Args:
        source: a weights file, a run directory, a hub name, `pretrained`, or an exported file.
        runtime: what runs it; default: by its suffix.
        device: as `--device`.
        amp: `off`, `bf16` or `fp16`.
        batch_size: pictures per forward pass.
        image_size: side of the input in pixels; default: what the weights say.

    Attributes:
        decoding: whether EXIF's rotation is applied (default: what the weights say), and the limit of pixels.
    """

    def __init__(
        self,
        source: str = PRETRAINED,
        *,
        runtime: str | None = None,
        device: str = "auto",
        amp: str = "off",
        batch_size: int = 16,
        image_size: int | None = None,
    ) -> None:
        runtime = runtime_for(source, runtime)
        accelerator = accelerator_for(runtime, device)
        network = open_network(source, accelerator, runtime=runtime, device=device)
        self.messages, self.info, self.batch_size = network.messages, network.info, batch_size
        self.preprocessing = network.info.preprocessing.replace(image_size=image_size)
        self.class_names = class_names_of(network.info) or tuple(str(i) for i in range(network.info.num_classes))
        self._precision = network.precision(amp)
        self._model = network.model
        self._resize = eval_transform(self.preprocessing)
        self._prepare = network.prepare(self.preprocessing)
        self.decoding = Decoding(self.preprocessing.exif_rotation)

    def __call__(self, pictures: Sequence[str | os.PathLike[str] | Tensor], top_k: int = 5) -> list[Prediction]:
        """The `top_k` classes of each picture: a path, or a uint8 tensor [3, H, W]."""
        results = []
        for start in range(0, len(pictures), self.batch_size):
            chunk = pictures[start : start + self.batch_size]
            probabilities = self.probabilities(chunk)
            values, indices = probabilities.topk(min(top_k, probabilities.shape[1]), dim=1)
            for picture, p, i in zip(chunk, values.tolist(), indices.tolist(), strict=True):
                name = "" if isinstance(picture, Tensor) else os.fspath(picture)
                results.append(Prediction(name, tuple(self.class_names[k] for k in i), tuple(p)))
        return results

    @torch.inference_mode()
    def probabilities(self, pictures: Sequence[str | os.PathLike[str] | Tensor]) -> Tensor:
        """Softmax outputs [B, K] of one batch, float32 on the host."""
        decoded = [p if isinstance(p, Tensor) else read_picture(Path(p), self.decoding) for p in pictures]
        images = torch.stack([self._resize(picture) for picture in decoded])
        images = self._prepare(images.to(self._precision.accelerator.device))
        with self._precision.autocast():
            logits = self._model(images)
        return logits.float().softmax(dim=1).cpu()


def pictures_in(paths: Sequence[str]) -> list[Path]:
    """The pictures named: files as they are, folders searched through, in sorted order; what is passed over is said."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            sieve = Sieve()
            inside = sorted(map(Path, picture_files(path, sieve)))
            if not inside:
                raise ValueError(f"no pictures in {path}: " + (sieve.unread() or "it needs .jpg or .png files"))
            for remark in sieve.remarks(path):
                say(remark)
            found += inside
        elif path.is_file() and (what := remedy(path)):
            raise ValueError(f"{path}: {path.suffix} files are not read: {what}")
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"no picture or folder {path}")
    return found


def to_csv(predictions: Sequence[Prediction]) -> str:
    """One row per picture and rank."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["picture", "rank", "class", "description", "probability"])
    for prediction in predictions:
        for rank, (name, p) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True), start=1):
            writer.writerow([prediction.picture, rank, name, describe_class(name), f"{p:.6f}"])
    return out.getvalue()


def predict_files(predictor: Predictor, files: Sequence[Path], *, top_k: int, on_corrupt: str) -> list[Prediction]:
    """Predictions for the readable files; with `skip` the others are named on stderr."""
    results: list[Prediction] = []
    names: list[str] = []
    pictures: list[Tensor] = []

    def flush() -> None:
        found = predictor(pictures, top_k)
        results.extend(replace(p, picture=name) for p, name in zip(found, names, strict=True))
        names.clear()
        pictures.clear()

    for file in track(files, "predicting", len(files)):
        try:
            pictures.append(read_picture(file, predictor.decoding))
        except CorruptImage as error:
            if on_corrupt != "skip":
                raise
            say(f"skipped: {error}")
            continue
        names.append(str(file))
        if len(pictures) == predictor.batch_size:
            flush()
    if pictures:
        flush()
    return results


def table_rows(prediction: Prediction) -> list[tuple[str, str, str]]:
    """Rows (picture, class, percent) of a table; the picture is named once."""
    ranked = zip(prediction.classes, prediction.probabilities, strict=True)
    return [
        (prediction.picture if rank == 0 else "", _titled(name), f"{100 * p:.2f}")
        for rank, (name, p) in enumerate(ranked)
    ]


def _titled(name: str) -> str:
    words = describe_class(name)
    return name if words == name else f"{words} ({name})"
