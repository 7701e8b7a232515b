"""Settings for someone who has a folder of pictures and nothing else to say. Pure arithmetic; no torch, no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from inception_v4.settings.schema import OPTIMIZER_NUMBERS

PARAMETER_BYTES = 43_000_000 * 4
COPIES = 4
"""Weights, gradients, momentum and the moving average, each of float32."""
ACTIVATION_BYTES = {"off": 165 << 20, "half": 84 << 20}
"""What one 299-pixel picture keeps for the backward pass; measured, and proportional to the area."""
OVERHEAD_BYTES = 1 << 30
"""The framework, convolution workspaces and the buffers of the allocator."""
USABLE = 0.8
HALF_PRECISION = {"cuda": "fp16", "npu": "fp16", "xpu": "bf16"}
"""Where bfloat16 is not native, or not known to be faster: float16 is what every CUDA GPU and every Ascend chip has."""
ASSUMED_MEMORY = 8 << 30

Choice = tuple[dict[str, Any], list[str]]


class Length(NamedTuple):
    """How long to train, in pictures seen; epochs are kept within limits."""

    pictures: int
    fewest: int
    most: int

    def epochs(self, n_images: int) -> int:
        return min(max(round(self.pictures / n_images), self.fewest), self.most)


class Hardware(NamedTuple):
    """What a run has at its disposal.

    Attributes:
        device_type: cpu, cuda, npu, mps or xpu.
        memory_bytes: free memory of the device (of the machine for a CPU), per process; None if unknown.
        processes: that train together, each with batches of its own.
        amp: bf16 where the device is faster with it; off where it is not, or nobody knows.
    """

    device_type: str
    memory_bytes: int | None = None
    processes: int = 1
    amp: str = "off"


PLANS = {
    ("finetune", "fast"): Length(40_000, 5, 40),
    ("finetune", "cpu"): Length(6_000, 3, 15),
    ("scratch", "fast"): Length(6_000_000, 90, 150),
    ("scratch", "cpu"): Length(60_000, 5, 30),
}


class Pace(NamedTuple):
    """How fast a kind of optimizer learns.

    Attributes:
        words: parts of its names.
        tuned, fresh: learning rate for fine-tuning, and from scratch, whatever the batch.
        decay: weight decay.
        why: the reason for people.
    """

    words: tuple[str, ...]
    tuned: float
    fresh: float
    decay: float
    why: str


BY_GRADIENT = ("momentum", "nesterov", "sgd", "rmsprop")
"""Whose steps are as large as the gradients, and whose rates are SGD's; RMSProp too, with the paper's epsilon of 1."""
OF_ADAM = Pace(("adam", "adan", "adopt", "adabelief", "laprop", "mars"), 2e-4, 5e-4, 1e-4, "every weight moves by it")
PACES = (
    Pace(("muon",), 0.002, 0.004, 0.01, "updates of matrices are orthogonal, of the rest AdamW's"),
    Pace(("lamb",), 0.001, 0.005, 0.02, "every layer moves by this part of its own size"),
    Pace(("lion",), 3e-5, 1e-4, 0.05, "every weight moves by it at each step, where Adam's move by less"),
    OF_ADAM,
)
"""The first one that fits counts."""
DECOUPLED = 0.05
"""Weight decay of Adam's kind where it is not a part of the gradient: of names that end with w."""


