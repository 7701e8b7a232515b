"""The device layer on a simulated Ascend NPU: `npu_simulator` says what that shows and what it cannot.

The device is registered for a whole process, so all of it runs in child processes.
"""

from __future__ import annotations

import re
import subprocess
import sys

import npu_simulator
import pytest
import torch
from parallel_gradients import gradients
from running import ROOT, THREADS

from inception_v4.accelerator import select
from inception_v4.distributed import World

HERE = ROOT / "tests" / "npu_simulator"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(npu_simulator.missing() is not None, reason=str(npu_simulator.missing())),
]


@pytest.fixture(scope="module", autouse=True)
def _built():
    npu_simulator.build()


def run(*command: object, **settings: object) -> subprocess.CompletedProcess[str]:
    """`command` of this Python, where torch-npu is the simulator."""
    environment = npu_simulator.environment(**({"OMP_NUM_THREADS": THREADS} | settings))
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, text=True, capture_output=True
    )


@pytest.mark.parametrize(
    ("chip", "autoload"),
    [("Ascend910B3", "0"), ("Ascend910A", "1")],
    ids=["910B, imported when wanted", "first 910, loaded by torch"],
)
def test_the_device_layer_inside_a_simulated_process(chip, autoload):
    pytest_options = ["-q", "-p", "no:cacheprovider", "-c", "setup.cfg", "--rootdir", ROOT]
    settings = {"NPU_SIMULATOR_CHIP": chip, "TORCH_DEVICE_BACKEND_AUTOLOAD": autoload, "NPU_SIMULATOR_DEVICES": 2}
    done = run("-m", "pytest", *pytest_options, HERE / "inside.py", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout) and "failed" not in done.stdout


SELECT = """
from inception_v4 import accelerator
accelerator.prepare_environment("auto")
for name in ("cpu", "auto", "npu"):
    try:
        print(name, accelerator.select(name).device)
    except accelerator.DeviceError as error:
        print(error)
"""


def test_users_without_an_npu_are_not_hurt_by_torch_npu():
    """CANN is missing: `import torch` itself fails, unless the automatic import is off."""
    control = run("-c", "import torch", NPU_SIMULATOR_CANN=0)
    assert control.returncode != 0 and "Failed to load the backend extension: torch_npu" in control.stderr
    done = run("-c", SELECT, NPU_SIMULATOR_CANN=0)
    cpu, auto, npu = done.stdout.splitlines()
    assert (cpu, auto) == ("cpu cpu", "auto cpu"), done.stderr
    assert npu.startswith("device 'npu' cannot be used: torch-npu is installed, but CANN is not set up (libhccl.so: ")


LOADER = """
from inception_v4 import accelerator
accelerator.prepare_environment("cpu")
import torch
print(len(list(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4)), num_workers=1))))
"""


def test_cpu_runs_with_loader_workers_where_torch_npu_finds_no_npu():
    """A loaded torch-npu without devices breaks loader workers; so it is not loaded for the CPU."""
    control = run("-c", LOADER, NPU_SIMULATOR_DEVICES=0, TORCH_DEVICE_BACKEND_AUTOLOAD=1)
    assert "No NPUs are available" in control.stderr
    done = run("-c", LOADER, NPU_SIMULATOR_DEVICES=0)
    assert (done.returncode, done.stdout.strip()) == (0, "4"), done.stderr


def numbers(output: str, kind: str) -> list[float]:
    found = re.search(rf"^{kind} (.*)$", output, re.MULTILINE)
    assert found, output
    return [float(number) for number in found[1].split()]


def test_gradients_of_the_whole_network_with_synchronised_batch_norm(tmp_path):
    """As near to float64's of one process with the whole batch as float32 comes on the CPU: 0.2 % and 0.3 %.

    On the NPU torch's SyncBatchNorm works, on the CPU this project's layer.
    """
    settings = {"TORCH_DEVICE_BACKEND_AUTOLOAD": 1, "NPU_SIMULATOR_DEVICES": 2, "OMP_NUM_THREADS": 1}
    found = {"one process": gradients(World(), select("cpu"), sync=False, dtype=torch.float32)}
    for device in ("cpu", "npu"):
        for mode in ("sync", "apart"):
            script = HERE.parent / "parallel_gradients.py"
            done = run(*TORCHRUN, script, tmp_path / "found.pt", mode, device, "float32", **settings)
            assert done.returncode == 0, done.stdout + done.stderr
            found[f"{device} {mode}"] = torch.load(tmp_path / "found.pt", weights_only=True)
    exact = gradients(World(), select("cpu"), sync=False)
    distance = {name: relative_distance(values, exact) for name, values in found.items()}
    print({name: f"{value:.2%}" for name, value in distance.items()})
    assert max(distance[name] for name in ("one process", "cpu sync", "npu sync")) < 0.01
    assert min(distance["cpu apart"], distance["npu apart"]) > 0.1  # the control


def relative_distance(values: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Of all gradients taken together."""
    one, other = (torch.cat([v.flatten() for k, v in d.items() if k.startswith("gradient")]) for d in (values, exact))
    return float((one - other).norm() / other.norm())


def test_two_processes_learn_what_one_learns():
    """DistributedDataParallel, synchronised batch statistics and fused optimizers over `hccl`, under torchrun."""
    settings = {"TORCH_DEVICE_BACKEND_AUTOLOAD": 1, "NPU_SIMULATOR_DEVICES": 2, "HCCL_EXEC_TIMEOUT": 4}
    done = run(*TORCHRUN, HERE / "two_processes.py", OMP_NUM_THREADS=1, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FutureWarning" not in done.stderr, done.stderr
    expected = numbers(done.stdout, "ALONE")
    for kind in ("PLAIN", "FUSED"):
        assert numbers(done.stdout, kind) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert expected != pytest.approx([value * 1.001 for value in expected], rel=1e-4, abs=1e-5)  # the control
    assert f"HOST {2**54 + 1} npu:0" in done.stdout  # exact: over gloo, beside the group's own device
    assert "REFUSED float64: hccl: float64 is not supported" in done.stdout
    assert "REFUSED bucket views: size" in done.stdout  # what `ddp_options` is for
    # Waiting for a late process is for the host: on the device it would end in HCCL's time limit.
    assert "PATIENT" in done.stdout and "REFUSED a late process: " in done.stdout
