"""What can be asked of an export. Imports neither torch nor a runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inception_v4.export.om import OmTarget

if TYPE_CHECKING:
    from inception_v4.data.labelled import Source

FORMAT_NAMES = ("onnx", "openvino", "pt2", "aoti", "mindir", "air", "om")
"""Of the formats that can be written."""

OPSETS = range(13, 24)
"""Of ONNX. No operator in the graph has changed since 13, which most runtimes read."""


class ExportError(ValueError):
    """An export that cannot be had; one line with the remedy."""

    exit_code = 2


@dataclass(frozen=True)
class Target:
    """What to export to.

    Attributes:
        format: one of `FORMAT_NAMES`; default: by the suffix of the output.
        image_size: side of the input in pixels; default: the weights'.
        num_classes: must equal the weights'; 1000 drops TensorFlow's background class.
        batch_size: the only one that the file takes; default: any (`om`, `air`: 1).
        preprocess: the file takes uint8 [N, S, S, 3] and normalises by itself.
        softmax: the file gives probabilities.
        opset: of ONNX, one of `OPSETS`.
        device: that `aoti` compiles for.
        om: chip and options of `om`.
        calibrate: folder of pictures, or a data set; makes the convolutions of `onnx` and `openvino` 8-bit, with
            ranges from them.
        check: compare the file with the network before it takes its name.
    """

    format: str | None = None
    image_size: int | None = None
    num_classes: int | None = None
    batch_size: int | None = None
    preprocess: bool = False
    softmax: bool = False
    opset: int = OPSETS[0]
    device: str = "cpu"
    om: OmTarget | None = None
    check: bool = True
    calibrate: str | Source | None = None
