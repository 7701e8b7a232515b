"""The ModelZoo's export.py: which of its settings mean something to `inception-v4 export`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inception_v4.settings.addresses import is_address
from inception_v4.settings.dialects.modelzoo import behind
from inception_v4.settings.dialects.rules import NO_EFFECT, DialectError, Outcome, one_number, plain, shown, switch

FILE_FORMATS = {"MINDIR": ("mindir", ".mindir"), "AIR": ("air", ".air"), "ONNX": ("onnx", ".onnx")}
"""Word of the ModelZoo: (format here, suffix)."""

READ = ("ckpt_file", "file_name", "file_format", "width", "height", "num_classes", "device_target")
"""What the ModelZoo's export.py looks at; device_target matters to AIR alone, which Ascend makes."""

OF_THE_JOB = ("enable_modelarts", "checkpoint_url", "load_path", "output_path", "train_url")
"""What its wrapper looks at on ModelArts."""


def translate_export(given: Mapping[str, Any]) -> Outcome:
    """Arguments of an export by our names (source, output, format, image_size, num_classes), and notices.

    Raises:
        DialectError: a value that cannot be had.
    """
    known = {name: given[name] for name in READ if plain(given.get(name)) is not None}
    found: dict[str, Any] = {}
    job = switch("enable_modelarts", given.get("enable_modelarts"))
    if "ckpt_file" in known:
        found["source"] = known["ckpt_file"]
        if job and plain(given.get("checkpoint_url")):
            found["source"] = behind(given["checkpoint_url"], known["ckpt_file"], given.get("load_path"))
    if "num_classes" in known:
        found["num_classes"] = int(one_number("num_classes", known["num_classes"]) or 0)
    if "file_format" in known:
        word = str(known["file_format"]).upper()
        if word not in FILE_FORMATS:
            raise DialectError(f"file_format={shown(known['file_format'])}: choose one of {', '.join(FILE_FORMATS)}")
        found["format"], suffix = FILE_FORMATS[word]
        name = str(known.get("file_name", "inceptionv4"))
        found["output"] = name if Path(name).suffix == suffix else name + suffix
        if job:
            found["output"] = _of_the_job(given, found["output"])
    sides = {int(one_number(name, known[name]) or 0) for name in ("width", "height") if name in known}
    if len(sides) > 1:
        raise DialectError(f"width and height are {' and '.join(map(str, sorted(sides)))}: the input is square")
    if sides:
        found["image_size"] = sides.pop()
    idle = [name for name in given if name not in READ + (OF_THE_JOB if job else ())]
    return found, [f"{', '.join(idle)}{NO_EFFECT}an export does not depend on it"] if idle else []


def _of_the_job(given: Mapping[str, Any], output: str) -> str:
    """Where the job's code would leave the file: in output_path, which is copied to train_url."""
    folder = plain(given.get("train_url")) or plain(given.get("output_path")) or "/cache/train"
    return output if is_address(output) or output.startswith("/") else f"{str(folder).rstrip('/')}/{output}"
