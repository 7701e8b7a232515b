"""The device layer against the real torch-npu: names and keywords, refusals, and its Python code on the simulator.

The wheel is fetched by pip and never needs an NPU. Its compiled part does not run here: no CANN.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import npu_simulator
import pytest
import torch
from npu_simulator.wheel import Sources, fetch
from running import ROOT, TINY, as_flags

ACCELERATOR = ROOT / "inception_v4" / "accelerator"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel() -> Path:
    if sys.platform != "linux":
        pytest.skip("torch-npu exists for Linux only")
    try:
        return fetch()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def sources(wheel) -> Sources:
    return Sources(wheel)


# ---- names and keywords, collected from the device layer itself


class Use(NamedTuple):
    path: tuple[str, ...]  # ("torch_npu", "npu", "matmul", "allow_hf32")
    keywords: frozenset[str]
    called: bool


OTHER_ROWS = ("Cuda", "Mps", "Xpu")
ROOTS = {"self.module": "torch_npu.npu", "self._module": "torch_npu.npu", "torch.get_device_module": "torch_npu.npu"}


def uses() -> set[Use]:
    """Every attribute of torch-npu that the rows shared with the NPU name, with the keywords of its calls."""
    found: set[Use] = set()
    for file in sorted(ACCELERATOR.glob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if not (isinstance(node, ast.ClassDef) and node.name in OTHER_ROWS):
                found |= _uses_in(node)
    return found


def _uses_in(tree: ast.AST) -> set[Use]:
    found, calls, inner, names = set(), {}, set(), dict(ROOTS)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch_npu"):
            for alias in node.names:
                names[alias.name] = f"{node.module}.{alias.name}"
                found.add(Use((*str(node.module).split("."), alias.name), frozenset(), False))
        elif isinstance(node, ast.Call):
            calls[id(node.func)] = frozenset(k.arg for k in node.keywords if k.arg)
        if isinstance(node, ast.Attribute):
            inner.add(id(node.value))
    if isinstance(tree, ast.ClassDef) and tree.name == "Accelerator":
        names["profiler"] = "torch_npu.profiler"  # `_profile` is given one of the two modules
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            text = ast.unparse(node).replace("torch.get_device_module('npu')", "self.module")
            text = text.replace("torch.get_device_module(cls.type)", "self.module")
            for name, path in names.items():
                if text.startswith(name + "."):
                    full = tuple(f"{path}{text.removeprefix(name)}".split("."))
                    found.add(Use(full, calls.get(id(node), frozenset()), id(node) in calls))
    return found


def test_the_collector_sees_the_uses():
    """A control: were the collector blind, the test below would pass for nothing."""
    paths = {".".join(use.path): use for use in uses()}
    assert paths["torch_npu.npu.set_compile_mode"].keywords == {"jit_compile"}
    assert paths["torch_npu.profiler.profile"].keywords == {"activities", "schedule", "on_trace_ready"}
    for name in (
        "npu.config.allow_internal_format", "npu.matmul.allow_hf32", "npu.Stream", "npu.device_count", "npu.set_device",
        "npu.is_bf16_supported", "npu.max_memory_allocated", "npu.utils.is_support_inf_nan", "npu.amp.GradScaler",
        "optim.NpuFusedRMSpropTF", "optim.NpuFusedSGD", "profiler.ProfilerActivity.CPU", "profiler.schedule",
    ):  # fmt: skip
        assert f"torch_npu.{name}" in paths, sorted(paths)


def missing(sources: Sources, use: Use) -> str | None:
    module, *names = "torch_npu", *use.path[1:]
    for position, name in enumerate(names):
        found = sources.find(module, name)
        if isinstance(found, str):
            module = found
            continue
        if found is None:
            return f"{module} has no {name}"
        rest = names[position + 1 :]
        if rest:
            return _missing_member(sources, module, found, rest[0])
        parameters = sources.parameters(found)
        unknown = use.keywords - (parameters or use.keywords)
        return f"{'.'.join(use.path)} takes no {sorted(unknown)}" if unknown else None
    return None


def _missing_member(sources: Sources, module: str, found: ast.AST, name: str) -> str | None:
    if isinstance(found, ast.Call):  # an object made of a class: config, matmul, conv
        cls = sources.find(module, ast.unparse(found.func).split(".")[-1])
        known = isinstance(cls, ast.AST) and sources.mentions(cls, name)
        return None if known else f"{ast.unparse(found)} has no {name}"
    return None if sources.mentions(found, name) else f"{module} has no member {name}"


COMPILED = {"torch_npu.profiler.ProfilerActivity.CPU", "torch_npu.profiler.ProfilerActivity"}
"""Not in Python; torch-npu's own sources name them."""


def test_every_name_and_keyword_exists_in_the_real_torch_npu(sources):
    problems = [missing(sources, use) for use in sorted(uses()) if ".".join(use.path) not in COMPILED]
    assert [problem for problem in problems if problem] == []
    profiler = (sources.root / "torch_npu/profiler/profiler_interface.py").read_text()
    assert "ProfilerActivity.NPU" in profiler and "ProfilerActivity.CPU" in profiler


@pytest.mark.parametrize(
    "use",
    [
        Use(("torch_npu", "npu", "set_compile_modes"), frozenset(), True),
        Use(("torch_npu", "npu", "set_compile_mode"), frozenset({"jit"}), True),
        Use(("torch_npu", "npu", "matmul", "allow_tf32"), frozenset(), False),
        Use(("torch_npu", "optim", "NpuFusedMomentum"), frozenset(), False),
        Use(("torch_npu", "profiler", "profile"), frozenset({"folder"}), True),
    ],
)
def test_a_wrong_name_or_keyword_would_be_noticed(sources, use):
    assert missing(sources, use) is not None


