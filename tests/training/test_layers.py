"""Which layers learn, when, and how fast: with live weights, and with controls that move."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from live import enliven
from running import TINY, as_flags, differing, final_state, run_script, tiny
from temporary import NewFolder
from timm.optim import param_groups_layer_decay
from torch import nn

from inception_v4.accelerator import select
from inception_v4.distributed import World
from inception_v4.network.blocks import Mixed5a, ReductionA, ReductionB
from inception_v4.network.model import InceptionV4
from inception_v4.settings.recipes import ConfigError, build_config
from inception_v4.settings.schema import Optimizer, frozen_blocks
from inception_v4.settings.schema.learning import BLOCKS, STAGES
from inception_v4.storage.lock import FolderLock
from inception_v4.training.optim import build_optimizer, parameter_groups, set_learning_rate
from inception_v4.training.train import prepare, train

FOREVER = {"freeze": "inception_a", "ema": True, "ema_warmup": 3, "bn_momentum": 0.5, "weight_decay": 0.1}


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def block_of(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "features" else BLOCKS


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def network() -> InceptionV4:
    return InceptionV4(3)


def test_names_of_parts_are_those_of_the_network(network: InceptionV4) -> None:
    assert len(network.features) == BLOCKS == frozen_blocks("backbone") == frozen_blocks("features.21")
    ends = {kind: 1 + [isinstance(block, kind) for block in network.features].index(True)
            for kind in (Mixed5a, ReductionA, ReductionB)}  # fmt: skip
    assert [STAGES[name] for name in ("stem", "reduction_a", "reduction_b")] == list(ends.values())
    assert STAGES["inception_a"] == ends[ReductionA] - 1 and STAGES["inception_b"] == ends[ReductionB] - 1
    assert build_config({"freeze": "7"}).optimizer.freeze == 7 and frozen_blocks("features.0") == 1


@pytest.mark.parametrize("value", ["23", "-1", "features.22", "inception_c", "stam"])
def test_blocks_that_are_not_there_are_named(value: str) -> None:
    with pytest.raises(ConfigError, match=f"freeze='?{value}'?: give 0 to 22, stem, "):
        build_config({"freeze": value})


def test_thawing_nothing_and_thawing_under_a_fused_optimizer_are_refused() -> None:
    with pytest.raises(ConfigError, match="unfreeze_at 3 without frozen blocks"):
        build_config({"unfreeze_at": 3})
    with pytest.raises(ConfigError, match="unfreeze_at with fused_optimizer"):
        build_config({"freeze": 3, "unfreeze_at": 3, "fused_optimizer": True})


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_frozen_blocks_keep_weights_and_statistics_and_nothing_for_the_backward_pass(checkpointing: bool) -> None:
    model = enliven(InceptionV4(3, drop_rate=0.0)).train()
    assert isinstance(model, InceptionV4)
    model.set_grad_checkpointing(checkpointing)
    images = torch.randn(4, 3, 75, 75)

    def kept() -> int:
        """Bytes that a forward pass keeps, but for weights."""
        sizes: dict[int, int] = {}
        own = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in own:
                sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(images)
        return sum(sizes.values())

    whole = kept()
    for blocks in (10, 13, BLOCKS):
        model.freeze(blocks)
        assert model.train().training and not model.features[blocks - 1].training and model.last_linear.training
        before = state(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        changed = moved(before, state(model))
        assert {name for name in changed if block_of(name) < blocks} == set()
        assert changed == {name for name in before if block_of(name) >= blocks}, "statistics, weights and biases"
        left = kept()
        assert left < whole
        whole = left
    assert whole < 4 * 1536 * 4 * 3, "the classifier's input alone"
    model.freeze(0)
    model.train()(images).mean().backward()
    assert all(p.grad is not None for p in model.parameters()) and all(m.training for m in model.modules())


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_layer_decay_is_timms(network: InceptionV4, weight_decay: float) -> None:
    peer = timm.create_model("inception_v4", num_classes=3)
    theirs = {}
    names = {id(p): name for name, p in peer.named_parameters()}
    for group in param_groups_layer_decay(peer, weight_decay, layer_decay=0.7):
        theirs |= {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for p in group["params"]}
    settings = Optimizer(layer_decay=0.7, weight_decay=weight_decay, weight_decay_filter="no_norm_bias")
    groups = parameter_groups(network, settings)
    ours = {name: (g.get("lr_scale", 1.0), g["weight_decay"]) for g in groups for name in g["param_names"]}
    assert ours == {name: (pytest.approx(scale), decay) for name, (scale, decay) in theirs.items()}
    assert len({scale for scale, _ in ours.values()}) == 21 and ours["last_linear.weight"][0] == 1.0
    assert min(scale for scale, _ in ours.values()) == ours["features.2.conv.weight"][0] == pytest.approx(0.7**20)


@pytest.mark.parametrize("opt", ["momentum", "rmsproptf", "adamw", "lamb"])
def test_rates_of_layers_reach_every_kind_of_optimizer(network: InceptionV4, opt: str) -> None:
    settings = Optimizer(opt=opt, layer_decay=0.5, head_lr_scale=10.0)
    optimizer = build_optimizer(network, settings, 0.1)
    set_learning_rate(optimizer, 0.2)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates["last_linear.bias"] == pytest.approx(2.0)
    assert rates["features.21.branch0.conv.weight"] == pytest.approx(0.1)
    assert rates["features.20.branch0.bn.weight"] == pytest.approx(0.05)
    assert rates.keys() == dict(network.named_parameters()).keys()


SHORT = {"shapes_train": 8, "shapes_val": 4, "keep_checkpoint_max": 9, "ckpt_steps": 1, "unfreeze_at": 1} | FOREVER
"""Two epochs of two steps: the second with all blocks learning."""


@pytest.fixture(scope="module")
def thawed_run(module_folder: NewFolder) -> Path:
    folder = module_folder("thawed") / "run"
    train(tiny(folder, **SHORT))
    return folder


def at_step(folder: Path, step: int) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)


@pytest.mark.slow
def test_a_run_freezes_until_an_epoch_and_its_average_follows(thawed_run: Path) -> None:
    first, second, third = (at_step(thawed_run, step) for step in (1, 2, 3))
    for key in ("model", "ema"):
        assert min(map(block_of, moved(first[key], second[key]))) == 10, key
        assert min(map(block_of, moved(second[key], third[key]))) == 0, key


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3])
def test_going_on_before_and_after_the_thaw_gives_the_same_bits(thawed_run: Path, tmp_path: Path, step: int) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(thawed_run / "checkpoints" / f"step-{step:08d}.pt", tmp_path / "checkpoints")
    shutil.copy(thawed_run / "best.safetensors", tmp_path)  # else the run would validate for the first time
    train(tiny(tmp_path, **SHORT | {"ckpt_steps": None}, resume="auto"))
    names = ("model", "ema", "optimizer", "step", "best")
    whole, resumed = final_state(thawed_run), final_state(tmp_path)
    assert differing({n: whole[n] for n in names}, {n: resumed[n] for n in names}) == []


def test_what_never_learns_has_no_optimizer_state_and_says_so(tmp_path: Path, capsys) -> None:
    loop = prepare(tiny(tmp_path, freeze="backbone", max_steps=1), select("cpu"), World(), FolderLock(print))
    loop.log.close()
    names = [name for group in loop.job.learner.optimizer.param_groups for name in group["param_names"]]
    assert names == ["last_linear.weight", "last_linear.bias"]
    assert "the first 22 blocks are frozen: 3,074 parameters learn" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_freeze_and_thaw(tmp_path: Path) -> None:
    words = ("train", *as_flags(TINY | SHORT | {"shapes_train": 16}), "--output-dir=run")
    run_script("node_local.py", *words, cwd=tmp_path)
    first, second, last = (at_step(tmp_path / "node0" / "run", step) for step in (1, 2, 4))
    assert min(map(block_of, moved(first["model"], second["model"]))) == 10
    assert min(map(block_of, moved(second["model"], last["model"]))) == 0


def cost(step: Callable[[], object]) -> float:
    """Seconds of the processor, which other programs on the machine do not change as they change the clock's."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return min(seconds)


@pytest.mark.slow
def test_a_step_with_a_frozen_backbone_takes_less_than_half_the_time() -> None:
    torch.set_num_threads(1)  # threads that wait would count
    model = InceptionV4(3).to(memory_format=torch.channels_last).train()
    images = torch.randn(8, 3, 75, 75).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        model(images).square().mean().backward()
        model.zero_grad()

    step()
    whole = cost(step)
    model.freeze(BLOCKS)
    step()
    assert whole / cost(step) > 2.2
