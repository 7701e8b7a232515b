"""The runtimes of exported files: ONNX Runtime, OpenVINO and PyTorch's own for `torch.export` and AOTInductor.

Each opens a file as a `Session`: tensors in, tensors out. What the numbers mean is `runtimes`' business.
"""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inception_v4.accelerator import onnx_providers
from inception_v4.weights.files.pt2 import what_would_run
from inception_v4.weights.record import METADATA_KEY


class RuntimeUnavailable(RuntimeError):
    """A runtime, or a device for it, that is not installed here; one line with the remedy."""


class ExportedFileError(ValueError):
    """An exported file that cannot be used, or not in the way that was asked for; one line with the remedy."""


class Session(NamedTuple):
    """An exported file in its runtime.

    Attributes:
        run: a batch as the file takes it to its output, float32.
        description: the JSON under `METADATA_KEY`, or None.
        shape, classes: of its input and output; None where any number fits.
        engine: runtime, version and device, for people.
    """

    run: Callable[[Tensor], Tensor]
    description: str | None
    shape: tuple[int | None, ...]
    classes: int | None
    engine: str


class RuntimeRow(NamedTuple):
    """A row of `RUNTIMES`: suffixes it reads, the host memory or the device it takes batches from, how it opens one."""

    suffixes: tuple[str, ...]
    on_host: bool
    open: Callable[[Path, str], Session]


_REPORTERS = {"openvino": "openvino_telemetry"}
"""What a package reports its use with to its makers, unasked, each time it is imported; without it, it does not."""


def require(package: str, *others: str) -> Any:
    """The optional package, imported; from then on it reports to nobody.

    Raises:
        RuntimeUnavailable: it or one of `others` is not installed.
    """
    try:
        for name in (*others, package):
            if name in _REPORTERS:
                sys.modules.setdefault(_REPORTERS[name], None)  # type: ignore[arg-type]  # none there can be imported
            module = importlib.import_module(name)
        return module
    except ImportError as error:
        names = " ".join((package, *others))
        raise RuntimeUnavailable(
            f"this needs {' and '.join((package, *others))} ({error}): pip install {names}"
        ) from error


def _open_onnx(path: Path, device: str) -> Session:
    ort = require("onnxruntime")
    provider, chosen = _provider(ort.get_available_providers(), device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait for work give the processor to the loader's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    fallback = [] if provider.startswith("CPU") else ["CPUExecutionProvider"]
    session = _opened(path, lambda: ort.InferenceSession(str(path), options, providers=[(provider, chosen), *fallback]))
    if provider not in session.get_providers():
        raise RuntimeUnavailable(
            f"onnxruntime cannot start its {provider} on device {device}: mend its libraries, or use --device cpu"
        )
    image, logits = session.get_inputs()[0], session.get_outputs()[0]
    if image.type not in ("tensor(float)", "tensor(uint8)"):
        raise ExportedFileError(f"{path} takes {image.type}: export it with a float32 input")

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([logits.name], {image.name: images.contiguous().numpy()})[0])

    return Session(
        run,
        session.get_modelmeta().custom_metadata_map.get(METADATA_KEY),
        tuple(n if isinstance(n, int) else None for n in image.shape),
        logits.shape[-1] if isinstance(logits.shape[-1], int) else None,
        f"onnxruntime {ort.__version__}, {provider}{''.join(f', {name} {value}' for name, value in chosen.items())}",
    )


def _provider(available: list[str], device: str) -> tuple[str, dict[str, str]]:
    """The first of a device's providers that the installed build has, and its options."""
    wanted = onnx_providers(device)
    for name, options in wanted:
        if name in available:
            return name, options
    raise RuntimeUnavailable(
        f"this onnxruntime has no {wanted[-1][0]} ({', '.join(available)}): install its build for {device}"
    )


def open_openvino(path: Path, device: str, precision: str = "f32") -> Session:
    """A file in OpenVINO, which computes in `precision` (f32, bf16)."""
    ov = require("openvino")
    if device not in ("auto", "cpu"):
        raise RuntimeUnavailable(f"OpenVINO runs on the CPU here, not on {device}: use --device cpu, or --runtime onnx")
    graph = _opened(path, lambda: ov.Core().read_model(str(path)))
    # Some processors would compute in bfloat16 by default.
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = ov.Core().compile_model(graph, "CPU", settings)
    place = [METADATA_KEY] if path.suffix == ".xml" else ["framework", METADATA_KEY]  # an ONNX file's own metadata

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled(images.contiguous().numpy())[0].copy())

    return Session(
        run,
        _text(graph.get_rt_info(place)) if graph.has_rt_info(place) else None,
        _dimensions(graph.inputs[0]),
        _dimensions(graph.outputs[0])[-1],
        f"openvino {ov.__version__.split('-')[0]}, CPU",
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value.astype(str))


def _dimensions(port: Any) -> tuple[int | None, ...]:
    return tuple(None if n.is_dynamic else n.get_length() for n in port.get_partial_shape())


def _open_pt2(path: Path, device: str) -> Session:
    """A `torch.export` program, or one that AOTInductor has compiled: both are archives with this suffix.

    A program is looked through before PyTorch opens it. A compiled one is machine code, and runs as such.
    """
    if _is_compiled(path):
        package = _opened(path, lambda: torch._inductor.aoti_load_package(str(path)))
        description, run, how = package.get_metadata().get(METADATA_KEY), package, "compiled by AOTInductor"
    else:
        if found := _opened(path, lambda: what_would_run(path)):
            raise ExportedFileError(
                f"{path} is refused, because opening it could run code of its maker ({found}): export it here, from "
                "weights"
            )
        files = {f"{METADATA_KEY}.json": ""}
        program = _opened(path, lambda: torch.export.load(str(path), extra_files=files))
        description, run, how = files[f"{METADATA_KEY}.json"], program.module().to(device), "torch.export"
    return Session(run, description, (), None, f"torch {torch.__version__}, {how}, {device}")


def _is_compiled(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/aotinductor/" in name for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise ExportedFileError(f"{path} cannot be opened (no archive): copy it again, or export it again") from error


def _opened(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:
        # Each runtime has exceptions of its own kind for damaged files.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ExportedFileError(f"{path} cannot be opened ({reason}): copy it again, or export it again") from error


RUNTIMES = {
    "onnx": RuntimeRow((".onnx",), True, _open_onnx),
    "openvino": RuntimeRow((".xml", ".onnx"), True, open_openvino),
    "pt2": RuntimeRow((".pt2",), False, _open_pt2),
}
"""Everything besides PyTorch with a weights file; the first one that reads a suffix is its default."""
