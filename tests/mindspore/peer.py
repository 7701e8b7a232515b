"""What the real MindSpore and MindCV do; run by MindSpore's Python, one command per process.

python peer.py logits LAYOUT FILE IMAGES.npy OUT.npz      load strictly, run
python peer.py train DIRECTORY                            checkpoints of short trainings, and their parameters
python peer.py step FILE IMAGES.npy LABELS.npy OUT.npz    load weights and Momentum's state, one step
python peer.py save FILE DIRECTORY                        save a loaded file again in MindSpore's variants
python peer.py memory FILE OUT.npy                        load beside a full page cache, before and after the remedy
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"  # MindSpore's convolutions on AVX-512 are 100 times slower without

import mindspore as ms
import numpy as np
from mindcv.models import create_model
from mindcv.models.inceptionv4 import BasicConv2d
from mindcv.utils import create_trainer
from mindspore import nn
from mindspore.dataset import GeneratorDataset
from mindspore.train import CheckpointConfig, Model, ModelCheckpoint

CLASSES = 10
WORKER = Path(__file__).parents[2] / "inception_v4" / "export" / "mindir_worker.py"


class ModelZoo(nn.Cell):
    """The ModelZoo's structure: MindCV's blocks made of `Conv2dBnAct`, a BatchNorm on each side of the classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = create_model("inception_v4", num_classes=classes).features
        _replace_units(self.features)
        self.bn0 = nn.BatchNorm1d(1536, eps=1e-3, momentum=0.1)
        self.dropout = nn.Dropout(p=0.8)
        self.softmax = nn.DenseBnAct(1536, classes, has_bias=True, has_bn=True, activation="logsoftmax")

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.softmax(self.dropout(self.bn0(self.features(x).mean((2, 3)))))


class Unit(nn.Cell):
    """A convolution unit whose parameters are `conv.conv.weight` and `conv.batchnorm.*`; epsilon 1e-5."""

    def __init__(self, like: BasicConv2d) -> None:
        super().__init__()
        conv = like.conv
        options = {"pad_mode": conv.pad_mode, "padding": conv.padding, "has_bn": True, "activation": "relu"}
        self.conv = nn.Conv2dBnAct(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, **options)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.conv(x)


def _replace_units(cell: nn.Cell) -> None:
    """Put a `Unit` in the place of each of MindCV's below `cell`."""
    for name, child in list(cell.name_cells().items()):
        if not isinstance(child, BasicConv2d):
            _replace_units(child)
        elif isinstance(cell, nn.SequentialCell):
            cell[int(name)] = Unit(child)
        else:
            setattr(cell, name, Unit(child))


def build(layout: str, classes: int) -> nn.Cell:
    """The network of a layout, its parameters named by their place."""
    network = ModelZoo(classes) if layout == "modelzoo" else create_model("inception_v4", num_classes=classes)
    for name, parameter in network.parameters_and_names():
        parameter.name = name
    return network


def logits(layout: str, file: str, images: str, out: str) -> None:
    tensors = ms.load_checkpoint(file, format="safetensors" if file.endswith(".safetensors") else "ckpt")
    head = "softmax.dense.bias" if layout == "modelzoo" else "classifier.bias"
    network = build(layout, tensors[head].shape[0])
    left = ms.load_param_into_net(network, tensors, strict_load=True)
    outputs = network.set_train(False)(ms.Tensor(np.load(images))).asnumpy()
    np.savez(out, logits=outputs, parameters=len(list(network.get_parameters())), left=np.array(left[0] + left[1], str))


def save(file: str, directory: str) -> None:
    """The same network in every variant that `mindspore.save_checkpoint` has."""
    tensors = ms.load_checkpoint(file)
    network = build("mindcv", tensors["classifier.bias"].shape[0])
    ms.load_param_into_net(network, tensors, strict_load=True)
    ms.save_checkpoint(network, f"{directory}/plain.ckpt")
    ms.save_checkpoint(network, f"{directory}/crc.ckpt", crc_check=True)
    ms.save_checkpoint(network, f"{directory}/plain.safetensors", format="safetensors")
    for name, kind in {"half": ms.float16, "bfloat": ms.bfloat16}.items():
        cast = [{"name": n, "data": ms.Tensor(t.asnumpy()).astype(kind)} for n, t in tensors.items()]
        ms.save_checkpoint(cast, f"{directory}/{name}.ckpt")


