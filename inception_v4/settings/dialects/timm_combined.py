"""timm's settings that mean something only together, or that its code means without being told."""

from __future__ import annotations

from inception_v4.settings.dialects.rules import NO_EFFECT, NOTHING, Combination, DialectError, Outcome, View, shown
from inception_v4.settings.dialects.shared import momentum_unused


def half_precision(view: View) -> Outcome:
    """timm's --amp takes its type from --amp-dtype."""
    if view.get("amp") is not True:
        return NOTHING
    words = {"bfloat16": "bf16", "float16": "fp16"}
    if view.get("amp_dtype") not in words:
        raise DialectError(f"amp_dtype={shown(view.get('amp_dtype'))}: choose bfloat16 or float16")
    return {"amp": words[view.get("amp_dtype")]}, []


def base_rate(view: View) -> Outcome:
    if view.get("lr") is not None:
        return NOTHING
    scale, opt = view.get("lr_base_scale"), str(view.get("opt"))
    if scale == "sqrt" or (scale is None and any(word in opt for word in ("ada", "lamb"))):
        raise DialectError("lr_base_scale=sqrt: the learning rate grows linearly with the batch; give --lr itself")
    return {"lr": view.get("lr_base"), "lr_base_batch": view.get("lr_base_size") or 256}, []


def per_epoch(view: View) -> Outcome:
    return {"lr_epoch_stair": view.get("sched_on_updates") is False}, []


def cosine_length(view: View) -> Outcome:
    """decay_epochs is for the step schedule in timm; its cosine lasts as long as the run."""
    return ({"decay_epochs": None}, []) if str(view.get("sched")).lower() == "cosine" else NOTHING


def output_folder(view: View) -> Outcome:
    parts = [str(part) for part in (view.get("output"), view.get("experiment")) if part]
    return ({"output_dir": "/".join(parts)}, []) if parts else NOTHING


def no_augmentation(view: View) -> Outcome:
    if not view.switch("no_aug"):
        return NOTHING
    plain_pictures = {"train_crop": "centre", "hflip": 0.0, "vflip": 0.0, "color_jitter": 0.0, "auto_augment": None}
    return plain_pictures | {"re_prob": 0.0}, []


def split_batches(view: View) -> Outcome:
    """timm splits batches with `aug_splits` and asks for the loss that compares the parts by another flag."""
    if view.dialect != "timm" and view.level("jsd_loss", "resplit") < 0:
        return NOTHING
    splits, loss = view.number("aug_splits") or 0, view.switch("jsd_loss")
    if bool(splits) != loss:
        raise DialectError(
            f"aug_splits={shown(splits)} with jsd_loss={loss}: here split batches and the Jensen-Shannon loss go "
            "together: give both"
        )
    if view.switch("resplit") and not splits:
        raise DialectError("resplit=True without aug_splits: give both, or leave it out")
    erased = splits and view.number("reprob") and not view.switch("resplit")
    note = "resplit=False: here the clean part of a split batch is not erased, as with timm's --resplit"
    return {"aug_splits": int(splits)}, [note] if erased else []


def teaching(view: View) -> Outcome:
    """timm adds two weighted losses; here the teacher has a share of one."""
    if view.get("kd_model_name") is None:
        return NOTHING
    task, distill = view.number("task_loss_weight"), view.number("distill_loss_weight")
    if distill is None:
        distill = 1.0 if task is None else 1 - task
    task = 1.0 if task is None else task
    if abs(task + distill - 1) > 1e-9 or not 0 <= distill <= 1:
        total = task + distill
        raise DialectError(
            f"task_loss_weight={shown(task)} and distill_loss_weight={shown(distill)}, as timm has them: here the two "
            f"add up to 1: give --task-loss-weight {shown(task / total if total > 0 else 0.5)} alone, and for SGD "
            "multiply lr by the sum that you had"
        )
    return {"distill_alpha": distill}, []


def one_interpolation(view: View) -> Outcome:
    wanted = str(view.get("train_interpolation"))
    if wanted == "random":
        return {}, [f"train_interpolation=random{NO_EFFECT}training uses interpolation, as validation does"]
    if view.get("interpolation") in (None, wanted):
        return {"interpolation": wanted}, []
    raise DialectError(f"train_interpolation={wanted} and interpolation={view.get('interpolation')}: here they are one")


def implied(view: View) -> Outcome:
    """What timm's code does without being told.

    Pictures as they are stored, class folders sorted naturally, biases and BatchNorm without weight decay (the
    `filter_bias_and_bn` of its optimizer factory), layers initialised as torch does it.
    """
    learning = {"weight_decay_filter": "no_norm_bias", "init": "torch"}
    return learning | {"exif_rotation": False, "class_order": "natural"}, []


def dropped(view: View) -> dict[str, str]:
    """timm writes its momentum of 0.9 into every args.yaml."""
    return momentum_unused(view, ("sgd", "momentum", "nesterov", "rmsprop", "lar", "madgrad", "kron", "muon", "orbv"))


COMBINATIONS = (
    Combination(("amp_dtype",), half_precision, also=("amp",)),
    Combination(("lr_base",), base_rate, also=("lr_base_size",)),
    Combination(("sched_on_updates",), per_epoch),
    Combination(("sched",), cosine_length),
    Combination(("output", "experiment"), output_folder),
    Combination(("no_aug",), no_augmentation),
    Combination(("aug_splits", "jsd_loss", "resplit"), split_batches, also=("reprob",)),
    Combination(("kd_model_name", "task_loss_weight", "distill_loss_weight"), teaching),
    Combination(("train_interpolation",), one_interpolation),
)
