"""Every setting of a run: one typed schema (pydantic v2), grouped in sections, one or a few to a file.

Knows names, types, bounds and defaults; leaf names are unique across the sections, so a YAML file may be nested or
flat and every leaf is also a command-line flag. Must never read a file or know another project's spelling.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from inception_v4.settings.schema.augmentation import PREPROCESSING_FIELDS, Augmentation
from inception_v4.settings.schema.data import Data
from inception_v4.settings.schema.forms import NONE_WORDS, Section
from inception_v4.settings.schema.learning import (
    OPTIMIZER_NUMBERS,
    OPTIMIZER_OWN,
    Optimizer,
    Schedule,
    Training,
    frozen_blocks,
)
from inception_v4.settings.schema.network import Network
from inception_v4.settings.schema.run import Run

__all__ = [
    "NONE_WORDS",
    "OPTIMIZER_NUMBERS",
    "OPTIMIZER_OWN",
    "PREPROCESSING_FIELDS",
    "Augmentation",
    "Config",
    "Data",
    "Network",
    "Optimizer",
    "Run",
    "Schedule",
    "Section",
    "Training",
    "frozen_blocks",
]


class Config(Section):
    """A whole run. Attribute = section; `config.flat()` gives the leaves."""

    data: Data = Field(default_factory=Data)
    augmentation: Augmentation = Field(default_factory=Augmentation)
    network: Network = Field(default_factory=Network)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    training: Training = Field(default_factory=Training)
    run: Run = Field(default_factory=Run)

    def flat(self) -> dict[str, Any]:
        """Every leaf by its unique name."""
        return {name: value for section in self.model_dump().values() for name, value in section.items()}

    def given(self) -> dict[str, Any]:
        """Every leaf that was given, by recipe or flag, and is not a default."""
        sections = self.model_dump(exclude_unset=True).values()
        return {name: value for section in sections for name, value in section.items()}
