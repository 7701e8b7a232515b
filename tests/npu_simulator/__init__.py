"""A simulated `npu` device and a stand-in for torch-npu, to run this project's commands where no Ascend is.

What it shows: that the host code is right. Devices are found and chosen, tensors are where they should be, nothing
is asked of the device that torch-npu refuses (channels-last, tensors of two devices in one operation, float64 over
HCCL, bf16 on the first Ascend 910, the conditions of the fused optimizers), and the results are the CPU's.
What it cannot show: anything about Ascend's own kernels, their precision, speed, memory or compilers, about HCCL on a
network, about overlapping streams (every operation is finished when its call returns), nor about code in the real
torch-npu; tests/accelerator/test_npu_wheel.py compares names and keywords with that.

`device.cpp` and `hccl.cpp` are compiled once (half a minute) into the user's cache. The environment of a simulated
process: NPU_SIMULATOR_DEVICES (number, default 1), NPU_SIMULATOR_CHIP (default Ascend910B3), NPU_SIMULATOR_CANN
(0: torch-npu cannot be imported).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("device.cpp", "hccl.cpp")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inception-v4-tests"
"""The user's, read before the tests turn to one of their own: building takes half a minute."""


def missing() -> str | None:
    """Why the simulator cannot be built here; None when it can."""
    if sys.platform != "linux":
        return "the simulated NPU is built on Linux only"
    return None if shutil.which("g++") else "the simulated NPU needs g++ to be built"


def build() -> Path:
    """The folder with the compiled parts and torch-npu's metadata; compiled where it is not there yet."""
    import torch

    key = hashlib.sha256(f"{torch.__version__} {sys.implementation.cache_tag}".encode())
    for name in (*SOURCES, "__init__.py"):
        key.update((HERE / name).read_bytes())
    target = CACHE / f"npu-simulator-{key.hexdigest()[:16]}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent))
        _compile(work)
        _describe(work, torch.__version__.split("+")[0])
        try:
            work.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(work)
    return target


def environment(**settings: object) -> dict[str, str]:
    """The environment of a process in which torch-npu is the simulator; `settings` are added as strings."""
    paths = [str(build()), str(HERE), str(HERE.parent), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    names = ("TORCH_DEVICE_BACKEND_AUTOLOAD", "ASCEND_RT_VISIBLE_DEVICES", "LOCAL_RANK", "RANK", "WORLD_SIZE")
    inherited = {k: v for k, v in os.environ.items() if k not in names}
    added = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **{k: str(v) for k, v in settings.items()}}
    return inherited | added


def _compile(folder: Path) -> None:
    import torch

    root = Path(torch.__file__).parent
    include = [root / "include", root / "include/torch/csrc/api/include", sysconfig.get_paths()["include"]]
    jobs = []
    for source in SOURCES:
        command = ["g++", "-std=c++20", "-O0", "-fPIC", "-shared", "-w", *(f"-I{path}" for path in include)]
        command += [str(HERE / source), "-o", str(folder / f"_npu_simulator_{Path(source).stem}.so")]
        command += [f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch_python", f"-Wl,-rpath,{root / 'lib'}"]
        jobs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for job in jobs:
        _, errors = job.communicate()
        if job.returncode:
            raise RuntimeError(f"the simulated NPU does not compile:\n{errors}")


def _describe(folder: Path, torch_version: str) -> None:
    """What pip leaves of an installed torch-npu: its version, and the entry point that torch loads by itself."""
    info = folder / f"torch_npu-{torch_version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch-npu\nVersion: {torch_version}+simulator\n")
    (info / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
