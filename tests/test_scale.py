"""docs/scale.md: its job files are parsed, their commands run dry, and its numbers worked out again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed.run import get_args_parser

from inception_v4.cli.main import run
from inception_v4.data.order import EpochSampler
from inception_v4.distributed import World
from inception_v4.network.model import InceptionV4
from inception_v4.settings.recipes import load_config

TEXT = (Path(__file__).parent.parent / "docs" / "scale.md").read_text()
SCRIPTS = [block for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) if "#SBATCH" in block]
MANIFESTS = [part for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.S) for part in yaml.safe_load_all(block)]


def slurm_command(script: str) -> list[str]:
    """The words that srun starts, with SLURM's variables in place."""
    (line,) = re.findall(r"srun .*?(torchrun .*?) &$", script.replace("\\\n", " "), re.M)
    values = {"SLURM_NNODES": "4", "SLURM_JOB_ID": "77", "HEAD_NODE": "node1"}
    return shlex.split(re.sub(r"\$(\w+)", lambda match: values[match[1]], line))


def containers() -> Iterator[tuple[str, dict[str, object]]]:
    for manifest in MANIFESTS:
        spec = manifest["spec"]
        if manifest["kind"] == "PyTorchJob":
            for replica in spec["pytorchReplicaSpecs"].values():
                yield manifest["kind"], replica["template"]["spec"]
        elif manifest["kind"] == "Job":
            yield manifest["kind"], spec["template"]["spec"]


COMMANDS = [("sbatch", slurm_command(script)) for script in SCRIPTS]
COMMANDS += [(kind, pod["containers"][0]["command"]) for kind, pod in containers()]  # type: ignore[index]


def test_every_kind_of_job_is_there() -> None:
    assert [kind for kind, _ in COMMANDS] == ["sbatch", "PyTorchJob", "Job"]
    assert [manifest["kind"] for manifest in MANIFESTS] == ["PyTorchJob", "Service", "Job"]


@pytest.mark.parametrize(("kind", "words"), COMMANDS, ids=[kind for kind, _ in COMMANDS])
def test_the_jobs_commands_run_dry(kind: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert words[0] == "torchrun"
    arguments = get_args_parser().parse_args(words[1:])
    assert arguments.module and arguments.training_script == "inception_v4" and arguments.rdzv_id
    assert run([*arguments.training_script_args, "--dry-run"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["run"]["output_dir"].endswith("runs/big") and settings["run"]["resume"] is None
    assert run([*arguments.training_script_args, "--no-such-flag", "--dry-run"]) == 2, "a control"


def test_the_sbatch_script_is_a_shell_script() -> None:
    import subprocess

    (script,) = SCRIPTS
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0
    assert subprocess.run(["bash", "-n"], input=script + "if", text=True, capture_output=True).returncode != 0
    options = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in options)


def test_pods_mount_what_their_commands_name_and_have_time_to_save() -> None:
    for _, pod in containers():
        (container,) = pod["containers"]  # type: ignore[misc]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {"/data", "/runs", "/dev/shm"} == set(mounted)
        assert set(mounted.values()) == {volume["name"] for volume in pod["volumes"]}  # type: ignore[attr-defined]
        (patience,) = (int(entry["value"]) for entry in container["env"] if "SHUTDOWN" in entry["name"])
        assert patience < pod["terminationGracePeriodSeconds"]  # type: ignore[operator]


def table(title: str) -> list[list[str]]:
    """Cells of the rows under a header that begins with `title`."""
    (rows,) = re.findall(rf"^\| {re.escape(title)}.*\n\|[ :|-]+\n((?:\|.*\n)+)", TEXT, re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def number(cell: str) -> float:
    return float(cell.split()[0])


PICTURES, BYTES = 1_281_167, 4 * 42_679_816


def test_batches_and_rates_are_the_recipes() -> None:
    config, _ = load_config("imagenet_rmsprop", {"data_dir": "imagenet"})
    for processes, batch, lr, steps in table("processes | global batch"):
        world = World(size=int(processes))
        sampler = EpochSampler(PICTURES, config.data, 0, world=world, seed=0)
        assert (int(batch), int(steps)) == (sampler.batch, sampler.steps)
        assert float(lr) == pytest.approx(config.optimizer.peak_lr(sampler.batch))


def test_bytes_are_the_networks() -> None:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in InceptionV4(1000, init="torch").parameters())
    assert 4 * parameters == BYTES and f"{parameters:,} parameters" in TEXT
    assert f"{BYTES / 1e6:.1f} MB" in TEXT and f"{2 * BYTES / 1e6:.1f} MB" in TEXT


def test_efficiency_and_time_follow_from_the_page() -> None:
    rows = table("r | link")
    assert len(rows) >= 7
    for rate, link, accum, t_cell, c_cell, least, most in rows:
        t, c = 32 * int(accum) / number(rate), 2 * BYTES / (int(link) * 1e9 / 8)
        bounds = 100 * t / (t + c), 100 * t / max(t, t / 3 + c)
        assert [round(1000 * t), round(1000 * c), *map(round, bounds)] == list(map(int, (t_cell, c_cell, least, most)))
    for rate, processes, efficiency, days, hours in table("r | processes"):
        taken = 160 * PICTURES / (int(processes) * number(rate) * int(efficiency) / 100) / 3600
        assert float(days) == pytest.approx(taken / 24, abs=0.006 if taken < 240 else 0.6)
        assert float(hours) == pytest.approx(taken * int(processes), abs=0.6)


def test_measured_rates_are_those_of_the_performance_page() -> None:
    measured = (Path(__file__).parent.parent / "docs" / "performance.md").read_text()
    assert "| plain | bf16 | 1025.7 | 10.1 | 3.90 |" in measured
    rates = dict(re.findall(r"^\| ours \| crop, flip(.*?) \| (\d+) \|", measured, re.MULTILINE))
    plain, policy = int(rates[""]), int(rates[", AutoAugment, erasing"])
    assert f"The loader gives {plain} on two cores" in TEXT
    said = re.search(r"some (\d+) per core, and (\d+) with.*?needs ([\d.]+) cores, or ([\d.]+),", TEXT, re.DOTALL)
    assert said is not None
    per_core = [plain // 2, policy // 2]
    assert [int(said[1]), int(said[2])] == per_core
    assert [float(said[3]), float(said[4])] == [round(1000 / rate, 1) for rate in per_core]
