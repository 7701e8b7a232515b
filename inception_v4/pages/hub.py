"""A run as a repository of the Hugging Face hub, in timm's layout: config.json, model.safetensors and a model card."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from inception_v4.files import staged
from inception_v4.inference.metrics import class_scores, reliability
from inception_v4.pages.charts import curves
from inception_v4.pages.run_record import NotARun, RunRecord, settings_that_differ
from inception_v4.settings.schema import Run
from inception_v4.weights import WeightsInfo, read_weights
from inception_v4.weights.class_names import class_names_of, describe_class

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TIMM_BN_EPS = 1e-3
_PRIVATE = {"data_dir", "data_zip", "data_cache", "data_cache_gb", "workers"} | set(Run.model_fields) - {"seed"}
"""Settings that say more of a machine than of the network."""


class HubRefused(RuntimeError):
    """The hub did not take it; one line with the remedy."""


def write_repository(run: RunRecord, folder: Path, name: str, *, license_name: str | None = None) -> list[Path]:
    """Write the repository's files into `folder`; returns them.

    Args:
        name: `owner/name`, for the card's examples.
        license_name: of the weights, as the hub spells it; None leaves it open.
    Raises:
        NotARun: the run has no best.safetensors.
    """
    if not run.weights.is_file():
        raise NotARun(f"{run.folder} has no best.safetensors: let the run finish an epoch")
    info = read_weights(str(run.weights)).info
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(timm_config(info), indent=2, ensure_ascii=False) + "\n", "utf-8")
    charts = curves([run])[:2] if run.train else []
    for chart in charts:
        (folder / f"{chart.name}.png").write_bytes(chart.png)
    pictures = [f"![{chart.title}]({chart.name}.png)" for chart in charts]
    (folder / "README.md").write_text(model_card(run, info, name, pictures, license_name), "utf-8")
    return sorted(folder.iterdir())


def push_run(
    run: RunRecord, name: str, *, private: bool = False, license_name: str | None = None, message: str = ""
) -> str:
    """Write the repository and upload it in one commit; made where it is not there. Returns its address.

    Raises:
        HubRefused: no such name, no token, or no answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HfHubHTTPError

    api = HfApi()
    with staged(run.folder / "repository") as folder:
        write_repository(run, folder, name, license_name=license_name)
        try:
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=message or f"Run {run.name}")
        except HfHubHTTPError as error:
            code = error.response.status_code if error.response is not None else 0
            remedy = "check the name and the network"
            if code in (401, 403):
                remedy = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
            raise HubRefused(f"the hub refused {name} (status {code}): {remedy}") from error
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise HubRefused(f"{name} could not be pushed ({reason}): check the name and the network") from error
    return str(address)


def timm_config(info: WeightsInfo) -> dict[str, Any]:
    """What timm reads beside the weights."""
    how = info.preprocessing
    names = class_names_of(info)
    config: dict[str, Any] = {
        "architecture": "inception_v4",
        "num_classes": info.num_classes,
        "num_features": 1536,
        "pretrained_cfg": {
            "custom_load": False, "input_size": [info.in_channels, how.image_size, how.image_size],
            "fixed_input_size": False, "interpolation": how.interpolation, "crop_pct": how.crop_pct,
            "crop_mode": "center", "mean": list(how.mean), "std": list(how.std), "num_classes": info.num_classes,
            "pool_size": [8, 8], "first_conv": "features.0.conv", "classifier": "last_linear",
        },
    }  # fmt: skip
    arguments: dict[str, Any] = {} if info.in_channels == 3 else {"in_chans": info.in_channels}
    if info.stem != "standard":  # timm's own network would compute something else of these weights
        config["architecture"], arguments = "inception_v4_joined", {**arguments, "stem": info.stem}
    if arguments:
        config["model_args"] = arguments
    if names is not None:
        config["label_names"] = list(names)
        config["label_descriptions"] = {name: describe_class(name) for name in names}
    return config


