"""Real photographs for tests, and class folders made of them."""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from inception_v4.shapes import draw_shape

_ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample-200.tar"


@cache
def _archived(count: int) -> tuple[bytes, ...]:
    with tarfile.open(_ARCHIVE) as tar:
        members = sorted((m for m in tar if m.isreg()), key=lambda m: m.name)
        step = max(1, len(members) // count)
        return tuple(tar.extractfile(m).read() for m in members[::step][:count])


def photos(count: int) -> tuple[bytes, ...]:
    """JPEG files of ImageNet classes, of many sizes; skips the test where they are not at hand."""
    if not _ARCHIVE.is_file():
        pytest.skip(f"{_ARCHIVE} is not here")
    return _archived(count)


def encoded(image: Image.Image, fmt: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def class_folders(root: Path, classes: dict[str, int], *, size: int = 48) -> Path:
    """`root/<class>/<i>.jpg` with drawn pictures, all different and not square; returns `root`."""
    for k, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = draw_shape("star", 1000 * k + i, size).crop((0, 0, size - i % 7, size - i % 5))
            (root / name / f"{i:03d}.jpg").write_bytes(encoded(image))
    return root
