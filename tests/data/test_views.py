"""The papers' crops: where they lie, by hand, and that the pixels are those."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from inception_v4.data.crops import resize
from inception_v4.data.jpeg import Box
from inception_v4.data.views import CROPS, Crop, Views, crop_boxes, eval_transform
from inception_v4.preprocessing import Preprocessing

LANDSCAPE = {
    # shorter side: (longer side, where the three squares begin, last corner in a square, its centre crop)
    341: (454, (0, 56, 113), 42, 21),
    384: (512, (0, 64, 128), 85, 42),
    427: (569, (0, 71, 142), 128, 64),
    469: (625, (0, 78, 156), 170, 85),
}
"""By hand, for a picture of 375 x 500 and an input of 299: 299 / 224 of 256, 288, 320 and 352, rounded down."""


def test_ten_crops_of_a_landscape_and_a_portrait_by_hand() -> None:
    places = [(0, 56), (0, 98), (42, 56), (42, 98), (21, 77)]
    assert crop_boxes(10, 375, 500, 299) == [Crop(341, 454, Box(top, left, 299, 299)) for top, left in places]
    turned = [(56, 0), (56, 42), (98, 0), (98, 42), (77, 21)]
    assert crop_boxes(10, 500, 375, 299) == [Crop(454, 341, Box(top, left, 299, 299)) for top, left in turned]


def test_twelve_are_the_ten_and_the_whole_centre_square() -> None:
    five, six = crop_boxes(10, 375, 500, 299), crop_boxes(12, 375, 500, 299)
    assert six == [*five, Crop(341, 454, Box(0, 56, 341, 341))]


@pytest.mark.parametrize("upright", [False, True])
def test_144_crops_by_hand(upright: bool) -> None:
    expected = []
    for shorter, (longer, starts, far, middle) in LANDSCAPE.items():
        for start in starts:
            places = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
            boxes = [(down, right, 299) for down, right in places] + [(0, 0, shorter)]
            for down, right, side in boxes:
                box = Box(start + down, right, side, side) if upright else Box(down, start + right, side, side)
                expected.append(Crop(*((longer, shorter) if upright else (shorter, longer)), box))
    found = crop_boxes(144, *((500, 375) if upright else (375, 500)), 299)
    assert found == expected and len(found) == 72, "and as many mirrored"
    assert [crop for crop in found if crop in crop_boxes(12, *((500, 375) if upright else (375, 500)), 299)] == (
        crop_boxes(12, *((500, 375) if upright else (375, 500)), 299)
    ), "12 are a part of the 144"


def test_crops_lie_in_pictures_of_any_shape_and_cover_them() -> None:
    for height, width in ((1, 1), (3, 900), (900, 3), (74, 75), (256, 256)):
        for crops in CROPS[1:]:
            for high, wide, box in crop_boxes(crops, height, width, 75):
                assert box.top >= 0 and box.left >= 0 and box.top + box.height <= high and box.left + box.width <= wide
    ends = {(crop.width, crop.box.left + crop.box.width) for crop in crop_boxes(144, 80, 100, 75)}
    assert {wide for wide, end in ends if wide == end} == {wide for wide, _ in ends}, "the last square ends at the edge"


def pictures_of(crops: int, image: Tensor, how: Preprocessing) -> Tensor:
    return eval_transform(how, Views(crops))(image)


def test_pixels_are_those_of_the_boxes_and_of_torchvisions_ten_crop() -> None:
    how = Preprocessing(image_size=75)
    image = torch.randint(0, 256, (3, 85, 100), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    square = image[:, :, 7:92]  # the shorter side is 85 = 75 * 256 / 224 already, the other is left as it is
    ten = pictures_of(10, image, how)
    assert ten.shape == (5, 3, 75, 75) and torch.equal(ten, torch.stack(F.ten_crop(square, [75, 75])[:5]))
    mirrored = torch.stack(F.ten_crop(square, [75, 75])[5:])
    assert torch.equal(mirrored[[1, 0, 3, 2, 4]], ten.flip(-1)), "their mirror images are the rest, left for right"
    twelve = pictures_of(12, image, how)
    assert torch.equal(twelve[:5], ten) and torch.equal(twelve[5], resize(square, [75, 75], how))
    all_of_them = pictures_of(144, image, how)
    assert all_of_them.shape == (72, 3, 75, 75) and torch.equal(all_of_them[6:12], twelve), "the centre square's"
    larger = resize(image, [96, 112], how)  # 75 * 288 / 224 rounded down, and in proportion 112.9
    assert torch.equal(all_of_them[18], larger[:, :75, :75])
    assert max(Counter(view.numpy().tobytes() for view in all_of_them).values()) == 1, "72 different views"


def test_grey_pictures_and_what_there_is_no_rule_for() -> None:
    grey = Preprocessing(image_size=75, mean=(0.5,), std=(0.5,))
    assert pictures_of(12, torch.zeros(3, 90, 80, dtype=torch.uint8), grey).shape == (6, 1, 75, 75)
    with pytest.raises(ValueError, match="crops 11: give one of 1, 10, 12, 144"):
        Views(11)
    with pytest.raises(ValueError, match="the 12 crops are half of them mirrored already: leave --flip out"):
        Views(12, flip=True)
    assert [len(Views(crops)) for crops in CROPS] == [1, 10, 12, 144] and len(Views(flip=True)) == 2
