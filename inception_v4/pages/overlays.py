"""Heat maps as pictures: over the picture they are of, and several of them on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_STRENGTH = 0.6
"""Most that the colour hides of the picture: the coldest parts stay as they are."""
_GAP, _LINE = 8, 22
_PAPER, _INK = (255, 255, 255), (31, 35, 40)


def as_picture(crop: Tensor, side: int | None = None) -> Image.Image:
    """[C, S, S] uint8 as an RGB picture, `side` pixels wide where that is given."""
    pixels = crop.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return image.resize((side, side), Image.Resampling.BICUBIC) if side else image


def overlay(crop: Tensor, heat: Tensor, side: int | None = None) -> Image.Image:
    """The picture with its heat in colours: transparent where there is none, then from violet to yellow.

    Args:
        crop: what the network sees, [C, S, S] uint8.
        heat: [S, S] from 0 to 1.
        side: of the result in pixels; default S.
    """
    from matplotlib import colormaps

    image = as_picture(crop, side)
    grey = Image.fromarray((heat.numpy() * 255).round().astype(np.uint8))
    values = np.asarray(grey.resize(image.size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    colours = colormaps["plasma"](values)[..., :3] * 255
    alpha = (_STRENGTH * values**0.7)[..., None]
    mixed = (1 - alpha) * np.asarray(image, dtype=np.float32) + alpha * colours
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def sheet(rows: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Pictures of one size in rows, each under its caption."""
    side = rows[0][0][1].width
    columns = max(len(row) for row in rows)
    size = (columns * (side + _GAP) + _GAP, len(rows) * (side + _LINE + _GAP) + _GAP)
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    for i, row in enumerate(rows):
        for j, (caption, image) in enumerate(row):
            left, top = _GAP + j * (side + _GAP), _GAP + i * (side + _LINE + _GAP)
            draw.text((left, top + 3), _fitting(draw, caption, side), fill=_INK, font=_font())
            page.paste(image, (left, top + _LINE))
    return page


def _font() -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 13)  # comes with matplotlib


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The text, its end cut off where it is too long."""
    whole = text
    while text and draw.textlength(text + ("…" if text != whole else ""), font=_font()) > width:
        text = text[:-1]
    return text if text == whole else text + "…"
