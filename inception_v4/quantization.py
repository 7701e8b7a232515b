"""An exported network with 8-bit convolutions: activations uint8, weights int8 per output channel.

The file stays an ONNX file (quantise and dequantise pairs around convolutions), which ONNX Runtime and OpenVINO both
turn into integer kernels. Ranges come from pictures: give some hundred like those that the network will see.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from inception_v4.sessions import require


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
    quantization = _quantization()
    with tempfile.TemporaryDirectory(prefix="inception-v4-int8-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        quantization.shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared), str(destination), _reader(quantization, prepared, batches, onnx),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )  # fmt: skip


def _quantization() -> Any:
    require("onnxruntime")
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    assert shape_inference
    return quantization


def _reader(quantization: Any, model: Path, batches: Iterable[Tensor], onnx: Any) -> Any:
    name = onnx.load(str(model), load_external_data=False).graph.input[0].name

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {name: batch.contiguous().numpy()}

    return Reader()
