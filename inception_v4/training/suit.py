"""Settings chosen for the data at hand and the device, for whoever has said nothing about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inception_v4.accelerator import select
from inception_v4.accelerator.precision import choose_amp
from inception_v4.data.sources import open_source
from inception_v4.distributed import World
from inception_v4.settings.defaults import Hardware, choose_defaults, held_out
from inception_v4.settings.recipes import build_config
from inception_v4.settings.schema import Config


def suit_data(config: Config, given: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """`config` with batch, schedule and the like chosen for its pictures and its device, and the reasons.

    What is in `given` stays as it is.
    """
    accelerator = select(config.run.device)
    given = {name: value for name, value in given.items() if (name, value) != ("amp", "auto")}
    several = config.training.several
    source = open_source(config.data, "train", world=World(), seed=config.run.seed, several=several)
    if "val_fraction" not in given:
        # First what is held out, then the rest: the training pictures are counted as the run will have them.
        data = config.data.model_copy(update={"val_fraction": held_out(len(source))})
        config = config.model_copy(update={"data": data})
        source = open_source(data, "train", world=World(), seed=config.run.seed, several=several)
    started_from = bool(config.network.pretrained or config.network.ckpt_path)
    # There is no process group yet, but torchrun has said how many will train together.
    processes, amp = World.from_environment().size, choose_amp(accelerator, "auto")[0]
    hardware = Hardware(accelerator.type, accelerator.memory(), processes, amp)
    settings, reasons = choose_defaults(
        len(source), len(source.class_names), hardware=hardware, pretrained=started_from,
        fixed={name: value for name, value in config.flat().items() if name in given or name == "val_fraction"},
    )  # fmt: skip
    chosen = {name: value for name, value in settings.items() if name not in given}
    if "lr" in given and "lr_base_batch" not in given:
        chosen["lr_base_batch"] = None
    overruled = [name for name in settings if name in given]
    if overruled:
        reasons.append(f"as you said: {', '.join(f'{name} {given[name]}' for name in overruled)}")
    return build_config(config.given() | chosen), reasons
