"""docs/coming-from.md: every line of it runs, and its tables are the rules the program uses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from running import ROOT

from inception_v4.cli.main import run
from inception_v4.settings.dialects import DIALECTS, settings_table
from inception_v4.settings.recipes import build_config

DOCUMENT = ROOT / "docs" / "coming-from.md"
FIXTURES = ROOT / "tests" / "fixtures"
FILES = {
    "configs/inceptionv4/inception_v4_ascend.yaml": "mindcv_inception_v4_ascend.yaml",
    "inception_v4_ascend.yaml": "mindcv_inception_v4_ascend.yaml",
    "default_config.yaml": "modelzoo_default_config.yaml",
    "default_config_gpu.yaml": "modelzoo_default_config_gpu.yaml",
    "default_config_cpu.yaml": "modelzoo_default_config_cpu.yaml",
    "args.yaml": "timm_args.yaml",
}
"""The files of other projects that the document names, as their settings lie among the fixtures."""


def lines() -> list[str]:
    """The commands of the right-hand columns."""
    cells = re.findall(r"^\| .* \| `((?:python|torchrun|inception-v4) .*)` \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(cells) > 20
    return cells


def words(line: str) -> list[str]:
    """Arguments of `inception-v4` for a line of the document."""
    command, *rest = re.sub(
        r"^(python |torchrun --nproc-per-node \d+ )?(tools/(\w+)\.py|inception-v4)", r"\3", line
    ).split(" ", 1)
    arguments = shlex.split(" ".join([command, *rest]))
    known = [(f"{prefix}{name}", f"{prefix}{FIXTURES / file}") for name, file in FILES.items()
             for prefix in ("", "--config_path=", "--config=")]  # fmt: skip
    return [dict(known).get(word, word) for word in arguments]


@pytest.mark.parametrize("line", lines())
def test_every_line_runs(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = words(line)
    assert run([*arguments, "--dry-run"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    if "--from-outputs" in arguments:
        assert yaml.safe_load(shown.out) == {"from_outputs": "result_Files", "labels": "ANN_FILE"}
        return
    if arguments[0] == "export":
        file = "inceptionv4." + next(form for form in ("mindir", "onnx", "om") if form in line.lower())
        written = "atc --framework=5" if ".om" in file else f"{file}: format "
        assert Path(file).stem in shown.out and written in shown.out
        return
    sections = yaml.safe_load(shown.out)
    config = build_config({name: value for section in sections.values() for name, value in section.items()})
    assert config.network.model == "inception_v4"
    foreign = "_config" in line or "inception_v4_ascend" in line or "args.yaml" in line
    assert foreign == ("read as a recipe of" in shown.err)


JOBS = {
    "seeds' commands": (
        "tools/train.py --model=inception_v4 --pretrained --opt=momentum --lr=0.001 dataset=cifar10 --num_classes=10 "
        "--dataset_download",
        "tools/validate.py --model=inception_v4 --dataset=imagenet --val_split=val --pretrained",
        "tools/validate.py --model=inception_v4 --dataset=imagenet --val_split=val --ckpt_path='./ckpt/",
        "torchrun --nproc-per-node 8 tools/train.py --config configs/inceptionv4/inception_v4_ascend.yaml --data_dir",
        "tools/train.py --config configs/inceptionv4/inception_v4_ascend.yaml --data_dir /path/to/dataset --distribute",
        "tools/validate.py -c configs/inceptionv4/inception_v4_ascend.yaml --data_dir /path/to/imagenet --ckpt_path",
    ),
    "ModelZoo's scripts": (
        "run_distribute_train_ascend.sh", "run_standalone_train_ascend.sh", "run_distribute_train_gpu.sh",
        "run_standalone_train_gpu.sh", "run_standalone_train_cpu.sh", "run_eval_ascend.sh", "run_eval_gpu.sh",
        "run_eval_cpu.sh", "run_onnx_eval.sh", "run_infer_310.sh", "run_infer_cpp.sh", "docker_start.sh",
        "eval_onnx.py", "export.py --config_path", "with `eval.py`", "with `export.py`",
        "eval.py --config_path", "train.py --config_path",
    ),
}  # fmt: skip


@pytest.mark.parametrize("job", [job for jobs in JOBS.values() for job in jobs])
def test_every_job_has_its_line(job: str) -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    assert any(job in row for row in rows)


def test_a_wrong_line_would_be_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--image_resise", "224", "--dry-run"]) != 0
    assert (
        run(["train", "-c", str(FIXTURES / "modelzoo_default_config.yaml"), "--resume_opt", "True", "--dry-run"]) != 0
    )
    assert "resume_opt=True" in capsys.readouterr().err


@pytest.mark.parametrize("name", DIALECTS)
def test_tables_of_settings_are_up_to_date(name: str) -> None:
    text = settings_table(DIALECTS[name])
    assert text in DOCUMENT.read_text(), f"replace the table of {name} by dialects.settings_table's"
