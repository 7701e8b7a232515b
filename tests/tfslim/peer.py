"""TF-Slim's Inception-v4, said again in the real TensorFlow's operators, under TF-Slim's names.

`python peer.py FOLDER [SIZE]`, with the Python of an environment in which `pip install tensorflow` was run, writes into
FOLDER `inception_v4.ckpt` (one file), `model.ckpt-7.*` (`.index` and `.data-*`), `pictures.npy` [2, SIZE, SIZE, 3] and
`logits.npy` [2, 1001], computed in float64 from the float32 variables of the checkpoints, whose values are live:
He-scaled kernels, random statistics.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import tensorflow as tf

V1 = tf.compat.v1
Node = tf.Tensor


def conv(x: Node, width: int, leaf: str, *, stride: int = 1, padding: str = "SAME") -> Node:
    """A layer named as TF-Slim's are, `Conv2d_0b_1x7` with a kernel of 1 by 7."""
    height, breadth = map(int, leaf.rpartition("_")[2].split("x"))
    with V1.variable_scope(f"Conv2d_{leaf}"):
        x = tf.nn.conv2d(x, variable("weights", [height, breadth, x.shape[-1], width], x.dtype), stride, padding)
        with V1.variable_scope("BatchNorm"):
            leaves = ("moving_mean", "moving_variance", "beta")
            mean, variance, beta = (variable(leaf, [width], x.dtype) for leaf in leaves)
        return tf.nn.relu(tf.nn.batch_normalization(x, mean, variance, beta, None, 0.001))


def variable(name: str, shape: list[int], dtype: tf.DType) -> tf.Variable:
    return V1.get_variable(name, shape, dtype, V1.zeros_initializer())


def chain(x: Node, *layers: tuple[int, str]) -> Node:
    """Layers in a row; `1a_...` are those that shrink the map without padding, by 2 where the block does."""
    for width, leaf in layers:
        x = conv(x, width, leaf)
    return x


def shrink(x: Node, width: int, *, stride: int = 2) -> Node:
    return conv(x, width, "1a_3x3", stride=stride, padding="VALID")


def pool(x: Node) -> Node:
    return tf.nn.max_pool2d(x, 3, 2, "VALID")


def average(x: Node) -> Node:
    return tf.nn.avg_pool2d(x, 3, 1, "SAME")


def block(x: Node, name: str, *branches: object) -> Node:
    """Every branch in a scope of its own, joined along the channels."""
    with V1.variable_scope(name):
        outputs = []
        for index, branch in enumerate(branches):
            with V1.variable_scope(f"Branch_{index}"):
                outputs.append(branch(x))
        return tf.concat(outputs, 3)


def stem(x: Node) -> Node:
    x = conv(x, 32, "1a_3x3", stride=2, padding="VALID")
    x = conv(x, 32, "2a_3x3", padding="VALID")
    x = conv(x, 64, "2b_3x3")
    x = block(x, "Mixed_3a", pool, lambda y: conv(y, 96, "0a_3x3", stride=2, padding="VALID"))
    x = block(
        x, "Mixed_4a",
        lambda y: shrink(chain(y, (64, "0a_1x1")), 96, stride=1),
        lambda y: shrink(chain(y, (64, "0a_1x1"), (64, "0b_1x7"), (64, "0c_7x1")), 96, stride=1),
    )  # fmt: skip
    return block(x, "Mixed_5a", lambda y: shrink(y, 192), pool)


def inception_a(x: Node, name: str) -> Node:
    return block(
        x, name,
        lambda y: chain(y, (96, "0a_1x1")),
        lambda y: chain(y, (64, "0a_1x1"), (96, "0b_3x3")),
        lambda y: chain(y, (64, "0a_1x1"), (96, "0b_3x3"), (96, "0c_3x3")),
        lambda y: chain(average(y), (96, "0b_1x1")),
    )  # fmt: skip


def reduction_a(x: Node) -> Node:
    return block(
        x, "Mixed_6a",
        lambda y: shrink(y, 384),
        lambda y: shrink(chain(y, (192, "0a_1x1"), (224, "0b_3x3")), 256),
        pool,
    )  # fmt: skip


def inception_b(x: Node, name: str) -> Node:
    long = ((192, "0a_1x1"), (192, "0b_7x1"), (224, "0c_1x7"), (224, "0d_7x1"), (256, "0e_1x7"))
    return block(
        x, name,
        lambda y: chain(y, (384, "0a_1x1")),
        lambda y: chain(y, (192, "0a_1x1"), (224, "0b_1x7"), (256, "0c_7x1")),
        lambda y: chain(y, *long),
        lambda y: chain(average(y), (128, "0b_1x1")),
    )  # fmt: skip


