"""A network that costs nothing and whose answers are known: an ONNX file that names a picture's strongest colour."""

from __future__ import annotations

from pathlib import Path

import pytest

from inception_v4.inference.network import Signature, export_description
from inception_v4.preprocessing import Preprocessing
from inception_v4.weights import WeightsInfo
from inception_v4.weights.record import METADATA_KEY

COLOURS = ("red", "green", "blue")


def colour_network(folder: Path) -> Path:
    """An ONNX file whose logits are the mean red, green and blue; skips the test where ONNX is not installed."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 75, 75])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "colours", [image], [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    info = WeightsInfo(3, COLOURS, Preprocessing(image_size=75), source="tests")
    helper.set_model_props(model, {METADATA_KEY: export_description(info, Signature())})
    path = folder / "colours.onnx"
    onnx.save(model, path)
    return path
