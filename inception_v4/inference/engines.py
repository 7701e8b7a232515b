"""Engines: on a CPU, weights run in the fastest installed runtime, as a graph that is exported once and kept.

Exporting takes some seconds: as long as PyTorch takes for hundreds of pictures. So it is done where that many come, or
where a runtime is asked for by name; after that even a single picture profits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from inception_v4 import __version__
from inception_v4.accelerator import Accelerator
from inception_v4.accelerator.npu import installed
from inception_v4.accelerator.precision import AMP_WORDS, choose_amp
from inception_v4.console import progress, say
from inception_v4.data.normalise import Normalise
from inception_v4.distributed import World
from inception_v4.files import sha256_of
from inception_v4.inference.agreement import BOUNDS, check_pictures, deviation
from inception_v4.inference.engine_cache import KeptEntry, engines_folder, find_entry, key_of, prefix_of, store_entry
from inception_v4.inference.factory import open_model
from inception_v4.inference.network import AUTO, OpenNetwork, is_exported, open_network
from inception_v4.inference.sessions import (
    RUNTIMES,
    ExportedFileError,
    RuntimeUnavailable,
    Session,
    open_openvino,
    require,
)
from inception_v4.network.fusion import fuse
from inception_v4.weights import WeightsInfo
from inception_v4.weights.source import locate

WORTH_EXPORTING = 500
"""Pictures from which on exporting first takes less time than PyTorch alone."""

FORM = "fused 1"
"""What is exported; another number for another graph of the same weights."""


class EngineError(RuntimeError):
    """An engine that cannot run these weights, or computes something else; one line."""


class EngineRow(NamedTuple):
    """A row of `ENGINES`: the packages that it needs, its precisions, and its file: how that is written and opened."""

    packages: tuple[str, ...]
    precisions: tuple[str, ...]
    file: str
    write: Callable[[torch.export.ExportedProgram, Path], None]
    open: Callable[[Path, str], Session]


def _write_ir(program: torch.export.ExportedProgram, path: Path) -> None:
    ov = require("openvino")
    ov.save_model(ov.convert_model(program), str(path), compress_to_fp16=False)


def _write_graph(program: torch.export.ExportedProgram, path: Path) -> None:
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None  # With `dynamo` there is always a program.
    exported.save(str(path), external_data=False)


ENGINES = {
    "openvino": EngineRow(
        ("openvino",), ("off", "bf16"), "graph.xml", _write_ir,
        lambda path, amp: open_openvino(path, "cpu", "bf16" if amp == "bf16" else "f32"),
    ),
    "onnx": EngineRow(
        ("onnxruntime", "onnx", "onnxscript"), ("off",), "graph.onnx", _write_graph,
        lambda path, amp: RUNTIMES["onnx"].open(path, "cpu"),
    ),
}  # fmt: skip
"""What may run weights instead of PyTorch, fastest first."""


def pick_engine(runtime: str, accelerator: Accelerator, amp: str, *, device: str = "auto") -> str | None:
    """The row of `ENGINES` for weights; None for PyTorch.

    Args:
        runtime: from `runtime_for`.
        amp: the precision to compute in.
        device: as `--device`.

    Raises:
        RuntimeUnavailable: the runtime that was asked for is not installed.
        ExportedFileError: it does not compute in this precision, or not on this device.
    """
    if runtime == AUTO:
        if accelerator.type != "cpu" or (amp != "off" and accelerator.amp_support(amp) != "native"):
            return None
        return next((name for name, row in ENGINES.items() if amp in row.precisions and not _missing(row)), None)
    if runtime not in ENGINES:
        return None
    row = ENGINES[runtime]
    if missing := _missing(row):
        raise RuntimeUnavailable(f"--runtime {runtime} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if device.partition(":")[0] not in ("auto", "cpu"):
        raise ExportedFileError(f"--runtime {runtime} runs weights on the CPU, not on {device}: use --runtime torch")
    if amp not in row.precisions:
        raise ExportedFileError(
            f"--runtime {runtime} computes in {' or '.join(AMP_WORDS[name] for name in row.precisions)}, not in "
            f"{AMP_WORDS[amp]}: use --amp {row.precisions[-1]}, or --runtime torch"
        )
    return runtime


def precision_for(source: str, runtime: str, accelerator: Accelerator, amp: str) -> tuple[str, str]:
    """`amp`, with a choice and its reason in place of "auto": an exported file and some runtimes have one type only."""
    if amp == "auto" and is_exported(source):
        return "off", ""
    chosen, reason = choose_amp(accelerator, amp)
    if amp == "auto" and runtime in ENGINES and chosen not in ENGINES[runtime].precisions:
        return "off", f"as --runtime {runtime} computes"
    return chosen, reason


def _missing(row: EngineRow) -> list[str]:
    return [name for name in row.packages if importlib.util.find_spec(name) is None]


@dataclass(frozen=True)
class Wanted:
    """How a network is to run.

    Attributes:
        runtime: from `runtime_for`.
        device: as `--device`.
        amp: off, bf16 or fp16.
        image_size: side of the input; None: as the weights say.
        num_classes: must equal the weights' when given.
        channels_last: memory format in PyTorch; None is what the device likes.
        cache: whether weights may be exported into the user's cache.
    """

    runtime: str
    device: str = "auto"
    amp: str = "off"
    image_size: int | None = None
    num_classes: int | None = None
    channels_last: bool | None = None
    cache: bool = True


class Opener:
    """Opens weights or an exported file in the fastest way that `wanted` allows. All processes of `world` alike.

    Raises:
        RuntimeUnavailable, ExportedFileError: the runtime that was asked for is missing, or cannot do this.
    """

    def __init__(self, source: str, accelerator: Accelerator, wanted: Wanted, *, world: World = World()) -> None:  # noqa: B008
        self._source, self._accelerator, self._wanted, self._world = source, accelerator, wanted, world
        self._by_name = wanted.runtime != AUTO
        self._root = engines_folder()
        engine = None
        if not is_exported(source):
            engine = pick_engine(wanted.runtime, accelerator, wanted.amp, device=wanted.device)
        self._engine = engine
        if self._engine and self._located.path.suffix == ".index":
            if self._by_name:
                raise ExportedFileError(f"{source} is a checkpoint of several files: convert it first")
            self._engine = None

    def open(self) -> OpenNetwork:
        """The exported file, the engine that was asked for or is kept from before, or PyTorch."""
        if self._engine is None:
            return self._without_engine()
        network = self._attempt(self._make if self._by_name else self._kept)
        return network or self._without_engine()

    def for_many(self, network: OpenNetwork, pictures: int) -> OpenNetwork:
        """`network`, or an engine that is made now, where so many pictures are worth it."""
        if self._engine is None or network.fixed_amp or pictures < WORTH_EXPORTING:
            return network
        return self._attempt(self._make) or network

    def _attempt(self, get: Callable[[], OpenNetwork | None]) -> OpenNetwork | None:
        """The engine, if every process has it."""
        network = None
        try:
            network = get()
        except Exception as error:  # Exporters and runtimes have exceptions of many kinds.
            if self._by_name:
                raise
            say(f"{self._engine} cannot run {self._source} ({' '.join(str(error).split())[:200]}): PyTorch does")
        return None if self._world.any(network is None) else network

    def _without_engine(self) -> OpenNetwork:
        wanted = self._wanted
        network = open_network(
            self._source, self._accelerator, runtime=wanted.runtime, device=wanted.device,
            num_classes=wanted.num_classes, channels_last=wanted.channels_last,
        )  # fmt: skip
        if network.signature is None:
            network.engine = f"PyTorch, {network.engine}, {AMP_WORDS[wanted.amp]}"
        return network

    @cached_property
    def _located(self) -> Any:
        return locate(self._source)

    @cached_property
    def _key(self) -> str:
        wanted, row = self._wanted, ENGINES[self._engine or ""]
        programs = {name: installed(name) for name in ("torch", *row.packages)}
        return prefix_of(self._located.path) + key_of(
            weights=sha256_of(self._located.path), beside=self._located.beside, form=FORM, package=__version__,
            programs=programs, cpu=torch.backends.cpu.get_cpu_capability(), engine=self._engine,
            wanted=[wanted.amp, wanted.image_size, wanted.num_classes],
        )  # fmt: skip

    def _kept(self) -> OpenNetwork | None:
        if not any(self._root.glob(f"{prefix_of(self._located.path)}*")):
            return None
        entry = find_entry(self._root, self._key)
        return None if entry is None else self._opened(entry)

    def _make(self) -> OpenNetwork:
        with progress(f"exporting {self._source} for {self._engine}, once (some seconds)"):
            return self._opened(store_entry(self._root, self._key, self._write))

    def _opened(self, entry: KeptEntry) -> OpenNetwork:
        row, amp = ENGINES[self._engine or ""], self._wanted.amp
        session = row.open(entry.folder / row.file, amp)
        info = WeightsInfo.from_dict(entry.about["info"])
        engine = f"{session.engine}, {AMP_WORDS[amp]}"
        messages = [str(message) for message in entry.about["messages"]]
        return OpenNetwork(session.run, info, self._accelerator, engine, messages, fixed_amp=amp)

    def _write(self, folder: Path) -> dict[str, Any]:
        """Export into a folder and compare with PyTorch in float32."""
        row, wanted = ENGINES[self._engine or ""], self._wanted
        opened = open_model(self._located, num_classes=wanted.num_classes)
        info = opened.info.replace(preprocessing=opened.info.preprocessing.replace(image_size=wanted.image_size))
        network = fuse(opened.model, join=False)
        images = Normalise(info.preprocessing)(check_pictures(info))
        with torch.no_grad():
            expected = network(images)
            batch = {0: torch.export.Dim("batch")}
            row.write(torch.export.export(network, (images[:2],), dynamic_shapes=(batch,)), folder / row.file)
        session = row.open(folder / row.file, wanted.amp)
        gap = deviation(expected, torch.cat([session.run(images[:1]), session.run(images[1:])]))
        if not gap <= BOUNDS[wanted.amp]:
            raise EngineError(f"its outputs are {gap:.1e} away from PyTorch's, more than {BOUNDS[wanted.amp]:.0e}")
        return {"info": info.to_dict(), "messages": opened.messages, "deviation": gap}
