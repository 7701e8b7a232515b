"""A network that finds yellow discs and blue bars, built by hand: its first channels carry a colour from end to end.

Every convolution passes its first channels on as they are, so that the last maps show where a colour was. It is the
whole network with its real code, and what it looks at is known without training.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from inception_v4.network.model import InceptionV4
from inception_v4.preprocessing import Preprocessing
from inception_v4.weights import WeightsInfo, save_weights

SIDE = 171  # pixels: last maps of 4x4
HOW = Preprocessing(image_size=SIDE, crop_pct=1.0)
CORNERS = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
NAMES = ("bars", "disc", "nothing")
_YELLOW = (0.5, 0.5, -1.0)  # of normalised red, green and blue: grey is 0


def scene(kind: str, column: int, row: int, seed: int = 0) -> Image.Image:
    """A quiet ground with a yellow disc or blue bars, or nothing, in one of its quarters."""
    rng = np.random.default_rng(seed)
    ground = rng.normal(90, 10, (SIDE, SIDE, 1)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(np.repeat(ground, 3, 2))
    draw, radius = ImageDraw.Draw(image), SIDE * 0.17
    x, y = (SIDE * (0.25 + 0.5 * place) for place in (column, row))
    if kind == "disc":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(250, 240, 60))
    elif kind == "bars":
        for k in range(-3, 4, 2):
            middle = y + k * radius / 3.5
            draw.rectangle((x - radius, middle - radius / 5, x + radius, middle + radius / 5), fill=(60, 60, 250))
    return image


def pixels(image: Image.Image) -> Tensor:
    """uint8 [3, H, W]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


@cache
def finder(folder: Path) -> Path:
    """Weights for `NAMES`."""
    model = InceptionV4(len(NAMES)).eval()
    with torch.no_grad():
        for module in model.features.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
                high, wide = (side // 2 for side in module.kernel_size)
                for channel in range(2):
                    module.weight[channel, channel, high, wide] = 1
        first = model.features[0].conv
        first.weight.zero_()
        for channel, sign in enumerate((1, -1)):
            first.weight[channel] = sign * torch.tensor(_YELLOW)[:, None, None] / 9
        model.features[0].bn.bias[:2] = -0.05  # grey is 0 whatever its rounding
        head = model.last_linear
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 0.0, 1.5]))
        head.weight[1, 0] = head.weight[0, 1] = 25.0
    return save_weights(model, folder / "finder.safetensors", WeightsInfo(len(NAMES), NAMES, HOW, source="tests"))
