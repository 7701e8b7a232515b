"""Whether every batch of an epoch is enough for BatchNorm, which takes statistics from the batch itself."""

from __future__ import annotations

from itertools import count

from inception_v4.preprocessing import STEMS


def smallest_batch(pictures: int, batch_size: int, processes: int, *, drop_last: bool) -> int:
    """Pictures in the smallest batch that any process gets in an epoch of at least one batch."""
    rest = 0 if drop_last else pictures % (batch_size * processes)
    return max(1, rest // processes) if rest else batch_size


def last_map(image_size: int, stem: str = "standard") -> int:
    """Side of the network's last feature map: 1 for 75 px, 8 for 299 with the standard stem."""
    side, (stride, padding, _) = image_size, STEMS[stem]
    border = 2 if padding == "same" else 0
    for step in (stride, 1, 2, 1, 2, 2, 2):  # of 3x3 windows
        side = (side + border - 3) // step + 1
    return side


def check_smallest(
    pictures: int, batch_size: int, processes: int, *, drop_last: bool, image_size: int, stem: str = "standard"
) -> None:
    """Raises ValueError where a process would get one picture and the last map is one pixel: there is no variance."""
    if last_map(image_size, stem) > 1 or smallest_batch(pictures, batch_size, processes, drop_last=drop_last) > 1:
        return
    others = [*range(batch_size - 1, 1, -1), *range(max(batch_size + 1, 2), pictures // processes + 1)]
    fitting = (n for n in others if smallest_batch(pictures, n, processes, drop_last=drop_last) > 1)
    remedies = [f"batch_size {n}" for n in fitting][:1]
    if batch_size > 1 and pictures >= batch_size * processes:
        remedies.append("drop_last true")
    remedies.append(f"image_size {next(size for size in count(image_size) if last_map(size, stem) > 1)}")
    which = "a batch" if batch_size == 1 else "the last batch of an epoch"
    raise ValueError(
        f"{which} has one picture{' per process' if processes > 1 else ''} ({pictures} pictures, batch_size "
        f"{batch_size} x {processes}), of which BatchNorm has no variance at image_size {image_size}: "
        f"give {', '.join(remedies[:-1])}{' or ' if len(remedies) > 1 else ''}{remedies[-1]}"
    )
