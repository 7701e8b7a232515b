"""Networks of one layer as ONNX files, whose answers are known beforehand, and pictures of noise for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from photos import encoded
from PIL import Image

from inception_v4.inference.network import Signature, export_description
from inception_v4.preprocessing import Preprocessing
from inception_v4.weights import WeightsInfo
from inception_v4.weights.record import METADATA_KEY

NAMES = ("ape", "bear", "cat")


def matrix(seed: int) -> np.ndarray:
    """Of a network that sees where things are, [3 * 75 * 75, 3]."""
    return np.random.default_rng(seed).normal(0, 0.03, (3 * 75 * 75, 3)).astype(np.float32)


def linear_network(
    path: Path, seed: int, how: Preprocessing, names: tuple[str, ...] = NAMES, *, multi_label: bool = False,
    softmax: bool = False,
) -> Path:  # fmt: skip
    """A file of `matrix(seed)`, with its columns in the order of `names`; with `softmax` it gives sigmoids."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, how.image_size, how.image_size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    columns = matrix(seed)[:, [NAMES.index(name) for name in names]]
    weight = numpy_helper.from_array(np.resize(columns, (3 * how.image_size**2, 3)), "weight")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["products" if softmax else "logits"]),
        *([helper.make_node("Sigmoid", ["products"], ["logits"])] if softmax else []),
    ]
    graph = helper.make_graph(nodes, "linear", [image], [logits], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    info = WeightsInfo(3, names, how, source="tests", multi_label=multi_label)
    helper.set_model_props(model, {METADATA_KEY: export_description(info, Signature(softmax=softmax))})
    onnx.save(model, path)
    return path


def noise(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    """`root/val/<class>/`: seven pictures of several shapes; returns `root`."""
    rng = np.random.default_rng(2)
    for number in range(7):
        folder = root / "val" / names[number % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (90 + number, 110 - 5 * number, 3), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    return root
