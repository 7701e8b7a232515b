from __future__ import annotations

import base64
from contextlib import suppress

import numpy as np
import pytest

from inception_v4.data.matfile import read_mat

# Written by scipy.io.savemat: a structure array like that of ImageNet's meta.mat, three leaves and their parent.
META = base64.b64decode(
    "TUFUTEFCIDUuMCBNQVQtZmlsZSAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIC"
    "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAAAAAAAAAAAAABSU0PAAAAHAEAAHic42NgYDjAxsAARAwcQMzEAAGsUD4LEDNCMTsQF1fmFaeW"
    "FAPlWRj4oOIhQOzpExwW5GxkYGgU7+nCEO4HJOCgPL8opRjOS8/JL0bw8kpz45MzMnNSilLzGBgQLBgA2WHBgHAfG5r7GJEwCHBCxSHggz1IvwOSfh"
    "Ys+jmR9AtA+XkGhiYmBuZmJkjuIGQOD5o5IH5Jal5yho5CSGZeciLMHAM85sAAsjmUhwOmvej60e3lpI69DuSHv5GhkbGBiSmSOwiZQ2z4EzKHgwHT"
    "PYkKaZnFGQqHV1InXAYoPjgoiA9DE0szY2NDJHcQMmc0P6DbK0BB+AOBobmJAZI7CJkzeMMfkg49COhnRtMvAdf/wR7KcICZBwB7J0L3"
)


def test_structures_text_and_numbers() -> None:
    synsets = read_mat(META)["synsets"]
    assert [synset["WNID"] for synset in synsets] == ["n01440764", "n02123045", "n01496331", "n00001740"]
    assert [synset["ILSVRC2012_ID"] for synset in synsets] == [1, 2, 3, 4]
    assert synsets[0]["words"] == "tench, Tinca" and synsets[1]["gloss"] == "a fish é"
    assert synsets[0]["children"].size == 0
    np.testing.assert_array_equal(synsets[3]["children"], [[1, 2, 3]])


@pytest.mark.parametrize("end", [0, 100, 132, 200, len(META) - 1])
def test_truncated_files(end: int) -> None:
    with pytest.raises(ValueError):
        read_mat(META[:end])


def test_damaged_files_never_crash() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(META)
        data[rng.integers(128, len(data))] = rng.integers(256)
        with suppress(ValueError):
            read_mat(bytes(data))