def test_what_is_not_a_python_name(sources):
    text = (sources.root / "torch_npu/_init/registry/distributed.py").read_text()
    assert '"hccl"' in text and 'devices=["npu"]' in text
    assert "Two accelerators cannot be used" in (sources.root / "torch_npu/__init__.py").read_text()
    module = (sources.root / "torch_npu/utils/_module.py").read_text()
    assert "is_jit_compile_false" in module and "npu_format_cast" in module
    streams = sources.find("torch_npu.npu", "Stream")
    assert isinstance(streams, ast.ClassDef)
    assert {"record_event", "wait_event"} <= {n.name for n in streams.body if isinstance(n, ast.FunctionDef)}
    (info,) = sources.root.glob("torch_npu-*.dist-info")
    assert "torch_npu = torch_npu:_autoload" in (info / "entry_points.txt").read_text()
    version = info.name.split("-")[1]
    assert f"Requires-Dist: torch=={'.'.join(version.split('.')[:2])}." in (info / "METADATA").read_text()


def test_the_stand_in_offers_nothing_that_the_real_one_lacks(sources):
    """Otherwise the simulator would let through what fails on a real machine."""
    own = {
        "npu": {"modes", "CHIP", "FIRST_910"},
        "optim": set(),
        "profiler": {"ProfilerActivity"},  # compiled in the real one
        "npu.amp": set(),
        "npu.utils": set(),
    }
    stand_in = Sources(npu_simulator.HERE)
    for name, extra in own.items():
        tree = stand_in.tree(f"torch_npu.{name}")
        assert tree is not None
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                real = sources.find(f"torch_npu.{name}", node.name)
                assert real is not None or node.name in extra, f"torch_npu.{name}.{node.name}"
                if isinstance(node, ast.FunctionDef) and isinstance(real, ast.FunctionDef):
                    taken = {argument.arg for argument in node.args.args}
                    assert taken <= (sources.parameters(real) or set()), node.name


# ---- the real Python code, where it can run


@pytest.mark.skipif(npu_simulator.missing() is not None, reason=str(npu_simulator.missing()))
def test_the_real_optimizers_and_scaler_run_on_the_simulator(wheel):
    """The wheel's own optimizer and GradScaler files over the simulated device: equal to timm's and to torch's."""
    environment = npu_simulator.environment(TORCH_NPU_WHEEL=wheel, TORCH_DEVICE_BACKEND_AUTOLOAD=1)
    script = npu_simulator.HERE / "real_optimizers.py"
    done = subprocess.run([sys.executable, script], cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal: momentum nesterov rmsproptf, scaled rmsproptf, resumed rmsproptf momentum" in done.stdout


# ---- installed without CANN


@pytest.fixture(scope="module")
def folders(wheel, module_folder):
    """Where torch-npu would be installed: as it is, and with metadata that fits the installed torch."""
    (info,) = wheel.glob("torch_npu-*.dist-info")
    fitting = module_folder("fitting")
    (fitting / "torch_npu").symlink_to(wheel / "torch_npu")
    (fitting / "torch_npu.libs").symlink_to(wheel / "torch_npu.libs")
    target = fitting / info.name
    target.mkdir()
    (target / "entry_points.txt").write_text((info / "entry_points.txt").read_text())
    version = info.name.split("-")[1].removesuffix(".dist")
    ours = torch.__version__.split("+")[0]
    (target / "METADATA").write_text((info / "METADATA").read_text().replace(f"Version: {version}", f"Version: {ours}"))
    return {"as it is": wheel, "fitting": fitting}


def command(folder: Path, *arguments: object, module: bool = True, **settings: str) -> subprocess.CompletedProcess[str]:
    names = ("TORCH_DEVICE_BACKEND_AUTOLOAD", "ASCEND_HOME_PATH", "LD_LIBRARY_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "2"} | settings
    program = [sys.executable, "-m", "inception_v4"] if module else [sys.executable]
    return subprocess.run([*program, *map(str, arguments)], cwd=ROOT, env=environment, text=True, capture_output=True)


@pytest.mark.parametrize("state", ["as it is", "fitting"])
def test_torch_npu_without_cann_breaks_import_torch_but_not_the_commands(folders, state, tmp_path):
    folder, settings = folders[state], as_flags(TINY)
    control = command(folder, "-c", "import torch", module=False)
    assert control.returncode != 0 and "Failed to load the backend extension: torch_npu" in control.stderr
    for arguments in (
        ["--help"],
        ["env"],
        ["draw", tmp_path / "shape.png"],
        ["train", *settings, "--max-steps=1", f"--output-dir={tmp_path / 'run'}"],
        ["validate", *settings, f"--ckpt-path={tmp_path / 'run'}"],
        ["predict", tmp_path / "shape.png", "--ckpt-path", tmp_path / "run"],
    ):
        done = command(folder, *arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        assert "libhccl" not in done.stderr


def test_the_reason_is_given_in_one_line(folders):
    arguments = ["train", "--smoke", "--device", "npu"]
    done = command(folders["as it is"], *arguments)
    theirs = importlib.metadata.Distribution.at(next(folders["as it is"].glob("*.dist-info"))).version
    if theirs.split(".")[:2] != torch.__version__.split(".")[:2]:
        assert done.returncode == 2 and f"torch-npu {theirs} does not fit torch {torch.__version__}" in done.stderr
    done = command(folders["fitting"], *arguments)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "torch-npu is installed, but CANN is not set up (libhccl.so: cannot open shared object" in done.stderr
    done = command(folders["fitting"], *arguments, ASCEND_HOME_PATH="/nowhere")
    assert done.returncode == 2 and "CANN is not set up" in done.stderr, done.stderr
