"""An exported network with 8-bit convolutions: activations uint8, weights int8 per output channel.

The file stays an ONNX file (quantise and dequantise pairs around convolutions), which ONNX Runtime and OpenVINO both
turn into integer kernels. Ranges come from pictures: give some hundred like those that the network will see.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from inception_v4.console import say
from inception_v4.data.folders import picture_files
from inception_v4.data.sources import balanced
from inception_v4.data.suffixes import Sieve
from inception_v4.inference.sessions import require


def draw_pictures(folder: Path, *, ranges: int, compared: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Pictures to take ranges from and other ones to compare the result on, each from all over the classes.

    Where there are fewer pictures than asked for, both get their share; a folder of one picture gives none to compare.
    What is passed over in the folder is said.

    Args:
        ranges, compared: at most so many pictures.
    """
    sieve = Sieve()
    files = sorted(picture_files(folder, sieve))
    for remark in sieve.remarks(folder):
        say(remark)
    rng = np.random.default_rng(seed)
    drawn = [files[i] for i in _spread(files, ranges + compared, rng)]
    other = set(_spread(drawn, len(drawn) * compared // (ranges + compared) or min(1, len(drawn) // 2), rng))
    return [f for i, f in enumerate(drawn) if i not in other], [drawn[i] for i in sorted(other)]


def _spread(files: Sequence[str], count: int, rng: np.random.Generator) -> list[int]:
    """Indices of `count` files, evenly from their folders; a random choice of these where they are more."""
    folders = sorted({os.path.dirname(file) for file in files})
    number = dict(zip(folders, rng.permutation(len(folders)).tolist(), strict=True))
    return balanced([number[os.path.dirname(file)] for file in files], count, int(rng.integers(2**31)))


def quantize(source: Path, destination: Path, batches: Iterable[Tensor]) -> None:
    """Write the 8-bit form of an ONNX file.

    Args:
        source: an ONNX file with one input.
        batches: inputs as the file takes them, for calibration: the ranges of the activations are the smallest and
            largest values seen.

    Raises:
        RuntimeUnavailable: onnxruntime or onnx is not installed.
    """
    onnx = require("onnx")
    require("onnxruntime")
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load(str(source)).graph.input[0].name
    feeds = ({name: batch.contiguous().numpy()} for batch in batches)

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory(prefix="inception-v4-int8-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared), str(destination), Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )  # fmt: skip
