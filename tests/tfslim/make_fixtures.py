"""Writes the small files of `fixtures/` with the real TensorFlow and LevelDB.

To renew them: `pip install tensorflow plyvel`, then run it with that Python.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import plyvel
import tensorflow as tf

HERE = Path(__file__).parent / "fixtures"
V1 = tf.compat.v1
SCOPE = "InceptionV4/Mixed_5b/Branch_0/Conv2d_0a_1x1/"
NETWORK = {"weights": (1, 3, 4, 5), "BatchNorm/beta": (5,), "BatchNorm/moving_mean": (5,), "biases": (0, 2)}
AVERAGE = "/ExponentialMovingAverage"


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The same numbers as `test_weights_tensorflow.py` expects."""
    count = int(np.prod(shape))
    return ((np.arange(count) * 37 % 101 - 20 + len(name)) / 8).reshape(shape)


def variable(name: str, shape: tuple[int, ...], dtype: tf.DType = tf.float32) -> tf.Variable:
    return V1.get_variable(name, initializer=tf.constant(values(name, shape), dtype), use_resource=False)


def everything() -> None:
    """A network's variables of each type that can be stored, and all that training leaves beside them."""
    for leaf, shape in NETWORK.items():
        variable(SCOPE + leaf, shape)
    for leaf in ("weights", "BatchNorm/beta"):
        for slot in ("RMSProp", "RMSProp_1", "Momentum", "Adam", "ExponentialMovingAverage"):
            variable(f"{SCOPE}{leaf}/{slot}", NETWORK[leaf])
    variable("InceptionV4/double/weights", (2, 3), tf.float64)
    variable("InceptionV4/AuxLogits/Conv2d_1b_1x1/weights", (1, 1, 2, 2))
    V1.get_variable("global_step", initializer=tf.constant(7, tf.int64), use_resource=False)
    V1.get_variable("flags", initializer=tf.constant([True, False]), use_resource=False)


def save(build: object, name: str, version: int) -> None:
    with tf.Graph().as_default(), V1.Session() as session:
        build()
        session.run(V1.global_variables_initializer())
        saver = V1.train.Saver(write_version=version)
        saver.save(session, str(HERE / name), write_meta_graph=False, write_state=False)


def halves() -> None:
    variable("InceptionV4/half/weights", (2, 3), tf.float16)
    variable("InceptionV4/bfloat/weights", (2, 3), tf.bfloat16)
    V1.get_variable("note", initializer=tf.constant("text"), use_resource=False)


def partitioned() -> None:
    name, shape = SCOPE + "weights", (1, 1, 4, 6)
    V1.get_variable(
        name, initializer=tf.constant(values(name, shape), tf.float32), use_resource=False,
        partitioner=V1.fixed_size_partitioner(2, axis=3),
    )  # fmt: skip


def two_shards() -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefixes = []
        for leaf in ("weights", "BatchNorm/beta"):
            prefixes.append(f"{folder}/{len(prefixes)}")
            content = tf.constant(values(SCOPE + leaf, NETWORK[leaf]), tf.float32)
            tf.raw_ops.SaveV2(
                prefix=prefixes[-1], tensor_names=[SCOPE + leaf], shape_and_slices=[""], tensors=[content]
            )
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=str(HERE / "shards.ckpt"))


def leveldb_table() -> None:
    """Small blocks, compressed with Snappy."""
    with tempfile.TemporaryDirectory() as folder:
        with plyvel.DB(folder, create_if_missing=True, block_size=512, compression="snappy") as database:
            for index in range(200):
                database.put(f"key/{index:05}".encode(), leveldb_value(index))
            database.compact_range()
        (table,) = Path(folder).glob("*.ldb")
        shutil.copyfile(table, HERE / "snappy.ldb")


def leveldb_value(index: int) -> bytes:
    """Runs, repetitions at several distances, and a part that cannot be compressed."""
    rng = np.random.default_rng(index)
    return b"a" * index + b"abcdefghijkl" * (index % 7) + rng.bytes(index % 90) + str(index).encode() * 3


def main() -> None:
    HERE.mkdir(exist_ok=True)
    save(everything, "everything_v1.ckpt", V1.train.SaverDef.V1)
    save(everything, "everything_v2.ckpt", V1.train.SaverDef.V2)
    save(halves, "halves.ckpt", V1.train.SaverDef.V2)
    save(partitioned, "partitioned_v1.ckpt", V1.train.SaverDef.V1)
    save(partitioned, "partitioned_v2.ckpt", V1.train.SaverDef.V2)
    two_shards()
    leveldb_table()


if __name__ == "__main__":
    main()
