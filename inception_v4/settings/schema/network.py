"""Settings of the network and of the weights it starts from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from inception_v4.settings.schema.forms import Positive, Section


class Network(Section):
    """The network and the weights it starts from."""

    model: Literal["inception_v4"] = Field("inception_v4", description="the one network of this project")
    in_channels: Positive = Field(3, description="input channels: 3, or 1 for grey pictures")
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = Field(0.2, description="dropout before the classifier")
    init: Literal["torch", "tf", "xavier", "shallow"] = Field(
        "tf", description="initialisation; tf: truncated normal, shallow: deep branches start quiet"
    )
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="torch's meaning: weight of the new batch"
    )
    stem: Literal["standard", "stride1", "padded"] = Field(
        "standard", description="stride1 (from 39 px), padded (from 16 px): for small pictures, in this project alone"
    )
    bn_eps: Annotated[float, Field(gt=0)] = Field(1e-3, description="BatchNorm epsilon")
    pretrained: bool = Field(False, description="start from the published ImageNet weights")
    ckpt_path: str | None = Field(None, description="start from (or use) this weights file, or a run directory")
    grad_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")

    @model_validator(mode="after")
    def _one_source(self) -> Network:
        if self.pretrained and self.ckpt_path:
            raise ValueError(f"pretrained and ckpt_path {self.ckpt_path!r} exclude each other: give one of them")
        return self
