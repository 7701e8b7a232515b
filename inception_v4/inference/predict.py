"""Names for pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inception_v4.data.loader import EvalLoader, on_device
from inception_v4.data.named_files import NamedFiles
from inception_v4.data.pictures import CorruptImage, Decoding, read_picture
from inception_v4.data.views import ONE, Views, eval_transform
from inception_v4.data.workers import worker_count
from inception_v4.distributed import World
from inception_v4.inference.engines import Opener, Wanted, precision_for
from inception_v4.inference.ensemble import engines_of, open_others, ready
from inception_v4.inference.factory import create_model
from inception_v4.inference.network import AUTO, OpenNetwork, accelerator_for, runtime_for
from inception_v4.inference.several_classes import THRESHOLD
from inception_v4.weights.class_names import class_names_of, describe_class
from inception_v4.weights.record import probabilities_of
from inception_v4.weights.source import PRETRAINED

__all__ = ["Prediction", "Predictor", "UnreadPicture", "create_model"]

_WORTH_A_WORKER = 16
"""Pictures per loader process: for fewer it takes longer to start one than to read them."""


@dataclass(frozen=True)
class Prediction:
    """The classes of one picture, most probable first; none where none is as probable as asked for."""

    picture: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        ranked = zip(self.classes, self.probabilities, strict=True)
        return {
            "picture": self.picture,
            "class": next(iter(self.classes), None),
            "probability": next(iter(self.probabilities), None),
            "top": [{"class": name, "description": describe_class(name), "probability": p} for name, p in ranked],
        }


@dataclass(frozen=True)
class UnreadPicture:
    """A picture without classes, and why: one line."""

    picture: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        return {"picture": self.picture, "error": self.error}


class Predictor:
    """A weights or exported file that names pictures.

        predictor = Predictor("runs/photos/best.safetensors")
        print(predictor(["cat.jpg"])[0].classes[0])

    It leaves the switches of the process (determinism, TF32, current device, memory) as they are.

    Args:
        source: a weights file, a run directory, a hub name, `pretrained`, or an exported file; of several the mean of
            their probabilities, with the classes of the first.
        runtime: what runs it: `torch`, `openvino`, `onnx`, `pt2`, or `auto`. For weights on a CPU `auto` is PyTorch, or
            what `expect` has once exported them for; for an exported file it goes by the suffix.
        device: as `--device`.
        amp: `off`, `bf16`, `fp16`, or `auto`: bfloat16 where the device is faster with it, else float32.
        batch_size: pictures per forward pass.
        image_size: side of the input in pixels; default: what the weights say.
        views: of each picture, over which probabilities are averaged.
        cache: whether weights may be exported into the user's cache; without they run in PyTorch.

    Attributes:
        sources: as they were given.
        decoding: whether EXIF's rotation is applied (default: what the weights say), and the limit of pixels.
        model: what `network_input` makes to logits [B, K].
        engine: what runs it, for people.
    """

    def __init__(
        self,
        source: str | Sequence[str] = PRETRAINED,
        *,
        runtime: str = AUTO,
        device: str = "auto",
        amp: str = "auto",
        batch_size: int = 16,
        image_size: int | None = None,
        views: Views = ONE,
        cache: bool = True,
    ) -> None:
        first, *others = self.sources = [source] if isinstance(source, str) else list(source)
        chosen = runtime_for(first, runtime, cache=cache)
        accelerator = accelerator_for(chosen, device)
        self._amp, self._reason = precision_for(first, chosen, accelerator, amp)
        wanted = Wanted(chosen, device, self._amp, image_size, cache=cache)
        self._opener = Opener(first, accelerator, wanted)
        network = self._opener.open()
        self._given, self._views, self._asked = {"image_size": image_size}, views, batch_size
        self._others = open_others(others, self._given, beside=network, wanted=replace(wanted, runtime=runtime))
        self.messages = [*network.messages, *(line for member in self._others for line in member.network.messages)]
        self.info = network.info
        self.class_names = class_names_of(network.info) or tuple(str(i) for i in range(network.info.num_classes))
        self._use(network)
        self._resize = eval_transform(self.preprocessing, views)
        self.decoding = Decoding(self.preprocessing.exif_rotation)

    def expect(self, pictures: int) -> None:
        """Say how many pictures will come: for many, a runtime that is installed and faster than PyTorch is used.

        The weights are exported for it once, which takes some seconds, and kept in the user's cache folder.
        """
        expected = pictures * len(self._views)
        self._others = [member.for_many(expected) for member in self._others]
        self._use(self._opener.for_many(self._network, expected))

    def _use(self, network: OpenNetwork) -> None:
        networks = [network, *(member.opened for member in self._others)]
        it = ready(networks, self._given, self._views, amp=self._amp, batch_size=self._asked)
        engine = engines_of(networks)
        self._network, self.engine = network, f"{engine} ({self._reason})" if self._reason else engine
        self._precision, self.model, self._prepare = it.precision, it.model, it.prepare
        self.batch_size, self.preprocessing = it.pictures, it.preprocessing

    def __call__(
        self, pictures: Sequence[str | os.PathLike[str] | Tensor], top_k: int = 5, *, threshold: float = 0.0
    ) -> list[Prediction]:
        """The `top_k` classes of each picture: a path, or a uint8 tensor [3, H, W] or [1, H, W].

        Args:
            threshold: classes that are less probable are left out.
        """
        results = []
        for start in range(0, len(pictures), self.batch_size):
            chunk = pictures[start : start + self.batch_size]
            for picture, ranked in zip(chunk, self.ranked(self.probabilities(chunk), top_k, threshold), strict=True):
                results.append(Prediction("" if isinstance(picture, Tensor) else os.fspath(picture), *ranked))
        return results

    def stream(
        self,
        files: Sequence[str | os.PathLike[str]],
        top_k: int = 5,
        *,
        threshold: float = 0.0,
        workers: int | None = None,
        on_corrupt: str = "report",
    ) -> Iterator[Prediction | UnreadPicture]:
        """The `top_k` classes of each file, in order and as they come, in memory that their number does not change.

        Args:
            threshold: classes that are less probable are left out.
            workers: loader processes; default: up to 8, none for a few files.
            on_corrupt: what becomes of a file that cannot be read: `report` yields an `UnreadPicture` in its place,
                `error` raises when the batches before its own have been yielded.
        Raises:
            CorruptImage: with `error`, at the first.
        """
        names = [os.fspath(file) for file in files]
        accelerator, size = self._precision.accelerator, self.batch_size
        loader = EvalLoader(
            NamedFiles(names, max_pixels=self.decoding.max_pixels),
            self.preprocessing.replace(exif_rotation=self.decoding.exif_rotation),
            batch_size=size,
            workers=min(worker_count(None, World()), len(names) // _WORTH_A_WORKER) if workers is None else workers,
            world=World(),
            on_corrupt="skip",  # and said here, when what came before has been yielded
            pin_memory=accelerator.pin_memory,
            views=self._views,
        )
        for number, batch in enumerate(on_device(loader, accelerator)):
            if batch.skipped and on_corrupt == "error":
                raise CorruptImage(batch.skipped[0])
            errors, read = iter(batch.skipped), set(batch.indices.tolist())
            ranked = self.ranked(self._outputs(batch.images), top_k, threshold) if read else iter(())
            for position in range(number * size, min(number * size + size, len(names))):
                if position in read:
                    yield Prediction(names[position], *next(ranked))
                else:
                    yield UnreadPicture(names[position], next(errors))

    def probabilities(self, pictures: Sequence[str | os.PathLike[str] | Tensor]) -> Tensor:
        """Probabilities [B, K] of one batch, float32 on the host: each row adds up to 1, unless `info.multi_label`."""
        return self.crop_probabilities(torch.stack([self.crop(picture) for picture in pictures]))

    def crop(self, picture: str | os.PathLike[str] | Tensor) -> Tensor:
        """What the network sees of a picture, uint8 [C, S, S] on the host."""
        return self._resize(picture if isinstance(picture, Tensor) else read_picture(Path(picture), self.decoding))

    def crop_probabilities(self, crops: Tensor) -> Tensor:
        """As `probabilities`, of one batch of crops [B, C, S, S]."""
        return self._outputs(crops.to(self._precision.accelerator.device))

    def network_input(self, crops: Tensor) -> Tensor:
        """A batch of crops [B, C, S, S] as `model` takes it."""
        return self._prepare(crops.to(self._precision.accelerator.device))

    @torch.inference_mode()
    def _outputs(self, images: Tensor) -> Tensor:
        images = self._prepare(images)
        with self._precision.autocast():
            logits = self.model(images)
        return probabilities_of(logits.float(), multi_label=self.info.multi_label).cpu()

    def usual(self, top_k: int | None, threshold: float | None) -> tuple[int, float]:
        """The most classes of a picture that are shown, and their least probability; None is what is usual."""
        if threshold is None:
            threshold = THRESHOLD if self.info.multi_label and top_k is None else 0.0
        return top_k or (len(self.class_names) if threshold else 5), threshold

    def ranked(
        self, probabilities: Tensor, top_k: int, threshold: float
    ) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
        """Names and probabilities of each picture's first classes."""
        values, indices = probabilities.topk(min(top_k, probabilities.shape[1]), dim=1)
        kept = (values >= threshold).sum(1).tolist()
        for p, i, count in zip(values.tolist(), indices.tolist(), kept, strict=True):
            yield tuple(self.class_names[k] for k in i[:count]), tuple(p[:count])
