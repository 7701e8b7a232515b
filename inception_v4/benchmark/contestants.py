"""What a benchmark compares: this network in its forms, and other programs' with the same weights.

Every contestant computes the same function on the same pictures, so that its output can be compared as well as its
time. For training the step is a whole one: forward, loss, backward and the paper's RMSProp.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inception_v4.accelerator import Accelerator
from inception_v4.export.formats import FORMATS
from inception_v4.export.plan import Plan
from inception_v4.export.quantization import quantize
from inception_v4.export.target import Target
from inception_v4.inference.network import Signature
from inception_v4.inference.sessions import require
from inception_v4.network.fusion import fuse
from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import Preprocessing
from inception_v4.training.optim import RMSpropTF
from inception_v4.weights import WeightsInfo

NUM_CLASSES = 1000

TORCH_TYPES = {
    "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8,
}  # fmt: skip
"""Precisions by name; tf32 is float32 with shortened products where the device has them (TF32, HF32)."""

Pass = Callable[[], Tensor]
"""One forward pass or one training step; gives logits [B, 1000], or the loss."""


@dataclass(frozen=True)
class Entry:
    """A form of the network in a precision."""

    form: str
    precision: str


class Setup:
    """What the contestants of a group share: weights with live signals, pictures, and files exported once.

    Args:
        task: `infer` or `train`.
        batch_size: pictures per pass.
        image_size: side of the input in pixels.

    Attributes:
        spared: seconds that exporting would have taken the contestant at hand, had no earlier one done it.
    """

    def __init__(self, accelerator: Accelerator, *, task: str, batch_size: int, image_size: int) -> None:
        self.accelerator, self.task = accelerator, task
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(batch_size, 3, image_size, image_size, generator=generator)
        self.labels = torch.randint(NUM_CLASSES, (batch_size,), generator=generator)
        self.spared = 0.0
        self._files: dict[str, tuple[Path, float]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="inception-v4-benchmark-")

    def close(self) -> None:
        """Delete the exported files."""
        self._folder.cleanup()

    @cached_property
    def network(self) -> InceptionV4:
        """In evaluation mode on the CPU. With default weights the signal dies out on its way through the network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = InceptionV4(NUM_CLASSES, drop_rate=0.0)
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        return model.eval()

    @cached_property
    def timm(self) -> nn.Module:
        """timm's network with the same weights."""
        model = require("timm").create_model("inception_v4", num_classes=NUM_CLASSES)
        model.load_state_dict(self.network.state_dict())
        return model.eval()

    def share(self, form: Form) -> None:
        """Have what contestants share before the clock of the next one runs."""
        self.spared = 0.0
        networks = (self.network, self.timm) if form.peer else (self.network,)
        assert all(not network.training for network in networks)

    def file(self, name: str) -> Path:
        """An exported file, made once: `fused`, `timm`, or `int8`."""
        if name in self._files:
            path, seconds = self._files[name]
            self.spared += seconds
            return path
        spared, started = self.spared, time.perf_counter()
        path = Path(self._folder.name) / f"{name}.onnx"
        {"fused": self._write_fused, "timm": self._write_timm, "int8": self._write_int8}[name](path)
        self._files[name] = path, time.perf_counter() - started + self.spared - spared
        return path

    def _write_fused(self, path: Path) -> None:
        """This project's export."""
        info = WeightsInfo(
            num_classes=NUM_CLASSES, preprocessing=Preprocessing(image_size=self.images.shape[-1]), source="benchmark"
        )
        # Like timm's file for this batch size only.
        signature = Signature(batch_size=len(self.images))
        FORMATS["onnx"].write(Plan(self.network, info, signature, Target()), path)

    def _write_timm(self, path: Path) -> None:
        """timm's network as PyTorch exports it."""
        require("onnx", "onnxscript")
        # The shapes of this group only: nothing slows the file's runtimes down.
        torch.onnx.export(self.timm, (self.images,), str(path), dynamo=True, verbose=False)

    def _write_int8(self, path: Path) -> None:
        """This project's export with 8-bit convolutions, calibrated on the pictures of the group."""
        quantize(self.file("fused"), path, [self.images])


class Form(NamedTuple):
    """How a contestant is built, for which tasks and precisions; is it someone else's, in torch, compiled by torch?"""

    tasks: tuple[str, ...]
    precisions: tuple[str, ...]
    build: Callable[[Setup, str], Pass]
    peer: bool = False
    torch: bool = True
    compiles: bool = False