def choose_defaults(
    n_images: int,
    n_classes: int,
    *,
    hardware: Hardware,
    pretrained: bool = True,
    fixed: Mapping[str, Any] | None = None,
) -> Choice:
    """Settings for this much data on this device, and a line of reason for each group of them.

    Args:
        n_images, n_classes: of the training pictures, of all processes together.
        hardware: what they are trained on.
        pretrained: fine-tune the ImageNet weights, or train from scratch.
        fixed: settings that were chosen already; amp, image_size, batch_size, val_fraction and those that make the
            number of steps (epochs, max_steps, accum_steps, drop_last) shape the others, opt its own numbers.
    Raises:
        ValueError: no pictures, fewer than two classes, or fewer than two pictures for a process.
    """
    if n_images < 1 or n_classes < 2:
        raise ValueError(f"{n_images} pictures of {n_classes} classes: at least two classes with pictures are needed")
    device = "cpu" if hardware.device_type == "cpu" else "fast"
    fixed = fixed or {}
    usual = HALF_PRECISION.get(hardware.device_type, "off")
    settings: dict[str, Any] = {"amp": usual if hardware.amp == "off" else hardware.amp}
    settings["image_size"], reasons = _image_size(device, pretrained)
    settings |= {name: fixed[name] for name in ("amp", "image_size") if name in fixed}
    reasons = [] if "image_size" in fixed else reasons
    if settings["amp"] != "off":
        reasons.append(f"amp {settings['amp']}: half precision takes less time and memory on {hardware.device_type}")
    batch, reason = _batch(n_images, hardware, settings)
    if "batch_size" in fixed:
        batch, reason = batch | {"batch_size": fixed["batch_size"]}, []
    elif batch["batch_size"] < 2:
        raise ValueError(_too_few(n_images, hardware.processes))
    for chosen, why in ((batch, reason), _learning(n_images, pretrained, fixed)):
        settings |= chosen
        reasons += why
    settings["val_fraction"] = fixed.get("val_fraction", settings["val_fraction"])
    epochs = fixed.get("epochs", PLANS["finetune" if pretrained else "scratch", device].epochs(n_images))
    per_epoch = _steps_per_epoch(n_images, settings["batch_size"] * hardware.processes, fixed)
    length = _length(epochs, per_epoch, fixed.get("max_steps"))
    for chosen, why in (length, _advice(n_images, n_classes, pretrained)):
        settings |= chosen
        reasons += why
    return settings, reasons


def _image_size(device: str, pretrained: bool) -> tuple[int, list[str]]:
    if device != "cpu":
        return 299, []
    size = 224 if pretrained else 128
    return size, [f"image_size {size}: {299 * 299 / size / size:.1f} times less work than 299, for a CPU"]


