"""Settings of a run: its device, its files and what it logs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inception_v4.settings.schema.forms import Positive, Section


class Run(Section):
    """Device, files and logging."""

    recipe: str = Field("quickstart", description="name of the run's recipe, part of the default output_dir")
    device: str = Field("auto", description="auto, cpu, cuda, npu, mps or xpu, with :i for one of several")
    seed: Annotated[int, Field(ge=0)] = Field(42, description="of everything random")
    output_dir: str | None = Field(
        None,
        description="run directory; default runs/<recipe>-<time>; an address (s3://...): a local one, copied there",
    )
    upload_to: str | None = Field(None, description="address that a copy of the run directory goes to, as it grows")
    upload_wait: Annotated[float, Field(ge=0)] = Field(30, description="minutes to wait for that copy after the run")
    resume: str | None = Field(None, description="auto (newest checkpoint of output_dir), or a checkpoint")
    val_interval: Positive = Field(1, description="epochs between validations")
    val_start: Positive | None = Field(
        None, description="the first epoch that is validated, counted from 1; default val_interval"
    )
    log_interval: Positive = Field(10, description="steps between log lines")
    ckpt_interval: Positive = Field(1, description="epochs between checkpoints")
    ckpt_steps: Positive | None = Field(None, description="also a checkpoint every so many steps")
    keep_checkpoint_max: Positive = Field(3, description="checkpoints kept, newest first")
    on_disk_full: Literal["stop", "continue"] = Field(
        "stop", description="a checkpoint that cannot be written: stop, or leave it out and go on"
    )
    hang_timeout: Annotated[float, Field(gt=0)] = Field(
        3600.0,
        description="several processes: seconds without progress after which each names whom it waits for and ends",
    )
    tensorboard: bool = Field(True, description="write TensorBoard events")
    logger: Literal["wandb", "mlflow"] | None = Field(
        None, description="tell Weights & Biases or MLflow too: pip install 'inception-v4[wandb]' or '[mlflow]'"
    )
    report: bool = Field(False, description="write report.html into the run directory at the end")
    profile: bool = Field(False, description="record a profiler trace of some steps into the run directory")
    smoke: bool = Field(False, description="shrink any recipe to under a minute on a CPU")
