"""The network in timm's registry, against timm's own `inception_v4` and against the plain network."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from in_process import Calls
from live import enliven
from running import environment
from safetensors.torch import save_file
from temporary import NewFolder
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from inception_v4.network.model import InceptionV4
from inception_v4.timm_plugin import JoinedInceptionV4

NAME = "inception_v4_joined"


@pytest.fixture(scope="module")
def peer() -> nn.Module:
    return enliven(timm.create_model("inception_v4", num_classes=7)).eval()


@pytest.fixture(scope="module")
def overlay(peer: nn.Module, module_folder: NewFolder) -> dict:
    """timm's own weights as "pretrained" weights on disk."""
    file = module_folder("weights") / "peer.safetensors"
    save_file(peer.state_dict(), file)
    return {"file": str(Path(file)), "num_classes": 7}


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(0))


def convolutions(model: nn.Module, x: Tensor) -> int:
    with Calls() as seen:
        model(x)
    return seen.convolutions


def test_is_listed_with_the_published_weights() -> None:
    assert NAME in timm.list_models() and f"{NAME}.tf_in1k" in timm.list_pretrained()
    settings = timm.models.get_pretrained_cfg(f"{NAME}.tf_in1k")
    assert settings.hf_hub_id == "timm/inception_v4.tf_in1k"
    data = timm.data.resolve_data_config({}, pretrained_cfg=settings.to_dict())
    theirs = timm.data.resolve_data_config({}, pretrained_cfg=timm.models.get_pretrained_cfg("inception_v4").to_dict())
    assert data == theirs and data["mean"] == (0.5, 0.5, 0.5)


def test_equals_timms_network_and_takes_its_weights(peer: nn.Module, overlay: dict, pictures: Tensor) -> None:
    model = timm.create_model(NAME, pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay).eval()
    assert isinstance(model, InceptionV4) and model.state_dict().keys() == peer.state_dict().keys()
    with torch.no_grad():
        expected = peer(pictures)
        torch.testing.assert_close(model(pictures), expected)
        assert (convolutions(model, pictures), convolutions(peer, pictures)) == (107, 149)
        model.features[9].branch0.bn.bias += 0.1
        assert not torch.allclose(model(pictures), expected, rtol=1e-3), "a change in the middle must show"
    assert convolutions(model, pictures) == 149, "with gradients it is the plain network"


def test_another_head_and_other_channels_adapt_the_weights(peer: nn.Module, overlay: dict) -> None:
    model = timm.create_model(NAME, pretrained=True, num_classes=2, in_chans=1, pretrained_cfg_overlay=overlay)
    assert model.get_classifier().out_features == 2 and model.in_chans == 1
    torch.testing.assert_close(model.features[0].conv.weight, peer.features[0].conv.weight.sum(1, keepdim=True))
    torch.testing.assert_close(model.features[21].branch0.conv.weight, peer.features[21].branch0.conv.weight)


def test_arguments_of_timms_train_script() -> None:
    model = timm.create_model(
        NAME, pretrained=False, in_chans=3, num_classes=4, drop_rate=0.3, drop_path_rate=None, drop_block_rate=None,
        global_pool="avg", bn_momentum=0.01, bn_eps=1e-5, scriptable=False, checkpoint_path="", init="xavier",
    )  # fmt: skip
    norm = model.features[0].bn
    assert model.head_drop.p == 0.3 and (norm.momentum, norm.eps) == (0.01, 1e-5)
    model.set_grad_checkpointing()
    groups = param_groups_layer_decay(model, layer_decay=0.75)
    assert len({group["lr_scale"] for group in groups}) > 20
    with pytest.raises(ValueError, match="output_stride 16"):
        timm.create_model(NAME, output_stride=16)


