"""Pictures to begin with: of the run that the weights come from, else drawn ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from inception_v4.data.pictures import CorruptImage, read_picture
from inception_v4.data.shapes import KINDS, draw_shape
from inception_v4.pages.overlays import as_picture
from inception_v4.pages.run_record import NotARun, RunRecord, read_run
from inception_v4.pages.thumbnails import RunPictures

_COUNT = 6
_SIDE = 480
_SEED = 7


def write_examples(weights: str, class_names: Sequence[str], folder: Path) -> list[Path]:
    """A few JPEG files in `folder`: small copies, without what the originals say about place and camera.

    Args:
        weights: as given to the command. Of a run directory, its validation pictures are taken, of different classes.
        class_names: of the network; shapes among them are drawn rather than others.
    """
    images = list(_of_run(Path(weights))) or list(_drawn(class_names))
    files = []
    for name, image in images:
        image.thumbnail((_SIDE, _SIDE))
        files.append(folder / f"{name}.jpg")
        image.save(files[-1], quality=90)
    return files


def _drawn(class_names: Sequence[str]) -> Iterator[tuple[str, Image.Image]]:
    known = [kind for kind in KINDS if kind in class_names] or list(KINDS[3:])
    for kind in known[:_COUNT]:
        yield kind, draw_shape(kind, _SEED, _SIDE)


def _of_run(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    try:
        run = read_run(folder)
    except (NotARun, ValueError, OSError):
        return  # a weights file, a name on the hub, or a run whose record is damaged
    if run.answers is None:
        return
    pictures = RunPictures(run)
    for number, place in enumerate(_one_of_each(run), start=1):
        try:
            found = pictures.find(place)
            pixels = found if isinstance(found, torch.Tensor) else read_picture(found)
        except (CorruptImage, OSError, ValueError, KeyError):
            continue
        yield f"example-{number}", as_picture(pixels)


def _one_of_each(run: RunRecord) -> list[str]:
    """The first picture of each class, of some classes that are far apart in their list."""
    assert run.answers is not None
    first: dict[int, str] = {}
    for picture in run.answers.pictures:
        first.setdefault(picture.label, picture.path)
    step = max(1, len(first) // _COUNT)
    return [first[label] for label in sorted(first)[::step]][:_COUNT]
