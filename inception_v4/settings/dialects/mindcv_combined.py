"""MindCV's settings that mean something only together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inception_v4.settings.addresses import is_address
from inception_v4.settings.dialects.rules import NO_EFFECT, NOTHING, Combination, DialectError, Outcome, View, shown
from inception_v4.settings.dialects.shared import on_modelarts

MINDCV_MODELARTS = {
    "data_url": "`data_dir` is its folder of the name of `dataset`, copied to `data_cache`, which is /cache",
    "train_url": "`upload_to`, as the results grow",
}
"""Keys of the cloud that MindCV's train.py reads, and what they are here."""


def end_only(view: View) -> Outcome:
    if view.switch("val_while_train") or view.level("val_interval") > view.level("val_while_train"):
        return NOTHING
    epochs = view.get("epochs") if view.level("epochs") > view.level("epoch_size") else view.get("epoch_size")
    notice = "val_while_train=False: validated once, after the last epoch; give --val_interval 1 for every epoch"
    return {"val_interval": epochs or 1, "val_start": None}, [notice]


def nesterov(view: View) -> Outcome:
    wanted, opt = view.switch("use_nesterov"), str(view.get("opt") or "").lower()
    if view.level("opt") > view.level("use_nesterov") and opt == "nesterov":
        return NOTHING
    if not wanted:
        # MindCV's `nesterov` is plain momentum unless use_nesterov is true.
        return ({"opt": "momentum"}, ["opt=nesterov with use_nesterov=False is plain momentum in MindCV, and here"]
                ) if opt == "nesterov" else NOTHING  # fmt: skip
    if opt in ("sgd", "momentum", "nesterov"):
        return {"opt": "nesterov"}, []
    if opt == "adam":
        raise DialectError("use_nesterov=True with opt=adam: MindSpore's variant is not offered; use opt=nadam")
    return {}, [f"use_nesterov=True{NO_EFFECT}opt is {opt or 'not given'}"]


def epsilon(view: View) -> Outcome:
    opt = str(view.get("opt") or "rmsproptf").lower()
    if "rmsprop" in opt:
        return ({"opt_eps": view.get("eps")}, []) if view.level("opt_eps") < view.level("eps") else NOTHING
    unused = f"eps={shown(view.get('eps'))}{NO_EFFECT}MindCV uses it for rmsprop only, and opt is {opt}"
    return {}, [unused] if view.level("eps") > 0 else []


def warm_up(view: View) -> Outcome:
    if view.level("warmup_lr") > view.level("warmup_factor"):
        return NOTHING
    lr, factor = view.number("lr"), view.number("warmup_factor")
    if lr is None and factor:
        raise DialectError(f"warmup_factor={shown(factor)} is a part of lr: give lr as well, or warmup_lr")
    return {"warmup_lr": (factor or 0.0) * (lr or 0.0)}, []


def exponential_by_epoch(view: View) -> Outcome:
    """MindCV's exponential decay has a period of one epoch, whatever decay_epochs says."""
    if str(view.get("scheduler")).lower() != "exponential_decay":
        return NOTHING
    ignored = 0 < view.level("decay_epochs") <= view.level("scheduler")
    notice = f"decay_epochs={shown(view.get('decay_epochs'))}{NO_EFFECT}MindCV's exponential_decay is per epoch"
    return {"decay_epochs": 1}, [notice] if ignored else []


def cosine_cut(view: View) -> Outcome:
    """MindCV says so too: a cosine that does not fit into the run."""
    warm, decay = view.number("warmup_epochs") or 0, view.number("decay_epochs")
    epochs = view.number("epochs" if view.level("epochs") > view.level("epoch_size") else "epoch_size")
    if view.dialect != "MindCV" or "cosine" not in str(view.get("scheduler")) or not decay:
        return NOTHING
    if epochs is None or warm + decay <= epochs:
        return NOTHING
    return {}, [
        f"warmup_epochs {warm:g} + decay_epochs {decay:g} are more than {epochs} epochs: the cosine is cut off, as in "
        "MindCV; --decay_epochs none lets it end at min_lr"
    ]


def loss_scaling(view: View) -> Outcome:
    kind, older = str(view.get("loss_scale_type") or "fixed").lower(), view.switch("dynamic_loss_scale")
    if kind not in ("fixed", "dynamic", "auto"):
        raise DialectError(f"loss_scale_type={kind}: choose fixed or dynamic")
    if kind == "fixed" and not older:
        return NOTHING
    return {"loss_scale": "dynamic"}, [
        f"loss_scale={shown(view.get('loss_scale'))}{NO_EFFECT}a dynamic scale finds its own start"
    ]


def keeping(view: View) -> Outcome:
    policy = view.get("ckpt_save_policy")
    if policy is None:
        return {"keep_checkpoint_max": 1_000_000}, ["ckpt_save_policy=none: every checkpoint is kept"]
    if str(policy).lower() == "top_k":
        return {}, ["ckpt_save_policy=top_k: the best weights are always kept (best.safetensors), beside the newest"]
    if str(policy).lower() != "latest_k":
        raise DialectError(f"ckpt_save_policy={shown(policy)}: choose latest_k, top_k or none")
    return NOTHING


def mindcv_on_modelarts(view: View) -> Outcome:
    """Data is copied from DATA_URL/DATASET before a run, and ckpt_save_dir to TRAIN_URL after it."""
    given = [name for name in MINDCV_MODELARTS if view.get(name)]
    if view.dialect != "MindCV":
        return NOTHING
    if not view.switch("enable_modelarts"):
        return {}, [f"{', '.join(given)}{NO_EFFECT}enable_modelarts is False"] if given else []
    settings: dict[str, Any] = {}
    if url := view.get("data_url"):
        settings["data_dir"] = "/".join(filter(None, (str(url).rstrip("/"), view.get("dataset"))))
        settings |= {"data_cache": "/cache"} if is_address(url) else {}
    if url := view.get("train_url"):
        settings["upload_to"] = url if is_address(url) else Path(url).absolute().as_uri()
    return on_modelarts(view, settings)


COMBINATIONS = (
    Combination(("val_while_train",), end_only, also=("epoch_size", "epochs")),
    Combination(("use_nesterov",), nesterov, also=("opt",)),
    Combination(("eps",), epsilon, also=("opt",)),
    Combination(("warmup_factor",), warm_up, also=("lr",)),
    Combination(("scheduler",), exponential_by_epoch),
    Combination(("decay_epochs",), cosine_cut),
    Combination(("loss_scale_type", "dynamic_loss_scale"), loss_scaling, also=("loss_scale",)),
    Combination(("ckpt_save_policy",), keeping),
    Combination(("enable_modelarts", *MINDCV_MODELARTS), mindcv_on_modelarts, also=("dataset",)),
)
