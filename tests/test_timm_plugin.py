"""The network in timm's registry, against timm's own `inception_v4`."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from live import enliven
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay

import inception_v4.timm_plugin  # noqa: F401
from inception_v4.model import InceptionV4

NAME = "inception_v4_plus"


@pytest.fixture(scope="module")
def peer() -> torch.nn.Module:
    return enliven(timm.create_model("inception_v4", num_classes=7)).eval()


@pytest.fixture(scope="module")
def overlay(peer: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """timm's own weights as "pretrained" weights on disk."""
    file = tmp_path_factory.mktemp("weights") / "peer.safetensors"
    save_file(peer.state_dict(), file)
    return {"file": str(Path(file)), "num_classes": 7}


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(0))


def test_is_listed_with_the_published_weights() -> None:
    assert NAME in timm.list_models() and f"{NAME}.tf_in1k" in timm.list_pretrained()
    settings = timm.models.get_pretrained_cfg(f"{NAME}.tf_in1k")
    assert settings.hf_hub_id == "timm/inception_v4.tf_in1k"
    data = timm.data.resolve_data_config({}, pretrained_cfg=settings.to_dict())
    theirs = timm.data.resolve_data_config({}, pretrained_cfg=timm.models.get_pretrained_cfg("inception_v4").to_dict())
    assert data == theirs and data["mean"] == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_equals_timms_network_and_takes_its_weights(
    peer: torch.nn.Module, overlay: dict, pictures: torch.Tensor
) -> None:
    model = timm.create_model(NAME, pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay).eval()
    assert isinstance(model, InceptionV4)
    expected = peer(pictures)
    torch.testing.assert_close(model(pictures), expected)
    model.features[9].branch0.bn.bias += 0.1
    assert not torch.allclose(model(pictures), expected, rtol=1e-3), "a change in the middle must show"


def test_another_head_and_other_channels_adapt_the_weights(peer: torch.nn.Module, overlay: dict) -> None:
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
def test_features_only(peer: torch.nn.Module, overlay: dict, pictures: torch.Tensor) -> None:
    features = timm.create_model(
        NAME, pretrained=True, features_only=True, out_indices=(1, 4), pretrained_cfg_overlay=overlay
    ).eval()
    assert features.feature_info.channels() == [160, 1536] and features.feature_info.reduction() == [4, 32]
    expected = peer.forward_intermediates(pictures, indices=[1, 4], intermediates_only=True)
    for ours, theirs in zip(features(pictures), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
