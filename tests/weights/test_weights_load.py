"""Loading, saving and fitting weights: PyTorch's files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch
from live import enliven
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models._manipulate import adapt_input_conv
from weights_cases import equal, fresh, logits, network, save, state, tiny_state

from inception_v4.preprocessing import IMAGENET_MEAN, Preprocessing
from inception_v4.weights import WeightsError, WeightsInfo, load_weights, read_weights, save_weights
from inception_v4.weights.loading import adapt_channels


@pytest.fixture(scope="module")
def saved(module_folder):
    """The live network, as this package saves it."""
    names = tuple(f"class {i}" for i in range(1000))
    info = WeightsInfo(class_names=names, preprocessing=Preprocessing(mean=IMAGENET_MEAN), extra={"top1": 80.1})
    return save_weights(network(), module_folder("saved") / "net.safetensors", info)


def test_saved_file_comes_back_with_its_description(saved):
    model = fresh()
    report = load_weights(model, saved, head="load")
    assert equal(dict(model.state_dict()), state())
    assert report.messages == []
    assert report.info.class_names[7] == "class 7"
    assert report.info.preprocessing.mean == IMAGENET_MEAN
    assert report.info.extra == {"top1": 80.1}


def test_metadata_say_how_to_use_the_file(saved):
    with safe_open(str(saved), "pt") as file:
        metadata = file.metadata()
    described = json.loads(metadata["inception_v4"])
    assert metadata["format"] == "pt"
    assert described["num_classes"] == 1000
    assert set(described["preprocessing"]) == {
        "image_size", "mean", "std", "crop_pct", "interpolation", "antialias", "exif_rotation"
    }  # fmt: skip


@pytest.mark.parametrize("classes", [1000, 10])
def test_timm_loads_the_file(saved, tmp_path, classes):
    path = saved
    if classes != 1000:
        path = save_weights(network(classes), tmp_path / "ten.safetensors", WeightsInfo(classes))
    overlay = {"file": str(path), "num_classes": classes}
    peer = timm.create_model("inception_v4", pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay)
    assert torch.equal(logits(peer.eval()), logits(network(classes)))


def test_live_signals_tell_two_weights_apart():
    other = enliven(fresh(), seed=1)
    assert (logits(other) - logits(network())).abs().max() > 0.1


def test_other_number_of_classes_keeps_the_new_head(saved):
    model = fresh(10)
    head = model.last_linear.weight.clone()
    report = load_weights(model, saved)
    assert torch.equal(model.last_linear.weight, head)
    assert torch.equal(model.features[0].conv.weight, network().features[0].conv.weight)
    assert "classifier of 1000 classes not loaded" in report.messages[0]
    assert (report.info.num_classes, report.info.class_names) == (10, None)
    with pytest.raises(WeightsError, match="has 1000 classes, the network 10: build it with num_classes=1000"):
        load_weights(model, saved, head="load")


def test_head_can_be_reset_or_absent(saved):
    model = fresh()
    head = model.last_linear.weight.clone()
    load_weights(model, saved, head="reset")
    assert torch.equal(model.last_linear.weight, head)
    model.reset_classifier(0)
    assert "the network has none" in load_weights(model, saved).messages[0]


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_input_channels_as_timm(saved, channels):
    model = fresh(in_channels=channels)
    report = load_weights(model, saved)
    expected = adapt_input_conv(channels, network().features[0].conv.weight.detach())
    assert torch.equal(model.features[0].conv.weight, expected)
    assert torch.equal(adapt_channels(expected, channels), expected) or channels == 1
    assert f"{channels} input channels" in report.messages[0]
    assert report.info.in_channels == len(report.info.preprocessing.mean) == channels


def test_cadene_background_class_is_dropped_and_said(tmp_path):
    path = save(state(1001), tmp_path / "inceptionv4.pth")
    model = fresh()
    report = load_weights(model, path)
    assert report.layout == "cadene"
    assert any("class 0 (background)" in line for line in report.messages)
    assert torch.allclose(logits(model), logits(network(1001))[:, 1:], atol=1e-5)
    keep = fresh(1001)
    assert load_weights(keep, path, classes="keep").info.num_classes == 1001
    assert torch.equal(logits(keep), logits(network(1001)))
    with pytest.raises(WeightsError, match="build it with num_classes=1001"):
        load_weights(model, path, classes="keep")
    with pytest.raises(WeightsError, match="has 1000 classes, so no background class"):
        load_weights(model, save(state(), tmp_path / "thousand.pth"), classes="drop-background")


def test_a_user_s_own_1001_classes_are_not_cut(tmp_path):
    info = WeightsInfo(1001, tuple(f"bird {i}" for i in range(1001)))
    path = save_weights(network(1001), tmp_path / "birds.safetensors", info)
    assert "classifier of 1001 classes not loaded" in load_weights(fresh(), path).messages[0]


def test_hash_in_the_name_is_checked(tmp_path):
    path = save(tiny_state(1001), tmp_path / "plain.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    right = path.rename(tmp_path / f"inceptionv4-{digest[:32]}.pth")
    assert read_weights(right).layout == "cadene"
    wrong = right.rename(tmp_path / "inceptionv4-8e4777a0.pth")
    with pytest.raises(WeightsError, match="its name says 8e4777a0: the file is damaged or another one"):
        read_weights(wrong)
    dated = wrong.rename(tmp_path / "inceptionv4-20260131.pth")
    assert read_weights(dated).info.num_classes == 1001


def _with_prefix(prefix):
    return lambda s: {prefix + name: tensor for name, tensor in s.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"state_dict": {"state_dict": s}},
        _with_prefix("module."),
        _with_prefix("_orig_mod."),
        _with_prefix("module._orig_mod."),
        lambda s: {"state_dict": _with_prefix("model.")(s), "pytorch-lightning_version": "2.5"},
        lambda s: {**_with_prefix("module.")(s), "n_averaged": torch.tensor(5)},
        lambda s: {n.replace("branch", "block").replace("last_linear", "classif"): t for n, t in s.items()},
        lambda s: {n.replace("last_linear", "classif"): t for n, t in s.items()},
    ],
)
def test_wrappers_and_old_spellings(tmp_path, wrap):
    expected = tiny_state()
    assert equal(read_weights(save(wrap(expected), tmp_path / "a.pt")).state, expected)


@pytest.mark.parametrize("names", [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema")])
def test_moving_average_on_request(tmp_path, names):
    plain, average = tiny_state(seed=0), tiny_state(seed=1)
    path = save({names[0]: plain, names[1]: average, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "c.pt")
    weights = read_weights(path)
    assert equal(weights.state, plain)
    assert any("moving average" in line for line in weights.notes)
    assert weights.dropped == ["optimizer: dict of 2"]
    assert equal(read_weights(path, ema=True).state, average)
    with pytest.raises(WeightsError, match="holds no moving average"):
        read_weights(save(plain, tmp_path / "p.pt"), ema=True)
    with pytest.raises(WeightsError, match="only a moving average"):
        read_weights(save({names[1]: average}, tmp_path / "e.pt"))


def test_timm_s_own_training_checkpoint(tmp_path):
    """Written by timm's saver: optimizer, scaler and a command line as Namespace."""
    from argparse import Namespace

    from timm.utils import CheckpointSaver, ModelEmaV3

    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    ema = ModelEmaV3(network())
    saver = CheckpointSaver(
        model, optimizer, args=Namespace(model="inception_v4", lr=0.1), model_ema=ema, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(0, 1.0)
    weights = read_weights(tmp_path / "last.pth.tar", ema=True)
    assert equal(weights.state, dict(ema.module.state_dict()))
    assert {line.split(":")[0] for line in weights.dropped} >= {"optimizer", "epoch", "args", "arch"}


def test_own_training_checkpoint_and_run_directory(tmp_path):
    info = WeightsInfo(preprocessing=Preprocessing(image_size=107), extra={"epoch": 4})
    content = {"model": tiny_state(), "ema": tiny_state(seed=1), "info": info.to_dict(), "step": 12, "rng": [1, 2]}
    save(content, tmp_path / "last.pt")
    weights = read_weights(tmp_path)
    assert weights.info.preprocessing.image_size == 107
    assert weights.dropped == ["step: 12", "rng: list of 2"]
    save_file(tiny_state(seed=2), tmp_path / "best.safetensors")
    assert equal(read_weights(tmp_path).state, tiny_state(seed=2))


def test_2017_files_get_their_counters(tmp_path):
    old = {name: tensor for name, tensor in tiny_state().items() if "num_batches" not in name}
    assert len(old) == 747
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    weights = read_weights(tmp_path / "old.pth")
    assert len(weights.state) == 896
    assert weights.state["features.0.bn.num_batches_tracked"] == 0
    assert weights.notes == ["num_batches_tracked: 149 counters created as 0"]


def test_missing_unexpected_and_misshapen_are_listed(tmp_path):
    broken = tiny_state()
    for i, name in enumerate(sorted(broken)[:12]):
        broken[f"extra.{i:02}"] = broken.pop(name)
    with pytest.raises(WeightsError, match=r"missing 10 \(features.*\); unexpected 12 \(extra\.00, extra\.01, "):
        read_weights(save(broken, tmp_path / "a.pth"))
    shaped = tiny_state() | {"features.1.bn.weight": torch.ones(5)}
    with pytest.raises(WeightsError, match=r"shapes .* 1 \(features\.1\.bn\.weight \(5,\)"):
        read_weights(save(shaped, tmp_path / "b.pth"))
    whole = tiny_state() | {"features.1.conv.weight": torch.ones(2, 2, 1, 3, dtype=torch.int32)}
    with pytest.raises(WeightsError, match=r"torch\.int32"):
        read_weights(save(whole, tmp_path / "c.pth"))
    with pytest.raises(WeightsError, match=r"shapes that do not fit the network: 746 \(features"):
        load_weights(fresh(), save(tiny_state(), tmp_path / "d.pth"))


def test_not_finite_is_refused_by_name(tmp_path):
    bad = state() | {"features.2.bn.bias": torch.full((64,), float("nan"))}
    path = save(bad, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 \(features\.2\.bn\.bias\)"):
        load_weights(fresh(), path)
    load_weights(fresh(), path, check_finite=False)


def test_other_epsilon_is_refused(tmp_path):
    path = save_weights(network(), tmp_path / "eps.safetensors", WeightsInfo(bn_eps=1e-5))
    with pytest.raises(WeightsError, match=r"epsilon of 1e-05, the network has \[0\.001\]: set bn_eps"):
        load_weights(fresh(), path)
    load_weights(fresh(bn_eps=1e-5), path)


def test_wrapped_modules_save_and_load(tmp_path, saved):
    compiled = torch.compile(fresh())
    load_weights(compiled, saved)
    path = save_weights(torch.nn.DataParallel(compiled), tmp_path / "a.safetensors", WeightsInfo())
    assert equal(read_weights(path).state, state())


def test_saving_checks_and_casts(tmp_path):
    with pytest.raises(WeightsError, match=r"must end in \.safetensors"):
        save_weights(network(), tmp_path / "a.pth", WeightsInfo())
    with pytest.raises(WeightsError, match="info says 10 classes, the module has 1000"):
        save_weights(network(), tmp_path / "a.safetensors", WeightsInfo(10))
    with pytest.raises(WeightsError, match="not exactly an Inception-v4: missing 896"):
        save_weights(torch.nn.Linear(1, 1), tmp_path / "a.safetensors", WeightsInfo())
    with pytest.raises(WeightsError, match="class names"):
        WeightsInfo(3, ("a", "b"))
    path = save_weights(network(), tmp_path / "new" / "half.safetensors", WeightsInfo(), dtype="bf16")
    half = read_weights(path).state
    assert half["features.0.conv.weight"].dtype == torch.bfloat16
    assert half["features.0.bn.num_batches_tracked"].dtype == torch.int64
    model = fresh()
    load_weights(model, path)
    assert torch.equal(model.last_linear.weight, network().last_linear.weight.bfloat16().float())


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, saved):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def broken_save(state, name, metadata):
        Path(name).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", broken_save)
    with pytest.raises(KeyboardInterrupt):
        save_weights(network(), path, WeightsInfo())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_words_of_imagenet_are_timms_and_read_once() -> None:
    from timm.data import ImageNetInfo

    from inception_v4.weights.class_names import describe_class, imagenet_words

    theirs, (synsets, words) = ImageNetInfo(), imagenet_words()
    assert list(synsets) == theirs.label_names() and len(synsets) == 1000
    assert all(words[name] == theirs.label_name_to_description(name) for name in synsets)
    assert describe_class("n01440764") == "tench" and describe_class("tench") == "tench"
    assert imagenet_words() is imagenet_words()
