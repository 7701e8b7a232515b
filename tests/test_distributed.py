"""Several processes: gradients equal one process's, and validation is exact for any number of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from parallel_gradients import gradients
from running import run, run_script
from temporary import NewFolder
from torch import nn

from inception_v4.accelerator import select
from inception_v4.distributed import World, share_gradients


def in_processes(output: Path, mode: str) -> dict[str, torch.Tensor]:
    done = run_script("parallel_gradients.py", str(output), mode, "cpu", "float64", cwd=output.parent)
    assert "FutureWarning" not in done.stderr, done.stderr
    found: dict[str, torch.Tensor] = torch.load(output, weights_only=True)
    return found


def worst(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], kind: str) -> float:
    return max(
        ((a[k] - b[k]).abs().max() / b[k].abs().max()).item()
        for k in b
        if k.startswith(kind) and b[k].is_floating_point()
    )


@pytest.mark.slow
def test_gradients_of_two_processes_equal_one_with_the_doubled_batch(tmp_path: Path) -> None:
    alone = gradients(World(), select("cpu"), sync=False)
    together = in_processes(tmp_path / "sync.pt", "sync")
    assert worst(together, alone, "gradient") < 1e-9
    assert worst(together, alone, "buffer") < 1e-10
    apart = in_processes(tmp_path / "apart.pt", "apart")
    assert worst(apart, alone, "gradient") > 1e-3, "without SyncBN they differ: the comparison can fail"


def test_each_process_keeps_its_own_buffers_and_torch_warns_of_nothing() -> None:
    """The setting that says so has two names, one for each age of torch; the wrong one warns, and that is an error."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        assert not share_gradients(network, select("cpu")).will_sync_module_buffers()
        control = nn.parallel.DistributedDataParallel(network)
        assert control.will_sync_module_buffers()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "threads"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
def test_validation_is_identical_for_any_number_of_processes(
    finished_run: Path, pictures_203: Path, processes: int, threads: int, reference: dict[int, dict[str, float]]
) -> None:
    """Of equally many threads each: the CPU's kernels, and so a loss's last bits, may depend on that number."""
    words = ("validate", "--ckpt-path", str(finished_run / "last.safetensors"), "--data-dir", str(pictures_203))
    done = run(
        *words, "--dataset=folder", "--json", "--batch-size=16", "--workers=0", "--device=cpu",
        processes=processes, threads=threads,
    )  # fmt: skip
    assert f", {threads} threads, float32 x {processes}" in done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["samples"] == 203
    found = {name: result[name] for name in ("loss", "top1", "top5", "samples")}
    assert reference.setdefault(threads, found) == found, "bit for bit, the loss too"
    others = [result for number, result in reference.items() if number != threads]
    assert all(found | {"loss": other["loss"]} == other for other in others)
    assert all(found["loss"] == pytest.approx(other["loss"], rel=1e-6) for other in others)


@pytest.fixture(scope="module")
def reference() -> dict[int, dict[str, float]]:
    """The first result by number of threads."""
    return {}


@pytest.fixture(scope="module")
def pictures_203(module_folder: NewFolder) -> Path:
    """203 pictures of the two shapes that the tiny run knows, under val/."""
    from inception_v4.data.shapes import KINDS, draw_shape

    folder = module_folder("pictures")
    for index in range(203):
        kind = KINDS[index % 2]
        (folder / "val" / kind).mkdir(parents=True, exist_ok=True)
        draw_shape(kind, index, 80).save(folder / "val" / kind / f"{index:03d}.jpg")
    return folder
