"""The oracle of AugMix: torchvision's on Pillow pictures throughout."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image


class AugMixOnPillow(v2.AugMix):
    """torchvision's, with every operation on a Pillow picture."""

    def _apply_image_or_video_transform(self, image: Tensor, *how: object, **named: object) -> Tensor:
        pillow = to_pil_image(image[0])
        return pil_to_tensor(super()._apply_image_or_video_transform(pillow, *how, **named))[None]
