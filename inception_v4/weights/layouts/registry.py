"""The layouts of weights: one row each, recognised by the names in a file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from inception_v4.preprocessing import Preprocessing
from inception_v4.weights.layouts import mindcv, modelzoo, pytorch, tfslim
from inception_v4.weights.record import State, WeightsError, WeightsInfo

_PICKLED = (".pth", ".pt", ".bin")
_MINDSPORE = (".ckpt", ".safetensors")


@dataclass(frozen=True)
class Layout:
    """One layout.

    Attributes:
        summary: one line for people.
        matches: whether a file's names are of this layout.
        decode: the file's tensors, which it may use up, to the canonical state; appends lines to the list of notes.
        encode: the canonical state to the file's tensors; appends lines to the list of notes.
        suffixes: of the files it can be written to; the first is the usual one.
        preprocessing: what weights of this layout expect when nothing says otherwise.
        class_order: how their program sorts class folders, as in `WeightsInfo`.
    """

    summary: str
    matches: Callable[[Collection[str]], bool]
    decode: Callable[[State, list[str]], State]
    encode: Callable[[State, WeightsInfo, list[str]], State]
    suffixes: tuple[str, ...] = (".safetensors", *_PICKLED)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    class_order: str = "text"


LAYOUTS: dict[str, Layout] = {
    "cadene": Layout(
        "Cadene's pretrained-models: 1001 classes, or the spellings of 2017",
        pytorch.is_cadene,
        pytorch.decode,
        pytorch.encode_cadene,
        suffixes=(*_PICKLED, ".safetensors"),
    ),
    "modelzoo": Layout(
        "MindSpore ModelZoo's Inceptionv4: two more BatchNorms, another epsilon",
        modelzoo.is_modelzoo,
        modelzoo.decode,
        modelzoo.encode,
        suffixes=_MINDSPORE,
        preprocessing=modelzoo.PREPROCESSING,
    ),
    "mindcv": Layout(
        "MindCV's inception_v4",
        mindcv.is_mindcv,
        mindcv.decode,
        mindcv.encode,
        suffixes=_MINDSPORE,
        preprocessing=mindcv.PREPROCESSING,
    ),
    "tf-slim": Layout(
        "TF-Slim's InceptionV4, the original: HWIO kernels, no gamma, usually 1001 classes",
        tfslim.is_tfslim,
        tfslim.decode,
        tfslim.encode,
        suffixes=(".npz",),
    ),
    # A file of this package says its own order.
    "torch": Layout("timm and this package", pytorch.is_torch, pytorch.decode, pytorch.encode, class_order="natural"),
}


def layout_of(names: Collection[str]) -> str:
    """The layout whose names these are.

    Raises:
        WeightsError: none of them.
    """
    for name, layout in LAYOUTS.items():
        if layout.matches(names):
            return name
    shown = ", ".join(sorted(names)[:5]) or "no tensors"
    raise WeightsError(f"holds weights of another network ({shown}, ...): known layouts are {', '.join(LAYOUTS)}")
