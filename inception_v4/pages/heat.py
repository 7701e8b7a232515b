"""Where on a picture a class was found: Grad-CAM from the feature maps, and occlusion, which needs no gradient.

The two fail differently. Grad-CAM (Selvaraju et al., arXiv 1610.02391) reads the network's own maps in one pass: the
last ones, 8x8 for 299 px; of small pictures earlier ones, 7x7 for 75 px, where the last have a single place. Occlusion
(Zeiler and Fergus, arXiv 1311.2901) covers one part of the picture after another and looks how far the probability
falls: it works for every runtime, with 64 passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inception_v4.console import progress
from inception_v4.network.fusion import FusedInceptionV4
from inception_v4.network.model import InceptionV4
from inception_v4.weights.record import probabilities_of

METHODS = ("gradcam", "occlusion")

_LEAST_SIDE = 4
"""Of the maps that Grad-CAM reads: smaller ones tell no places apart."""
_STEPS = 8
"""Places of the covering square along a side."""
_SPAN = 4
"""Its side is a quarter of the picture's: less hides too little of an object, more is vague."""
_BATCH = 16
_LEAST_FALL = 1e-3
"""Of a probability: what changes by less is not shown, or noise would look like an answer."""


class NoFeatureMaps(ValueError):
    """Grad-CAM of something that has none to show; one line with the remedy."""


def grad_cam(model: Any, images: Tensor, classes: Sequence[int]) -> Tensor:
    """Positive evidence for each class.

    Args:
        model: an `InceptionV4` or what `fuse` made of it, in evaluation mode.
        images: the network's input of one picture, [1, C, S, S].
        classes: K class numbers.
    Returns:
        float32 [K, S, S] on the host, each map from 0 to its own maximum 1; all 0 where nothing speaks for the class.
    Raises:
        NoFeatureMaps: `model` is an exported file.
    """
    if not isinstance(model, (InceptionV4, FusedInceptionV4)):
        raise NoFeatureMaps("Grad-CAM needs a weights file: an exported file has no feature maps (--method occlusion)")
    with torch.no_grad():
        depth, maps = _last_with_places(model.features, images)
    with torch.enable_grad():
        maps = maps.detach().clone().requires_grad_()  # a leaf: gradients end here
        logits = model.forward_head(model.features[depth:](maps))[0]
        heats = []
        for number in classes:
            (slope,) = torch.autograd.grad(logits[number], maps, retain_graph=True)
            heats.append((slope.mean((2, 3), keepdim=True) * maps).sum(1).detach())
    return _stretched(torch.cat(heats).float().clamp_min(0), images.shape[-1])


def _last_with_places(blocks: nn.Sequential, images: Tensor) -> tuple[int, Tensor]:
    """The last maps of some size, [1, C, h, w], and how many blocks they have come through."""
    maps = images
    for depth, block in enumerate(blocks):
        after = block(maps)
        if min(after.shape[-2:]) < _LEAST_SIDE:  # sides only shrink
            return depth, maps
        maps = after
    return len(blocks), maps


@torch.no_grad()
def occlusion(
    model: Callable[[Tensor], Tensor], images: Tensor, classes: Sequence[int], *, multi_label: bool = False
) -> Tensor:
    """How far the probability of each class falls where the picture is covered.

    Args:
        model: logits [B, K] of a batch.
        images: as in `grad_cam`, or pixels [1, S, S, C] uint8 for a network that normalises by itself.
        classes: as in `grad_cam`.
        multi_label: as in `WeightsInfo`.
    Returns:
        As `grad_cam`; all 0 where no part is missed.
    """
    wanted = list(classes)
    channels_last = images.dtype == torch.uint8
    side = images.shape[2]
    places = _places(side)
    covered = torch.zeros((side, side))
    heat = torch.zeros((len(wanted), side, side))
    # The mean of the picture: a colour of the picture's own kind, which makes the fewest new edges.
    filler = images.float().mean((1, 2) if channels_last else (2, 3), keepdim=True).to(images.dtype)
    share = partial(probabilities_of, multi_label=multi_label)
    before = share(model(images).float())[0, wanted].cpu()
    with progress("covering parts", len(places)) as count_on:
        for start in range(0, len(places), _BATCH):
            chunk = places[start : start + _BATCH]
            masks = torch.zeros((len(chunk), side, side), dtype=torch.bool)
            for mask, (top, left, width) in zip(masks, chunk, strict=True):
                mask[top : top + width, left : left + width] = True
            hidden = (masks[..., None] if channels_last else masks[:, None]).to(images.device)
            falls = before - share(model(torch.where(hidden, filler, images)).float())[:, wanted].cpu()
            heat += torch.einsum("nk,nhw->khw", falls, masks.float())
            covered += masks.sum(0)
            count_on(len(chunk))
    heat = (heat / covered).clamp_min(0)
    heat[heat.amax((1, 2)) < _LEAST_FALL] = 0
    reach = side // (2 * _STEPS)  # the squares' edges are no part of the picture
    return _scaled(F.avg_pool2d(heat, 2 * reach + 1, 1, reach, count_include_pad=False))


def _places(side: int) -> list[tuple[int, int, int]]:
    """Top, left and width of the covering squares: every pixel is under some, and none reaches over the edge."""
    width = max(1, side // _SPAN)
    steps = torch.linspace(0, side - width, _STEPS).round().int().tolist()
    return [(top, left, width) for top in steps for left in steps]


def _stretched(maps: Tensor, side: int) -> Tensor:
    """[K, h, w] to [K, side, side]."""
    wide = F.interpolate(maps[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    return _scaled(wide.cpu())


def _scaled(heat: Tensor) -> Tensor:
    """Each map from 0 to 1; one without any heat stays 0."""
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
