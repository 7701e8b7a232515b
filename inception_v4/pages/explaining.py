"""Overlay pictures that show where the classes of a picture were found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from inception_v4.files import atomic_write
from inception_v4.inference.predict import Predictor
from inception_v4.pages.heat import METHODS, NoFeatureMaps, grad_cam, occlusion
from inception_v4.pages.overlays import as_picture, overlay, sheet
from inception_v4.weights.class_names import describe_class

_LEAST_SIDE = 299  # pixels of an overlay: smaller inputs are enlarged
_TITLES = {"gradcam": "Grad-CAM", "occlusion": "occlusion"}


class Explanation(NamedTuple):
    """One picture's heat.

    Attributes:
        crop: what the network saw, [C, S, S] uint8.
        classes, probabilities: K classes, and what the network gives each.
        heats: by method, [K, S, S] from 0 to 1.
    """

    crop: Tensor
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    heats: dict[str, Tensor]


def explain_picture(
    predictor: Predictor,
    picture: str | Path | Tensor,
    *,
    methods: Sequence[str] = METHODS,
    top_k: int = 3,
    class_name: str | None = None,
) -> Explanation:
    """Where on a picture the network finds its first `top_k` classes, or `class_name`.

    Args:
        methods: some of `METHODS`.
    Raises:
        CorruptImage: the picture cannot be read.
        ValueError: no such class, or a method that the network's file does not allow.
    """
    crop = predictor.crop(picture)
    shares = predictor.crop_probabilities(crop[None])[0]
    if class_name is None:
        numbers = shares.topk(min(top_k, len(shares))).indices.tolist()
    else:
        numbers = [class_number(predictor.class_names, class_name)]
    covering = partial(occlusion, multi_label=predictor.info.multi_label)
    functions: dict[str, Callable[..., Tensor]] = {"gradcam": grad_cam, "occlusion": covering}
    images = predictor.network_input(crop[None])
    return Explanation(
        crop,
        tuple(predictor.class_names[k] for k in numbers),
        tuple(shares[numbers].tolist()),
        {name: functions[name](predictor.model, images, numbers) for name in methods},
    )


def methods_for(predictor: Predictor, asked: str | None) -> tuple[str, ...]:
    """The methods to use: the one asked for, else all that the network's file allows.

    Raises:
        NoFeatureMaps: Grad-CAM was asked for, of an exported file.
    """
    has_maps = isinstance(predictor.model, torch.nn.Module)
    if asked == "gradcam" and not has_maps:
        raise NoFeatureMaps("Grad-CAM needs a weights file: an exported file has no feature maps (--method occlusion)")
    return (asked,) if asked else METHODS if has_maps else ("occlusion",)


def class_number(names: Sequence[str], wanted: str) -> int:
    """The class called `wanted`, by its name, ImageNet's words for it, or its number.

    Raises:
        ValueError: none, or several; names what is near.
    """
    import difflib

    words = [describe_class(name) for name in names]
    found = [k for k, name in enumerate(names) if name == wanted]
    found = found or [k for k, text in enumerate(words) if text.lower() == wanted.lower()]
    if len(found) == 1:
        return found[0]
    if not found and wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    if found:
        raise ValueError(f"class {wanted!r} is {' and '.join(names[k] for k in found)}: give one of these names")
    near = difflib.get_close_matches(wanted, [*names, *words], n=3) or list(names[:5])
    raise ValueError(f"there is no class {wanted!r}: {', '.join(dict.fromkeys(near))} are among the {len(names)}")


def write_overlays(explanation: Explanation, stem: str, folder: Path) -> list[Path]:
    """A sheet `stem.png` with everything, and each overlay alone as `stem-1-CLASS-METHOD.png`; the sheet first."""
    side = max(_LEAST_SIDE, explanation.crop.shape[-1])
    whole = as_picture(explanation.crop, side)
    rows, files = [], []
    for method, heats in explanation.heats.items():
        row = [(_TITLES[method], whole)]
        for rank, (name, share, heat) in enumerate(
            zip(explanation.classes, explanation.probabilities, heats, strict=True), start=1
        ):
            image = overlay(explanation.crop, heat, side)
            # A map of zeros is no answer, and must not look like one.
            remark = "" if heat.any() else ": nothing found"
            row.append((f"{describe_class(name)} {100 * share:.1f} %{remark}", image))
            files.append((folder / f"{stem}-{rank}-{_in_file_names(name)}-{method}.png", image))
        rows.append(row)
    files.insert(0, (folder / f"{stem}.png", sheet(rows)))
    for path, image in files:
        _save(image, path)
    return [path for path, _ in files]


def _save(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def _in_file_names(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:60]


def stems(pictures: Sequence[str]) -> Iterator[str]:
    """A name for each picture's files; those of one name in several folders are numbered."""
    taken: set[str] = set()
    for picture in pictures:
        base = stem = Path(picture).stem
        number = 2
        while stem.casefold() in taken:
            stem, number = f"{base}-{number}", number + 1
        taken.add(stem.casefold())
        yield stem
