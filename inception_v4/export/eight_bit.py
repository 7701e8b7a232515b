"""The 8-bit form of weights, made once and kept beside them: what `predict --int8` and `validate --int8` run."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from inception_v4 import __version__
from inception_v4.accelerator.npu import installed
from inception_v4.data.folders import picture_files
from inception_v4.data.labelled import Source
from inception_v4.data.sources import open_source
from inception_v4.distributed import World
from inception_v4.export.exporting import export_model
from inception_v4.export.target import ExportError, Target
from inception_v4.files import sha256_of
from inception_v4.inference.engine_cache import engines_folder, find_entry, key_of, store_entry
from inception_v4.inference.network import is_exported
from inception_v4.inference.sessions import RuntimeUnavailable
from inception_v4.settings.addresses import is_address
from inception_v4.settings.recipes import load_config
from inception_v4.storage.fetch import local_copy
from inception_v4.weights.source import Located, locate

_FILES = {"openvino": "network.xml", "onnx": "network.onnx"}
_FOLDER = "int8"
EIGHT_BIT_PACKAGES = {
    "openvino": ("openvino", "onnx", "onnxscript", "onnxruntime"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
"""What each runtime needs to make the file and to run it: ONNX Runtime has the quantizer of both."""


def eight_bit_file(source: str, *, runtime: str, pictures: str | None, image_size: int | None) -> tuple[str, list[str]]:
    """The 8-bit file of weights, and lines for people about it.

    Args:
        runtime: "openvino" or "onnx"; "auto": the first that is installed.
        pictures: folder to take the ranges of activations from; None: the training pictures of the weights' run.
        image_size: side of the input; None: as the weights say.

    Raises:
        ExportError: `source` is no weights, its run's pictures are not known or not there, or 8 bits are too few.
        RuntimeUnavailable: neither runtime is installed.
    """
    if is_exported(source):
        raise ExportError(f"--int8 {source}: this is an exported file already: give the weights, or leave --int8 out")
    runtime = _installed(runtime)
    name = _FILES[runtime]
    located = locate(source)
    given = None if pictures is None else Path(local_copy(pictures)).resolve()
    programs = {package: installed(package) for package in ("torch", *EIGHT_BIT_PACKAGES[runtime])}
    key = key_of(
        weights=sha256_of(located.path), beside=located.beside, package=__version__, programs=programs, file=name,
        cpu=torch.backends.cpu.get_cpu_capability(), pictures=_stamp(given, located), image_size=image_size,
    )  # fmt: skip
    root = _place(source, located)
    entry = find_entry(root, key)
    if entry is None:
        chosen = pictures or _training_pictures(located)

        def write(folder: Path) -> dict[str, Any]:
            report = export_model(located, folder / name, Target(calibrate=chosen, image_size=image_size))
            if not report.passed:
                raise ExportError(f"{source} in 8 bits is too far from the network ({'; '.join(report.checks)})")
            return {"checks": report.checks, "pictures": pictures or "the run's training pictures"}

        entry = store_entry(root, key, write)
    checks = "; ".join(map(str, entry.about["checks"]))
    line = f"8-bit convolutions, ranges from {entry.about['pictures']}: {checks} (kept in {entry.folder})"
    return str(entry.folder / name), [line]


def _installed(runtime: str) -> str:
    if runtime not in (*EIGHT_BIT_PACKAGES, "auto"):
        raise ExportError(f"--int8 with --runtime {runtime}: 8 bits are computed by openvino and onnx")
    wanted = EIGHT_BIT_PACKAGES if runtime == "auto" else {runtime: EIGHT_BIT_PACKAGES[runtime]}
    missing = {
        name: [package for package in packages if find_spec(package) is None] for name, packages in wanted.items()
    }
    for name, packages in missing.items():
        if not packages:
            return name
    least = min(missing.values(), key=len)
    raise RuntimeUnavailable(f"--int8 needs {' and '.join(least)}: pip install {' '.join(least)}")


def _stamp(folder: Path | None, located: Located) -> list[Any]:
    """Which pictures ranges are taken from: names, sizes and times in a folder, the settings of a run."""
    if folder is None:
        settings = _settings_beside(located)
        return [sha256_of(settings)] if settings.is_file() else []
    files = sorted((file, os.stat(file)) for file in picture_files(folder))
    return [str(folder), *([file, at.st_size, at.st_mtime_ns] for file, at in files)]


def _settings_beside(located: Located) -> Path:
    return located.path.parent / "config.yaml"


def _place(source: str, located: Located) -> Path:
    """Beside the weights; in the user's cache where they are somebody else's, or from elsewhere."""
    folder = located.path.parent
    ours = located.origin == str(located.path) and not is_address(source) and os.access(folder, os.W_OK)
    return folder / _FOLDER if ours else engines_folder()


def _training_pictures(located: Located) -> Source:
    settings = _settings_beside(located)
    if not settings.is_file():
        raise ExportError(
            f"--int8 takes ranges from pictures, and {located.origin} has no run beside it that says which: "
            "give --calibration FOLDER"
        )
    config, _ = load_config(settings)
    try:
        several = config.training.several
        return open_source(config.data, "train", world=World(), seed=config.run.seed, several=several)
    except OSError as error:
        raise ExportError(
            f"--int8: the run's training pictures are gone ({error}): give --calibration FOLDER"
        ) from error