def in_pytorch(
    network: str,
    *,
    channels_last: bool | None = None,
    compiled: bool = False,
    graphs: bool = False,
    frugal: bool = False,
) -> Callable[[Setup, str], Pass]:
    """A builder of a contestant in PyTorch.

    Args:
        network: `timm`, `plain` or `fused`.
        channels_last: memory format; None is what the device likes.
        compiled: by `torch.compile`.
        graphs: recorded as a graph that the device replays (CUDA graphs); implies `compiled`.
        frugal: with activation checkpointing.
    """

    def build(setup: Setup, precision: str) -> Pass:
        layout = setup.accelerator.memory_format(channels_last)
        model: Any = copy.deepcopy(setup.timm if network == "timm" else setup.network)
        if network == "fused":
            model = fuse(model)
        if frugal:
            model.set_grad_checkpointing()
        if setup.task == "train":
            model.to(setup.accelerator.device).to(memory_format=layout).train()
            compute = _compiled(model, graphs=graphs) if compiled or graphs else model
            return _training_step(setup, model, compute, precision, theirs=network == "timm", layout=layout)
        dtype = TORCH_TYPES[precision]
        model = model.to(setup.accelerator.device, dtype).to(memory_format=layout)
        images = setup.images.to(setup.accelerator.device, dtype).contiguous(memory_format=layout)
        compute = _compiled(model, graphs=graphs) if compiled or graphs else model

        @torch.no_grad()
        def forward() -> Tensor:
            return compute(images)

        if compiled or graphs:
            from torch._inductor import config

            # Frozen: weights are constants, so that they are laid out for the kernels once. It counts at the first
            # pass, which compiles; among the options of torch.compile it has no effect.
            with config.patch(freezing=True):
                forward()
        return forward

    return build


def _compiled(model: nn.Module, *, graphs: bool) -> Any:
    from torch._dynamo import config

    # For this batch size alone, as the files of other runtimes are; and never silently not compiled at all.
    config.recompile_limit, config.fail_on_recompile_limit_hit = 64, True
    return torch.compile(model, dynamic=False, options={"triton.cudagraphs": graphs})


def _training_step(
    setup: Setup, model: nn.Module, compute: Any, precision: str, *, theirs: bool, layout: torch.memory_format
) -> Pass:
    accelerator = setup.accelerator
    optimizer_class: Any = require("timm.optim").RMSpropTF if theirs else RMSpropTF
    optimizer = optimizer_class(model.parameters(), lr=1e-4, alpha=0.9, eps=1.0, momentum=0.9)
    dtype = None if TORCH_TYPES[precision] is torch.float32 else TORCH_TYPES[precision]
    scaler = accelerator.grad_scaler(dtype, "dynamic")
    images = setup.images.to(accelerator.device).contiguous(memory_format=layout)
    labels = setup.labels.to(accelerator.device)

    def step() -> Tensor:
        with accelerator.autocast(dtype):
            logits = compute(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    return step


def in_onnxruntime(*, own: bool) -> Callable[[Setup, str], Pass]:
    """A builder of a contestant in ONNX Runtime, with its default settings, on timm's file or this project's."""

    def build(setup: Setup, precision: str) -> Pass:
        ort = require("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = ort.InferenceSession(str(_file(setup, precision, own)), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: setup.images.numpy()}
        return lambda: torch.from_numpy(session.run(None, feed)[0])

    return build


def in_openvino(*, own: bool) -> Callable[[Setup, str], Pass]:
    """A builder of a contestant in OpenVINO, as above."""

    def build(setup: Setup, precision: str) -> Pass:
        ov = require("openvino")
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = ov.Core()
        graph = core.read_model(str(_file(setup, precision, own)))
        graph.reshape(list(setup.images.shape))
        compiled = core.compile_model(graph, "CPU", settings)
        images = setup.images.numpy()
        return lambda: torch.from_numpy(compiled(images)[0])

    return build


def _file(setup: Setup, precision: str, own: bool) -> Path:
    if setup.accelerator.type != "cpu":
        raise ValueError(f"it runs on the CPU, and the others on {setup.accelerator.type}: give --device cpu")
    return setup.file("int8" if precision == "int8" else "fused" if own else "timm")


BOTH, INFER, TRAIN = ("infer", "train"), ("infer",), ("train",)
FLOATS = ("fp32", "tf32", "bf16", "fp16")

FORMS: dict[str, Form] = {
    "timm": Form(BOTH, FLOATS, in_pytorch("timm", channels_last=False), peer=True),
    "timm channels_last": Form(BOTH, FLOATS, in_pytorch("timm", channels_last=True), peer=True),
    "timm compiled": Form(BOTH, FLOATS, in_pytorch("timm", compiled=True), compiles=True, peer=True),
    "timm graphs": Form(INFER, FLOATS, in_pytorch("timm", graphs=True), compiles=True, peer=True),
    "onnxruntime": Form(INFER, ("fp32",), in_onnxruntime(own=False), peer=True, torch=False),
    "openvino": Form(INFER, ("fp32", "bf16"), in_openvino(own=False), peer=True, torch=False),
    "plain": Form(BOTH, FLOATS, in_pytorch("plain")),
    "plain compiled": Form(BOTH, FLOATS, in_pytorch("plain", compiled=True), compiles=True),
    "plain checkpointing": Form(TRAIN, FLOATS, in_pytorch("plain", frugal=True)),
    "fused": Form(INFER, FLOATS, in_pytorch("fused")),
    "fused compiled": Form(INFER, FLOATS, in_pytorch("fused", compiled=True), compiles=True),
    "fused graphs": Form(INFER, FLOATS, in_pytorch("fused", graphs=True), compiles=True),
    "fused in onnxruntime": Form(INFER, ("fp32", "int8"), in_onnxruntime(own=True), torch=False),
    "fused in openvino": Form(INFER, ("fp32", "bf16", "int8"), in_openvino(own=True), torch=False),
}
"""Contestants by the name that tables show; the first is what the others are compared with."""