def reduction_b(x: Node) -> Node:
    return block(
        x, "Mixed_7a",
        lambda y: shrink(chain(y, (192, "0a_1x1")), 192),
        lambda y: shrink(chain(y, (256, "0a_1x1"), (256, "0b_1x7"), (320, "0c_7x1")), 320),
        pool,
    )  # fmt: skip


def inception_c(x: Node, name: str) -> Node:
    def fork(y: Node, first: str, second: str) -> Node:
        return tf.concat([conv(y, 256, first), conv(y, 256, second)], 3)

    return block(
        x, name,
        lambda y: chain(y, (256, "0a_1x1")),
        lambda y: fork(chain(y, (384, "0a_1x1")), "0b_1x3", "0c_3x1"),
        lambda y: fork(chain(y, (384, "0a_1x1"), (448, "0b_3x1"), (512, "0c_1x3")), "0d_1x3", "0e_3x1"),
        lambda y: chain(average(y), (256, "0b_1x1")),
    )  # fmt: skip


def network(x: Node) -> Node:
    """Pictures [B, H, W, 3] to logits [B, 1001], with the variables of the original."""
    with V1.variable_scope("InceptionV4"):
        x = stem(x)
        for letter in "bcde":
            x = inception_a(x, f"Mixed_5{letter}")
        x = reduction_a(x)
        for letter in "bcdefgh":
            x = inception_b(x, f"Mixed_6{letter}")
        x = reduction_b(x)
        for letter in "bcd":
            x = inception_c(x, f"Mixed_7{letter}")
        with V1.variable_scope("Logits/Logits"):
            weights = variable("weights", [1536, 1001], x.dtype)
            return tf.matmul(tf.reduce_mean(x, [1, 2]), weights) + variable("biases", [1001], x.dtype)


def live_values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.endswith("/weights"):
        return rng.standard_normal(shape) * (2 / np.prod(shape[:-1])) ** 0.5
    if name.endswith("moving_variance"):
        return 0.7 + 0.6 * rng.random(shape)
    return 0.2 * rng.standard_normal(shape)


def graph(dtype: tf.DType, pictures: np.ndarray) -> tuple[Node, list[tf.Variable]]:
    return network(tf.constant(pictures, dtype)), V1.global_variables()


def save(folder: Path, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Both kinds of checkpoint, with some of what training leaves beside the network; returns the network's values."""
    rng = np.random.default_rng(0)
    with tf.Graph().as_default(), V1.Session() as session:
        _, variables = graph(tf.float32, pictures)
        values = {v.op.name: live_values(v.op.name, tuple(v.shape), rng).astype(np.float32) for v in variables}
        V1.get_variable("InceptionV4/AuxLogits/Conv2d_1b_1x1/weights", [1, 1, 1024, 128])
        V1.train.create_global_step()
        V1.get_variable("InceptionV4/Conv2d_1a_3x3/weights/RMSProp", [3, 3, 3, 32])
        session.run(V1.global_variables_initializer())
        assign(session, variables, values)
        for name, version in (("inception_v4.ckpt", 1), ("model.ckpt-7", 2)):
            V1.train.Saver(write_version=version).save(session, str(folder / name), write_state=False)
    return values


def assign(session: V1.Session, variables: list[tf.Variable], values: dict[str, np.ndarray]) -> None:
    """All in one call, by what would else initialise them."""
    fed = {node.initializer.inputs[1]: values[node.op.name] for node in variables}
    session.run([node.initializer for node in variables], fed)


def logits(values: dict[str, np.ndarray], pictures: np.ndarray) -> np.ndarray:
    with tf.Graph().as_default(), V1.Session() as session:
        output, variables = graph(tf.float64, pictures)
        assign(session, variables, values)
        return session.run(output)


def main() -> None:
    folder, size = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 299
    pictures = np.random.default_rng(1).standard_normal((2, size, size, 3)).astype(np.float32)
    values = save(folder, pictures)
    np.save(folder / "pictures.npy", pictures)
    np.save(folder / "logits.npy", logits(values, pictures))


if __name__ == "__main__":
    V1.disable_eager_execution()
    V1.disable_resource_variables()
    main()
