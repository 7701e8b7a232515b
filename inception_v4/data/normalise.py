"""Bytes of pixels to numbers around 0, on whatever device they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inception_v4.preprocessing import Preprocessing

if TYPE_CHECKING:
    from inception_v4.settings.schema import Augmentation


class Normalise:
    """[B, C, S, S] uint8 to float32: less the mean, by the deviation. It never makes the host wait for the device.

    Args:
        how: what has `mean` and `std`, one value per channel on the 0-1 scale.
        memory_format: of the result.
    """

    def __init__(
        self, how: Augmentation | Preprocessing, memory_format: torch.memory_format = torch.contiguous_format
    ) -> None:
        self.memory_format = memory_format
        self._mean = torch.tensor(how.mean).mul(255).view(1, -1, 1, 1)
        self._std = torch.tensor(how.std).mul(255).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self.memory_format)  # while a pixel is one byte
        mean, std = self._constants(images)
        return images.float().sub_(mean).div_(std)

    def _constants(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation as they are laid out in `images`, on their device.

        With channels last one value per channel would be read in runs of three, and a CPU takes longer for that.
        """
        width = images.shape[3] if self.memory_format == torch.channels_last else 1
        if self._mean.device != images.device or self._mean.shape[3] != width:
            self._mean, self._std = (
                row[..., :1].expand(-1, -1, -1, width).to(images.device).contiguous(memory_format=self.memory_format)
                for row in (self._mean, self._std)
            )
        return self._mean, self._std
