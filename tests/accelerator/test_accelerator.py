"""The device layer on the machine at hand, and every device's absence. The NPU's row runs in test_npu.py.

CUDA, mps and xpu are tested as far as a machine without them allows: how they are found, named and refused, and
which settings they make. What runs on them is torch's.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from running import ROOT
from torch import nn

from inception_v4 import accelerator
from inception_v4.accelerator import Accelerator, CopyStream, DeviceError, environment_report, select
from inception_v4.accelerator import npu as npu_module
from inception_v4.accelerator.devices import Cuda, Indexed, Mps, Xpu
from inception_v4.accelerator.npu import Npu

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def _single_process(monkeypatch):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCH_DEVICE_BACKEND_AUTOLOAD", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def two_devices(monkeypatch):
    """A kind of device that has two of them, in place of cuda."""

    class Two(Indexed):
        type, label = "cuda", "CUDA GPU"
        absence = classmethod(lambda cls: None)
        count = classmethod(lambda cls: 2)

    monkeypatch.setitem(accelerator.ROWS, "cuda", Two)


def test_importing_it_does_not_import_torch():
    script = "import sys, inception_v4.accelerator as a; a.prepare_environment(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


# ---- choosing


@pytest.mark.parametrize("text", ["tpu", "", "cuda:", "cuda:x", "cuda:-1", "auto:0", "cuda:0:1"])
def test_other_words_are_refused(text):
    with pytest.raises(DeviceError, match="none of auto, cpu, cuda, mps, npu, xpu"):
        select(text)


@pytest.mark.parametrize("text", ["cpu", "CPU", "cpu:0"])
def test_the_cpu_is_always_there(text):
    assert select(text, local_rank=3).device == torch.device("cpu")


def test_auto_takes_the_first_that_can_be_used(monkeypatch):
    monkeypatch.setattr(Xpu, "absence", classmethod(lambda cls: None))
    monkeypatch.setattr(Xpu, "count", classmethod(lambda cls: 1))
    monkeypatch.setattr(Cuda, "absence", classmethod(lambda cls: "no driver"))
    assert select("auto").device == torch.device("xpu", 0)
    monkeypatch.setattr(Xpu, "absence", classmethod(lambda cls: "none"))
    monkeypatch.setattr(Mps, "absence", classmethod(lambda cls: "none"))
    assert select("auto").type == "cpu"


def test_each_process_of_a_machine_takes_its_own_device(two_devices, monkeypatch):
    assert select("cuda").device.index == 0
    assert select("cuda:1").device.index == 1
    assert select("cuda", local_rank=1).device.index == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert select("cuda").device.index == 1


def test_a_device_that_does_not_exist_says_how_many_do(two_devices, monkeypatch):
    with pytest.raises(DeviceError, match=r"'cuda:2' does not exist: there are 2 \(cuda:0 to cuda:1\)"):
        select("cuda:2")
    with pytest.raises(DeviceError, match=r"process 2 of this machine has no CUDA GPU.*--nproc-per-node=2"):
        select("cuda", local_rank=2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(DeviceError, match="one device for several processes: use 'cuda'"):
        select("cuda:0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_absent_cuda_gives_the_reason(monkeypatch):
    with pytest.raises(DeviceError, match=r"device 'cuda' cannot be used: ."):
        select("cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(DeviceError, match="is built without CUDA: install a CUDA build"):
        select("cuda:0")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match="no GPU is visible"):
        select("cuda")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has mps")
def test_absent_mps_and_xpu_give_the_reason():
    with pytest.raises(DeviceError, match="exists for macOS only"):
        select("mps")
    if not torch.xpu.is_available():
        with pytest.raises(DeviceError, match=r"XPU|Intel GPU"):
            select("xpu")


# ---- Ascend where it is absent or broken


@pytest.fixture
def torch_npu_of(monkeypatch):
    """Pretend that torch-npu of a version is installed; importing it raises `error`."""

    def pretend(version: str | None, error: Exception | None = None, survives: bool = True):
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "torch_npu":
                    raise error or AssertionError("torch_npu must not be imported")

        spec = None if version is None else object()
        monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
        monkeypatch.setattr(npu_module.importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(npu_module, "installed", lambda name: version)
        monkeypatch.setattr(npu_module, "_survives_import", lambda: survives)
        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
        monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # so that what the code sets is undone

    return pretend


SERIES = ".".join(torch.__version__.split(".")[:2])


def test_torch_npu_missing(torch_npu_of):
    torch_npu_of(None)
    with pytest.raises(DeviceError, match=rf"torch-npu is not installed: .*`pip install 'torch-npu=={SERIES}\.\*'`"):
        select("npu")


def test_torch_npu_of_another_version_is_not_even_imported(torch_npu_of):
    torch_npu_of("1.11.0.post2")
    with pytest.raises(DeviceError, match=r"torch-npu 1.11.0.post2 does not fit torch ") as caught:
        select("npu:0")
    kept, changed = (words.split(" ") for words in re.findall("`pip install (.*?)`", str(caught.value)))
    # Either the torch that this torch-npu is made for, or the torch-npu of this torch.
    assert kept == ["torch==1.11.0", "torchvision", "torch-npu==1.11.0.post2"]
    assert changed == [f"'torch-npu=={SERIES}.*'"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("libhccl.so: cannot open shared object file: No such file or directory"), "CANN is not set up"),
        (Exception("ASCEND_HOME_PATH : /nowhere does not exist. Please run 'source set_env.sh'"), "set_env.sh"),
        (RuntimeError("Two accelerators cannot be used at the same time in PyTorch: npu and cuda."), "CPU build"),
        (OSError("libtorch_npu.so: undefined symbol: _ZN3c10"), r"cannot be imported \(libtorch_npu.so: undefined"),
    ],
)
def test_torch_npu_that_cannot_be_imported(torch_npu_of, error, message):
    torch_npu_of(f"{SERIES}.0", error)
    with pytest.raises(DeviceError, match=message) as caught:
        select("npu")
    assert "\n" not in str(caught.value)


def test_a_torch_npu_that_kills_the_process_is_found_out_beforehand(torch_npu_of, monkeypatch):
    torch_npu_of(f"{SERIES}.0", survives=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(DeviceError, match=r"cannot be loaded beside torch .*CPU build"):
        select("npu")


def test_the_child_that_imports_torch_npu_first_lives_where_an_exception_is_raised(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "torch_npu.py").write_text("raise Exception('no CANN')")
    assert npu_module._survives_import()
    (tmp_path / "torch_npu.py").write_text("import os; os.abort()")
    assert not npu_module._survives_import()


def test_auto_does_not_touch_torch_npu_without_its_hardware(torch_npu_of):
    torch_npu_of(f"{SERIES}.0")  # importing it would be an assertion error
    assert select("auto").type != "npu"


def test_auto_says_why_present_hardware_is_not_used(torch_npu_of, monkeypatch, tmp_path, caplog):
    (tmp_path / "davinci0").touch()
    monkeypatch.setattr(npu_module, "DEVICE_FILES", str(tmp_path / "davinci[0-9]*"))
    torch_npu_of(f"{SERIES}.0", ImportError("libascendcl.so: cannot open shared object file"))
    assert select("auto").type != "npu"
    assert "this machine's Ascend NPU cannot be used: torch-npu is installed, but CANN" in caplog.text


def test_the_environment_is_prepared_for_what_is_wanted(monkeypatch, torch_npu_of):
    names = (
        "TORCH_DEVICE_BACKEND_AUTOLOAD",
        "HCCL_CONNECT_TIMEOUT",
        "HCCL_EXEC_TIMEOUT",
        "PYTORCH_ENABLE_MPS_FALLBACK",
    )
    environ: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environ)
    torch_npu_of(None)
    environ.clear()
    accelerator.prepare_environment("cpu")
    quiet = {"KINETO_LOG_LEVEL": "99"}
    assert environ == quiet  # other back ends that load by themselves still do
    torch_npu_of(f"{SERIES}.0")
    environ.clear()
    accelerator.prepare_environment("cuda:1")
    assert environ == quiet | {names[0]: "0"}
    accelerator.prepare_environment("npu:3")
    assert environ == quiet | {names[0]: "0", names[1]: "1200", names[2]: "3600"}
    environ.update({names[0]: "1", names[1]: "7"})
    accelerator.prepare_environment("npu")
    assert environ[names[0]] == "1" and environ[names[1]] == "7"
    accelerator.prepare_environment("mps")
    assert environ[names[3]] == "1"


# ---- precision


def test_amp_types_of_the_cpu(caplog):
    cpu = select("cpu")
    assert cpu.amp_dtype("off") is None
    assert [cpu.amp_dtype(name) for name in AMP] == list(AMP.values())
    assert ("emulated" in caplog.text) == (
        not torch.ops.mkldnn._is_mkldnn_fp16_supported() or not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    with pytest.raises(DeviceError, match="amp 'O2' is none of off, bf16, fp16"):
        cpu.amp_dtype("O2")


def test_a_precision_that_a_device_lacks_is_an_error_that_names_the_other(monkeypatch):
    monkeypatch.setattr(Accelerator, "amp_support", lambda self, amp: "no")
    with pytest.raises(DeviceError, match=r"amp bf16 is not supported by .*use amp fp16, or off"):
        select("cpu").amp_dtype("bf16")
    with pytest.raises(DeviceError, match="use amp bf16, or off"):
        select("cpu").amp_dtype("fp16")


@pytest.mark.parametrize("amp", [*AMP, "off"])
def test_autocast_computes_in_the_type(amp):
    cpu = select("cpu")
    layer = nn.Conv2d(3, 4, 3)
    with cpu.autocast(cpu.amp_dtype(amp)):
        output = layer(torch.ones(1, 3, 5, 5))
    assert output.dtype is AMP.get(amp, torch.float32)
    output.float().sum().backward()
    assert torch.isfinite(layer.weight.grad).all()


def test_float32_settings_of_cuda_are_consistent_and_warn_of_nothing(monkeypatch):
    """On a CUDA build without a GPU too: the settings are the process's, not the device's."""
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    try:
        for tf32, precision in ((True, "high"), (False, "highest")):
            Cuda(0).activate(tf32=tf32)
            assert torch.get_float32_matmul_precision() == precision
            assert torch.backends.cudnn.allow_tf32 is tf32
            assert torch.backends.cuda.matmul.allow_tf32 is tf32  # raises where old and new settings are mixed
            assert torch.backends.cudnn.benchmark is True
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        Cuda(0).activate(deterministic=True)
        assert torch.backends.cudnn.benchmark is False and torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


# ---- loss scaling


def _step(scaler, optimizer, weight, gradient):
    weight.grad = scaler.scale(torch.tensor(gradient))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("fused", [False, True], ids=["skipped outside", "skipped inside the kernel"])
@pytest.mark.parametrize("loss_scale", ["dynamic", 1024.0])
def test_overflowing_steps_are_left_out_and_counted(loss_scale, fused):
    scaler = select("cpu").grad_scaler(torch.float16, loss_scale)
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5, fused=fused)
    start = 1024.0 if loss_scale == 1024.0 else 65536.0
    _step(scaler, optimizer, weight, [1.0, 2.0])
    assert weight.tolist() == [0.5, 1.0] and scaler.get_scale() == start and scaler.skipped() == 0
    _step(scaler, optimizer, weight, [float("inf"), 1.0])
    _step(scaler, optimizer, weight, [float("nan"), 1.0])
    assert weight.tolist() == [0.5, 1.0] and scaler.skipped() == 2
    assert scaler.get_scale() == (start if loss_scale == 1024.0 else start / 4)
    for _ in range(3000):  # longer than torch's growth interval
        scaler.scale(torch.ones(1))
        weight.grad = torch.zeros(2)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == (start if loss_scale == 1024.0 else start / 2)
    assert scaler.skipped() == 2


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_scaler_is_off_without_float16(dtype):
    scaler = select("cpu").grad_scaler(dtype, 1024)
    weight = nn.Parameter(torch.tensor([1.0]))
    _step(scaler, torch.optim.SGD([weight], lr=1.0), weight, [0.25])
    assert weight.item() == 0.75 and scaler.get_scale() == 1.0 and scaler.state_dict() == {} and scaler.skipped() == 0


def test_the_scalers_state_goes_through_a_checkpoint():
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = select("cpu").grad_scaler(torch.float16)
    _step(scaler, optimizer, weight, [float("inf")])
    state = json.loads(json.dumps(scaler.state_dict()))
    other = select("cpu").grad_scaler(torch.float16)
    other.load_state_dict(state)
    assert other.get_scale() == 32768.0 and other.skipped() == 1
    constant = select("cpu").grad_scaler(torch.float16, 128)
    constant.load_state_dict(state)
    assert constant.get_scale() == 128
    fresh = select("cpu").grad_scaler(torch.float16)
    fresh.load_state_dict({})  # saved by a run without fp16
    assert fresh.get_scale() == 65536.0
    select("cpu").grad_scaler(None).load_state_dict(state)


# ---- the rest of a row


def test_memory_format():
    cpu = select("cpu")
    assert cpu.memory_format() is torch.channels_last
    assert cpu.memory_format(False) is torch.contiguous_format
    assert cpu.memory_format(True) is torch.channels_last


def test_npu_refuses_channels_last():
    with pytest.raises(DeviceError, match="channels_last is impossible on Ascend"):
        Npu.memory_format(object.__new__(Npu), True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Accelerator, r"this CPU: there is no C\+\+ compiler on PATH: install g\+\+, or leave --compile out"),
        (Cuda, "this CUDA GPU: Triton is not installed: reinstall torch"),
        (Mps, "this Apple GPU: torch's compiler for Metal"),
        (Npu, r"this Ascend NPU: it needs Ascend's Triton: `pip install triton-ascend`, or leave --compile out"),
    ],
)
def test_a_device_without_a_compiler_refuses_to_compile(row, message, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    device = object.__new__(row)
    assert not device.can_compile
    with pytest.raises(DeviceError, match=f"compile is impossible on {message}"):
        device.compile(nn.Identity())


def test_a_device_with_a_compiler_compiles(monkeypatch, tmp_path):
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch, "compile", lambda network: ("compiled", network))
    assert select("cpu").can_compile and select("cpu").compile("network") == ("compiled", "network")


def test_mps_is_for_one_process():
    with pytest.raises(DeviceError, match="one process"):
        Mps.ddp_options(object.__new__(Mps))


def test_seed_is_of_everything():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    cpu = select("cpu")
    cpu.seed(2**40 + 1)
    first = draw()
    assert draw() != first
    cpu.seed(2**40 + 1)
    assert draw() == first


def test_activate_switches_determinism_both_ways():
    cpu = select("cpu")
    cpu.activate(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    cpu.activate()
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_the_cpu_has_not_is_a_harmless_nothing():
    cpu = select("cpu")
    cpu.synchronize()
    cpu.reset_peak_memory()
    peak, used = cpu.peak_memory(), cpu.used_memory()
    assert (peak is None) == (used is None) and (peak or 0) >= (used or 0)
    assert cpu.fused_optimizer("rmsproptf") is None
    assert cpu.process_group_options() == {} and not cpu.multi_tensor and not cpu.pin_memory
    stream, batch = cpu.copy_stream(), (torch.ones(2), "name")
    with stream:
        pass
    assert stream.ready(batch) is batch
    assert "threads" in cpu.describe() and repr(cpu) == "Accelerator('cpu')"


class _Recorder:
    """Stands for `torch.cuda`: writes down what happens to its streams."""

    def __init__(self):
        self.log: list[str] = []

    def Stream(self):
        return self

    def stream(self, _):
        return contextlib.nullcontext()

    def current_stream(self):
        return self

    def record_event(self):
        self.log.append("copied")
        return f"event {self.log.count('copied')}"

    def wait_event(self, event):
        self.log.append(f"wait for {event}")


def test_a_batch_waits_for_its_own_copy_and_not_for_the_next_one():
    device = _Recorder()
    stream = CopyStream(device)
    for _ in range(2):
        with stream:
            pass
    assert stream.ready("first") == "first"
    with stream:
        pass
    stream.ready("second")
    assert device.log == ["copied", "copied", "wait for event 1", "copied", "wait for event 2"]


def test_the_profiler_leaves_a_trace(tmp_path):
    with select("cpu").profiler(tmp_path) as profiler:
        for _ in range(6):
            torch.ones(8).sum()
            profiler.step()
    traces = list(tmp_path.glob("*.pt.trace.json"))
    assert len(traces) == 1
    assert any(event.get("name") == "aten::sum" for event in json.loads(traces[0].read_text())["traceEvents"])


def test_environment_report():
    report = json.loads(json.dumps(environment_report()))
    assert report["versions"]["torch"] == torch.__version__
    assert set(report["devices"]) == {"cpu", "cuda", "npu", "mps", "xpu"}
    for device in report["devices"].values():
        assert device["available"] or device["reason"]
    cpu = report["devices"]["cpu"]
    assert cpu["devices"] == [select("cpu").describe()]
    assert cpu["amp"] == {name: select("cpu").amp_support(name) for name in AMP}
    assert "gloo" in report["backends"] and report["threads"] == torch.get_num_threads()
    assert report["auto"] == select("auto").type


def test_a_precision_that_fails_when_tried_is_reported(monkeypatch):
    monkeypatch.setattr(Accelerator, "autocast", lambda self, dtype: contextlib.nullcontext())
    assert environment_report()["devices"]["cpu"]["amp"]["bf16"] == "no: it computes in torch.float32 instead"


def test_freed_memory_is_kept_for_the_next_time() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")
    code = """
import resource, torch
from inception_v4.accelerator import select
def faults():
    for _ in range(12):  # aligned blocks fit into freed ones of their size only after some turns
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(25_000_000)
        count = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return count
print(faults())
select("cpu").activate()
print(faults())
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, cwd=ROOT, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 1000 and after < before / 10