def _batch(n_images: int, hardware: Hardware, settings: dict[str, Any]) -> Choice:
    """The largest power of two up to 64 that fits into memory and leaves eight steps in an epoch.

    Where a process has fewer than eight pictures: all of them.
    """
    memory_bytes, processes = hardware.memory_bytes, hardware.processes
    share = max(n_images // processes, 1)
    memory = ASSUMED_MEMORY if memory_bytes is None else memory_bytes
    free = USABLE * memory - COPIES * PARAMETER_BYTES - OVERHEAD_BYTES
    per_image = ACTIVATION_BYTES["off" if settings["amp"] == "off" else "half"] * (settings["image_size"] / 299) ** 2
    fits = int(free / per_image) if free > 0 else 0
    least = min(8, share)
    size = min(fits, 64, max(least, share // 8))
    if size > 8:
        size = 1 << (size.bit_length() - 1)
    known = "unknown memory, 8 GiB assumed" if memory_bytes is None else f"{memory / 2**30:.1f} GiB of memory"
    if size >= least:
        each = f" in {processes} processes" if processes > 1 else ""
        return {"batch_size": size}, [f"batch_size {size}: {known} would hold {fits}, {n_images} pictures{each}"]
    # BatchNorm needs several pictures at a time: pay with time for the memory.
    return {"batch_size": least, "grad_checkpointing": True}, [
        f"batch_size {least} with grad_checkpointing: {known} is little; more time, less memory"
    ]


def _too_few(n_images: int, processes: int) -> str:
    most = max(n_images // 2, 1)
    fewer = f" or start at most {most}" if processes > most else ""
    each = f"{processes} processes" if processes > 1 else "1 process"
    return f"{n_images} training pictures for {each}: BatchNorm needs two at a time in each: add pictures{fewer}"


def _steps_per_epoch(n_images: int, global_batch: int, fixed: Mapping[str, Any]) -> int:
    """Optimizer steps; a batch that is larger than the data is for the loader to refuse."""
    whole = n_images // global_batch
    batches = whole if fixed.get("drop_last", True) else -(-n_images // global_batch)
    return max(-(-batches // fixed.get("accum_steps", 1)), 1)


def _length(epochs: int, per_epoch: int, max_steps: int | None) -> Choice:
    """Epochs, warm-up, and an average over the last tenth of the run."""
    steps = min(epochs * per_epoch, max_steps or epochs * per_epoch)
    run = -(-steps // per_epoch)
    decay = round(min(max(1 - 10 / steps, 0.1), 0.9999), 6)
    settings = {
        "epochs": epochs,
        "scheduler": "cosine",
        "warmup_epochs": min(max(1, round(run / 20)), run - 1),
        "ema": True,
        "ema_decay": decay,
        "ema_warmup": min(max(steps // 20, 1), 2000),
    }
    return settings, [f"epochs {epochs}: about {steps} steps; the weights are averaged over some {1 / (1 - decay):.0f}"]


def _learning(n_images: int, pretrained: bool, fixed: Mapping[str, Any]) -> Choice:
    """The update and what pictures go through; with the optimizer that was asked for, at a rate that suits it."""
    settings, reasons = (_finetune if pretrained else _scratch)(n_images)
    opt = str(fixed.get("opt", settings["opt"])).lower()
    if opt == settings["opt"]:
        return settings, reasons
    settings = {name: value for name, value in settings.items() if name not in OPTIMIZER_NUMBERS}  # for another one
    chosen, reason = _pace(opt, pretrained)
    return settings | {"opt": opt, **chosen}, [] if "lr" in fixed else [reason]


def _pace(opt: str, pretrained: bool) -> tuple[dict[str, Any], str]:
    """Rate and decay for an optimizer, and the reason."""
    if any(word in opt for word in BY_GRADIENT):
        lr, base, decay = (0.01, 32, 1e-4) if pretrained else (0.045, 256, 4e-5)
        settings = {"lr": lr, "lr_base_batch": base, "weight_decay": decay, "clip_grad": 5.0}
        return settings, f"lr {lr:g} per {base} pictures: {opt}'s steps are as large as the gradients, as SGD's"
    known = next((pace for pace in PACES if any(word in opt for word in pace.words)), None)
    pace = known or OF_ADAM
    lr = pace.tuned if pretrained else pace.fresh
    decay = DECOUPLED if pace is OF_ADAM and opt.endswith("w") else pace.decay
    why = pace.why if known else "Adam's, for nobody has tried others here; --lr-find proposes one"
    return {"lr": lr, "lr_base_batch": None, "weight_decay": decay}, f"lr {lr:g} for {opt}: {why}"


def _finetune(n_images: int) -> Choice:
    settings = {
        "opt": "momentum", "momentum": 0.9, "lr": 0.01, "lr_base_batch": 32, "weight_decay": 1e-4,
        "weight_decay_filter": "no_norm_bias", "clip_grad": 5.0, "label_smoothing": 0.1, "scale": (0.35, 1.0),
        "color_jitter": 0.2, "val_fraction": held_out(n_images),
    }  # fmt: skip
    return settings, ["lr 0.01 per 32 pictures: SGD with momentum, small steps from the ImageNet weights"]


def _scratch(n_images: int) -> Choice:
    settings: dict[str, Any] = {"label_smoothing": 0.1, "re_prob": 0.25, "val_fraction": held_out(n_images)}
    if n_images >= 100_000:
        settings |= {
            "opt": "momentum", "momentum": 0.9, "lr": 0.045, "lr_base_batch": 256, "clip_grad": 5.0,
            "weight_decay": 4e-5, "weight_decay_filter": "all", "auto_augment": "autoaug", "scale": (0.08, 1.0),
        }  # fmt: skip
        return settings, ["lr 0.045 per 256 pictures: MindCV's recipe for this network, from scratch"]
    settings |= {
        "opt": "adamw", "lr": 5e-4, "lr_base_batch": None, "opt_beta2": 0.98, "weight_decay": 0.05,
        "weight_decay_filter": "no_norm_bias", "init": "shallow", "auto_augment": "trivialaugwide", "scale": (0.2, 1.0),
    }  # fmt: skip
    return settings, ["init shallow, AdamW lr 0.0005: learns fastest where there is little data and time"]


def held_out(n_images: int) -> float:
    """The part of so many pictures to validate on, where nobody has set some aside."""
    return 0.2 if n_images < 500 else 0.1 if n_images < 50_000 else 0.05


def _advice(n_images: int, n_classes: int, pretrained: bool) -> Choice:
    reasons = []
    if n_images / n_classes < 20:
        reasons.append(f"{n_images / n_classes:.0f} pictures per class are few: results will vary, more will help most")
    if not pretrained and n_images < 50_000:
        reasons.append(f"{n_images} pictures are few to train from scratch: --pretrained reaches more in less time")
    return {}, reasons
