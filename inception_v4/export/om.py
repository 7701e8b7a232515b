"""Offline models (.om) for Ascend chips: the command line of ATC, CANN's compiler, and its preprocessing (AIPP)."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from inception_v4.console import progress
from inception_v4.preprocessing import Preprocessing

PRECISION_MODES = ("force_fp16", "allow_fp32_to_fp16", "must_keep_origin_dtype", "allow_mix_precision")


class AtcError(RuntimeError):
    """ATC is missing or failed; one line with the remedy."""


@dataclass(frozen=True)
class OmTarget:
    """What an offline model is compiled for.

    Attributes:
        soc_version: the chip as ATC calls it, such as Ascend310P3 or Ascend910B3.
        batch_size: the only one that the model takes.
        aipp: the model takes uint8 RGB pictures and normalises them in the chip's preprocessing unit.
        precision_mode: one of `PRECISION_MODES`. By default float16 on the inference chips (310, 310B, 310P), whose
            matrix unit has no float32, and the network's own float32 on the others.
    """

    soc_version: str
    batch_size: int = 1
    aipp: bool = False
    precision_mode: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"Ascend\d+\w*", self.soc_version):
            raise ValueError(
                f"soc_version {self.soc_version!r} is no chip: give Ascend and the name that `npu-smi info` shows, "
                "such as Ascend310P3"
            )
        if self.precision_mode not in (None, *PRECISION_MODES):
            raise ValueError(f"precision_mode {self.precision_mode!r} is not one of {', '.join(PRECISION_MODES)}")

    @property
    def precision(self) -> str:
        """The precision mode, with its default filled in."""
        usual = "force_fp16" if self.soc_version.startswith("Ascend310") else "must_keep_origin_dtype"
        return self.precision_mode or usual


def aipp_config(preprocessing: Preprocessing) -> str:
    """Static AIPP for uint8 RGB pictures [N, S, S, 3] that are already resized and cropped.

    AIPP computes (pixel - min_chn) * var_reci_chn on the 0-255 scale.
    """
    lines = [
        "aipp_mode: static",
        "related_input_rank: 0",
        "input_format: RGB888_U8",
        f"src_image_size_w: {preprocessing.image_size}",
        f"src_image_size_h: {preprocessing.image_size}",
        "csc_switch: false",
        "rbuv_swap_switch: false",
        *(f"mean_chn_{i}: 0" for i in range(3)),
        *(f"min_chn_{i}: {255 * mean:.10g}" for i, mean in enumerate(preprocessing.mean)),
        *(f"var_reci_chn_{i}: {1 / (255 * std):.10g}" for i, std in enumerate(preprocessing.std)),
    ]
    return "aipp_op {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def atc_command(onnx: Path, output: Path, target: OmTarget, *, image_size: int, aipp: Path | None = None) -> list[str]:
    """ATC's command line for an ONNX file whose input is `image`.

    Args:
        output: the .om file.
        image_size: side of the input in pixels.
        aipp: configuration file from `aipp_config`.
    """
    return [
        "atc",
        "--framework=5",
        f"--model={onnx}",
        f"--output={output.with_suffix('')}",  # ATC adds .om
        "--input_format=NCHW",
        f"--input_shape=image:{target.batch_size},3,{image_size},{image_size}",
        f"--soc_version={target.soc_version}",
        f"--precision_mode={target.precision}",
        "--output_type=FP32",
        *([f"--insert_op_conf={aipp}"] if aipp else []),
        "--log=error",
    ]


def run_atc(command: list[str], output: Path) -> None:
    """Run `command` from `atc_command`; it must leave `output`.

    Raises:
        AtcError: ATC is not installed, failed, or left no file.
    """
    if shutil.which(command[0]) is None:
        raise AtcError(
            "atc is not on PATH; it comes with the CANN toolkit: run `source "
            "/usr/local/Ascend/ascend-toolkit/set_env.sh` where that is installed"
        )
    # ATC leaves logs and caches where it runs.
    with tempfile.TemporaryDirectory() as scratch, progress("compiling with ATC (some minutes)"):
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
    if done.returncode or not output.is_file():
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in said if re.match(r"E[0-9A-Z]\d{4}", line)] or said[-1:]
        reason = " ".join(errors)[:400] or "it said nothing"
        raise AtcError(f"atc ended with code {done.returncode} ({reason}); command: {shlex.join(command)}")