def train(directory: str) -> None:
    """One step of Model.train for each optimizer, and of MindCV's trainer with a moving average."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((4, 3, 75, 75)).astype(np.float32)
    labels = generator.integers(0, CLASSES, 4).astype(np.int32)
    loss = nn.CrossEntropyLoss()
    makers = {
        "momentum": ("mindcv", lambda p: nn.Momentum(p, 0.01, 0.9)),
        "rmsprop": ("modelzoo", lambda p: nn.RMSProp(p, 0.01, epsilon=1.0, momentum=0.9, centered=True)),
        "ema": ("mindcv", lambda p: nn.Momentum(p, nn.cosine_decay_lr(0.0, 0.01, 100, 10, 10), 0.9)),
    }
    for name, (layout, make) in makers.items():
        ms.set_seed(1)
        network = build(layout, CLASSES)
        optimizer = make(network.trainable_params())
        data = GeneratorDataset(list(zip(images, labels, strict=True)), ["image", "label"], shuffle=False).batch(2)
        model = Model(network, loss, optimizer)
        if name == "ema":
            model = create_trainer(network, loss, optimizer, set(), "O0", None, "fixed", 1024.0, False, True, 0.9)
        config = CheckpointConfig(
            save_checkpoint_steps=1, keep_checkpoint_max=1, append_info=["epoch_num", {"note": "ü"}]
        )
        callback = ModelCheckpoint(prefix=name, directory=directory, config=config)
        model.train(1, data, callbacks=[callback], dataset_sink_mode=False)
        held = model.train_network if name == "ema" else network
        np.savez(f"{directory}/{name}.npz", **{p.name: p.asnumpy() for p in held.get_parameters()})


def step(file: str, images: str, labels: str, out: str) -> None:
    """One step of Momentum from a file with optimizer state, BatchNorm's statistics held still, then one forward pass
    that moves them: loss, parameters, moments and statistics after both."""
    tensors = ms.load_checkpoint(file)
    network = build("mindcv", tensors["classifier.bias"].shape[0])
    network.dropout = nn.Identity()
    # As a group: a bare list would leave gamma and beta out of the decay.
    group = {"params": network.trainable_params(), "weight_decay": 4e-5}
    optimizer = nn.Momentum([group], 0.01, 0.9)
    missing_in_network, _ = ms.load_param_into_net(network, tensors, strict_load=True)
    missing_in_optimizer, _ = ms.load_param_into_net(optimizer, tensors, strict_load=True)
    network.set_train(False)
    criterion = nn.CrossEntropyLoss()
    forward = ms.value_and_grad(lambda x, y: criterion(network(x), y), None, optimizer.parameters)
    loss, gradients = forward(ms.Tensor(np.load(images)), ms.Tensor(np.load(labels).astype(np.int32)))
    optimizer(gradients)
    network.set_train()(ms.Tensor(np.load(images)))
    after = {p.name: p.asnumpy() for p in [*network.get_parameters(), *optimizer.get_parameters()]}
    np.savez(out, loss=loss.asnumpy(), missing=np.array(missing_in_network + missing_in_optimizer, str), **after)


def memory(file: str, out: str) -> None:
    """How many parameters MindSpore reads of a file when nothing but page cache is left: before
    `count_cached_memory`, and after it."""
    sysconf = os.sysconf
    os.sysconf = lambda name: 1 if name == "SC_AVPHYS_PAGES" else sysconf(name)
    counts = []
    for prepare in (lambda: None, runpy.run_path(str(WORKER))["count_cached_memory"]):
        prepare()
        try:
            counts.append(len(ms.load_checkpoint(file)))
        except (RuntimeError, ValueError) as error:
            print(error)
            counts.append(0)
    np.save(out, counts)


if __name__ == "__main__":
    if sys.argv[1] != "memory":
        runpy.run_path(str(WORKER))["count_cached_memory"]()
    {"memory": memory, "logits": logits, "save": save, "train": train, "step": step}[sys.argv[1]](*sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # MindSpore's own shutdown may hang