def model_card(
    run: RunRecord, info: WeightsInfo, name: str, pictures: list[str], license_name: str | None = None
) -> str:
    """The repository's README.md: the run's own figures, how to use it, classes, preprocessing, settings, curves."""
    best = run.best
    names = class_names_of(info) or ()
    parts = [
        f"# {name.rpartition('/')[2]}",
        f"Inception-v4 ([paper](https://arxiv.org/abs/1602.07261)) for {info.num_classes} classes, trained with "
        f"inception-v4 (recipe {run.config.run.recipe}).",
        "## Results", _results(run, best),
        "## Use", _use(name, info),
        "## Preprocessing", f"{info.preprocessing}.",
        "## Classes", ", ".join(describe_class(one) for one in names[:1000]) if names else "Unnamed.",
    ]  # fmt: skip
    differing = [(key, _placeless(value[0])) for key, value in settings_that_differ([run]) if key not in _PRIVATE]
    parts += ["## Settings that are not the defaults", _table(("setting", "value"), differing)] if differing else []
    parts += ["## Curves", *pictures] if pictures else []
    return _front_matter(run, best, name, license_name) + "\n\n".join(parts) + "\n"


def _placeless(value: str) -> str:
    """Of paths and addresses the last names alone."""
    return ", ".join(re.split(r"[/\\]", part.rstrip("/\\"))[-1] for part in value.split(", "))


def _front_matter(run: RunRecord, best: dict[str, Any] | None, name: str, license_name: str | None) -> str:
    import yaml

    values: dict[str, Any] = {"library_name": "timm", "pipeline_tag": "image-classification",
                              "tags": ["image-classification", "timm", "inception-v4"]}  # fmt: skip
    if license_name:
        values["license"] = license_name
    if best is not None:
        kind = run.config.data.kind
        kinds = (("map", "mAP"),) if "map" in best else (("top1", "top-1"), ("top5", "top-5"))
        metrics = [{"type": "accuracy" if key != "map" else key, "name": label, "value": round(best[key], 2)}
                   for key, label in kinds]  # fmt: skip
        values["model-index"] = [{"name": name.rpartition("/")[2], "results": [
            {"task": {"type": "image-classification"}, "dataset": {"type": kind, "name": kind}, "metrics": metrics}
        ]}]  # fmt: skip
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n\n"


def _results(run: RunRecord, best: dict[str, Any] | None) -> str:
    if best is None:
        return "This run was not validated."
    rows = [("mAP", f"{best['map']:.2f} %"), ("macro F1", f"{best['macro_f1']:.2f} %")] if "map" in best else []
    rows += [("top-1", f"{best['top1']:.2f} %"), ("top-5", f"{best['top5']:.2f} %"),
             ("pictures", str(best["samples"])), ("epoch", str(best["epoch"] + 1))]  # fmt: skip
    if run.answers is not None:
        rows.append(("expected calibration error", f"{reliability(run.answers).ece:.2f} %"))
    if run.answers is not None and not run.answers.several:
        worst = min(class_scores(run.answers, run.answers.names), key=lambda row: row.f1)
        rows.append(("worst class", f"{describe_class(worst.name)}, F1 {worst.f1:.1f} %"))
    kind = run.config.data.kind
    return f"On the validation pictures of its run ({kind}):\n\n" + _table(("", ""), rows)


def _use(name: str, info: WeightsInfo) -> str:
    remark = "" if info.bn_eps == _TIMM_BN_EPS else (
        f"\n\ntimm's network has bn_eps {_TIMM_BN_EPS:g} and this one was trained with {info.bn_eps:g}: in timm its "
        "outputs differ a little.")  # fmt: skip
    if info.multi_label:
        remark += (
            "\n\nA picture may have several classes: the probability of each is the sigmoid of its output, "
            "`model(images).sigmoid()`.")  # fmt: skip
    plugin = "import inception_v4.timm_plugin  # this network in timm\n" if info.stem != "standard" else ""
    return (
        f'```python\n{plugin}import timm\n\nmodel = timm.create_model("hf-hub:{name}", pretrained=True).eval()\n```\n\n'
        f"```bash\ninception-v4 predict photo.jpg --ckpt-path {name}\n```{remark}"
    )


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [header, ("---", "---"), *((str(a).replace("|", "\\|"), str(b).replace("|", "\\|")) for a, b in rows)]
    return "\n".join(f"| {a} | {b} |" for a, b in lines)