@torch.no_grad()
def test_features_only(peer: nn.Module, overlay: dict, pictures: Tensor) -> None:
    features = timm.create_model(
        NAME, pretrained=True, features_only=True, out_indices=(1, 4), pretrained_cfg_overlay=overlay
    ).eval()
    assert features.feature_info.channels() == [160, 1536] and features.feature_info.reduction() == [4, 32]
    expected = peer.forward_intermediates(pictures, indices=[1, 4], intermediates_only=True)
    for ours, theirs in zip(features(pictures), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


PLAIN, JOINED = 48, 39
"""Convolutions of `shallow`, and how many are left of them when those of a block are joined."""


def shallow(kind: type[InceptionV4] = JoinedInceptionV4) -> InceptionV4:
    """One block of each kind, in evaluation mode."""
    model = kind(5)
    model.features = nn.Sequential(*(model.features[i] for i in (0, 1, 2, 3, 4, 5, 6, 10, 11, 18, 19)))
    return enliven(model).eval()


@pytest.fixture(scope="module")
def live() -> InceptionV4:
    return shallow()


def outputs_of_the_plain_network(model: nn.Module, x: Tensor) -> Tensor:
    plain = shallow(InceptionV4).to(x.dtype)
    plain.load_state_dict(model.state_dict())
    return plain(x)


def train_a_step(model: nn.Module, x: Tensor) -> None:
    with torch.enable_grad():
        nn.functional.cross_entropy(model(x), torch.tensor([1, 2])).backward()
        torch.optim.SGD(model.parameters(), 0.1).step()


def other_weights(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return enliven(copy.deepcopy(model), seed=1).state_dict()


def exchange_a_layer(model: nn.Module, x: Tensor) -> None:
    model.features[6].branch0 = enliven(copy.deepcopy(model.features[6].branch0), seed=3)


@torch.inference_mode()
def scale_without_gradients(model: nn.Module, x: Tensor) -> None:
    model.features[4].branch0[0].conv.weight.mul_(1.5)


def write_behind_its_back(model: nn.Module, x: Tensor) -> None:
    model.features[6].branch0.bn.bias.data.add_(1)
    model.eval()


CHANGES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "optimizer": train_a_step,
    "load": lambda model, x: model.load_state_dict(other_weights(model, x)),
    "assign": lambda model, x: model.load_state_dict(other_weights(model, x), assign=True),
    "statistics": lambda model, x: model.train()(x) is model.eval(),
    "layer": exchange_a_layer,
    "inference mode": scale_without_gradients,
    "data": write_behind_its_back,
    "there and back": lambda model, x: model.bfloat16().float(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_weights_is_never_missed(change: Callable, live: InceptionV4, pictures: Tensor) -> None:
    model = copy.deepcopy(live)
    with torch.inference_mode():
        before = model(pictures)
        assert convolutions(model, pictures) == JOINED
    with torch.no_grad():
        change(model, pictures)
        after, expected = model(pictures), outputs_of_the_plain_network(model, pictures)
        assert convolutions(model, pictures) == JOINED
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 1e-2, "the change is one that shows"


@torch.no_grad()
def test_another_type(live: InceptionV4, pictures: Tensor) -> None:
    model = copy.deepcopy(live)
    model(pictures)
    exact = model.double()(pictures.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, outputs_of_the_plain_network(model, pictures.double()), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_timms_moving_average_is_evaluated_as_it_is_by_then(live: InceptionV4, pictures: Tensor) -> None:
    """It is in evaluation mode for good, and changes between two validations."""
    model = copy.deepcopy(live).train()
    ema = ModelEmaV3(model, decay=0.5)
    for _ in range(2):
        train_a_step(model, pictures)
        ema.update(model)
        with torch.inference_mode():
            found = ema(pictures)
            torch.testing.assert_close(found, outputs_of_the_plain_network(ema.module, pictures), rtol=1e-4, atol=1e-4)
            assert convolutions(ema, pictures) == JOINED


@torch.no_grad()
def test_where_more_than_the_outputs_matters_it_is_the_plain_network(live: InceptionV4, pictures: Tensor) -> None:
    model = copy.deepcopy(live)
    seen: list[Tensor] = []
    handle = model.features[6].branch0.register_forward_hook(lambda module, args, output: seen.append(output))
    assert convolutions(model, pictures) == PLAIN and len(seen) == 1
    handle.remove()
    model.features[3].train()
    assert convolutions(model, pictures) == PLAIN, "BatchNorm in training mode cannot be joined"
    model.eval()
    assert convolutions(model, pictures) == JOINED
    assert convolutions(model.train(), pictures) == PLAIN
    program = torch.export.export(model.eval(), (pictures,))
    assert sum("conv2d" in str(node.target) for node in program.graph.nodes) == PLAIN


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.jit, "script"), reason="this torch has no TorchScript")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_script_is_the_plain_network(pictures: Tensor) -> None:
    """timm's `test_model_forward_torchscript`."""
    with timm.layers.set_scriptable(True):
        model = enliven(timm.create_model(NAME, pretrained=False, num_classes=7)).eval()
    script = torch.jit.script(model)
    outputs = script(pictures)
    assert outputs.shape[0] == 2 and not torch.isnan(outputs).any()
    torch.testing.assert_close(outputs, model(pictures))


def test_copies_and_files_hold_the_network_alone(live: InceptionV4, pictures: Tensor) -> None:
    model = copy.deepcopy(live)
    sizes = []
    for _ in range(2):
        file = io.BytesIO()
        torch.save(model, file)
        sizes.append(file.tell())
        with torch.no_grad():
            model(pictures)
    assert sizes[0] == sizes[1] and model.state_dict().keys() == live.state_dict().keys()
    assert len(list(model.modules())) == len(list(live.modules()))


@pytest.mark.slow
def test_a_script_that_cannot_import_it_by_itself(tmp_path: Path) -> None:
    """As the document says it for timm's validate.py."""
    script = tmp_path / "script.py"
    script.write_text("import sys, timm\nassert __name__ == '__main__'\nprint(timm.is_model(sys.argv[2]))\n")
    code = f"import inception_v4.timm_plugin, runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    words = [sys.executable, "-c", code, "--model", NAME]
    done = subprocess.run(words, capture_output=True, text=True, env=environment())
    assert done.stdout == "True\n", done.stderr
