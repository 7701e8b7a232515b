"""Features of pictures in a file of the user's cache, named after all that decides its numbers.

It is whole or not there, and checked when it is opened.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from inception_v4.accelerator.precision import Precision
from inception_v4.data.labelled import Source
from inception_v4.data.loader import Batch, on_device
from inception_v4.data.normalise import Normalise
from inception_v4.distributed import World
from inception_v4.files import cache_dir, require_room, staged
from inception_v4.inference.engine_cache import find_entry, key_of, store_entry
from inception_v4.network.model import InceptionV4, pooled

FILE = "features.bin"
LIMIT = 40 << 30
"""Bytes of all tables together; those that were not used for longest go first. One of ImageNet has 8 GB."""


@dataclass
class FeatureTable:
    """The features of the pictures of a source, [N, 1536], as a file that is mapped into memory.

    Attributes:
        network: what computes them.
        normalise: its input of a batch's pictures.
        about: what decides how a picture becomes its features, beside the weights; plain values.
    """

    network: InceptionV4
    normalise: Normalise
    source: Source
    precision: Precision
    world: World
    about: dict[str, Any]

    def open(
        self, batches: Callable[[], Iterator[Batch]], *, beat: Callable[[str], None], say: Callable[[str], None]
    ) -> Tensor:
        """The table: the one that is kept, or a new one from `batches`, which give every picture in order."""
        root, key = cache_dir() / "features", self._key()
        kept = self.world.local_rank != 0 or find_entry(root, key) is not None
        if self.world.any(not kept):
            say(f"computing the features of {len(self.source)} pictures once (kept in {root})")
            self._make(root, key, batches(), beat)
        else:
            say(f"features of {len(self.source)} pictures are kept in {root}")
        shape = (len(self.source), self._width)
        numbers = torch.from_file(
            str(root / key / FILE), shared=False, size=shape[0] * shape[1], dtype=self.dtype
        )  # mapped: read where it is needed
        return numbers.view(shape)

    @property
    def _width(self) -> int:
        return int(self.network.head_hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.precision.amp_dtype or torch.float32

    def _key(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(backbone_of(self.network).items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        epsilon = next(m.eps for m in self.network.modules() if isinstance(m, _BatchNorm))
        kind = {"bn_eps": epsilon, "stem": self.network.stem}
        return key_of(weights=digest.hexdigest(), **kind, pictures=_pictures(self.source), **self.about)

    def _make(self, root: Path, key: str, batches: Iterable[Batch], beat: Callable[[str], None]) -> None:
        """Every process computes the features of its own pictures; one of each machine writes all of them."""
        rows = self._rows(batches, beat)
        if self.world.local_rank != 0:
            for _ in rows:
                continue
            self.world.barrier()
            return
        size = len(self.source) * self._width * self.dtype.itemsize
        require_room(root / key, size, f"the features of {len(self.source)} pictures")
        with staged(root / key) as part:
            with (part / FILE).open("wb") as file:
                for values in rows:
                    file.write(values.contiguous().view(torch.uint8).numpy().data)
            if (part / FILE).stat().st_size != size:
                raise AssertionError("a picture has no features, or has them twice")

            def move(folder: Path) -> dict[str, Any]:
                os.replace(part / FILE, folder / FILE)
                return self.about

            store_entry(root, key, move, limit=LIMIT)
        self.world.barrier()

    @torch.inference_mode()
    def _rows(self, batches: Iterable[Batch], beat: Callable[[str], None]) -> Iterator[Tensor]:
        """The features of all processes, a batch at a time, in the order of the source."""
        network = self.network
        was_training, done, waiting = network.training, 0, on_device(batches, self.precision.accelerator)
        network.eval()
        while self.world.any((batch := next(waiting, None)) is not None):
            beat(f"computing features after picture {done}")
            indices, values = torch.zeros(0, dtype=torch.int64), torch.zeros(0, self._width)
            if batch is not None:
                with self.precision.autocast():
                    maps = network.forward_features(self.normalise(batch.images))
                    values, indices = pooled(maps, network.global_pool).float(), batch.indices
            # Float32 on the way: it holds every value of a shorter type.
            indices, values = (torch.cat(self.world.gather(part)) for part in (indices, values))
            order = indices.argsort()
            new = torch.cat([torch.ones(1, dtype=torch.bool), indices[order].diff() != 0])
            chosen = order[new]  # without what a process repeats where it has none of a last short batch
            if indices[chosen].tolist() != [*range(done, done + len(chosen))]:
                raise AssertionError("the pictures did not come in their order")
            done += len(chosen)
            yield values[chosen].to(self.dtype)
        network.train(was_training)


def backbone_of(network: nn.Module) -> dict[str, Tensor]:
    """All of a network but its classifier, by name."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("last_linear.")}


def _pictures(source: Source) -> str:
    """A digest of which pictures these are: of files their paths, sizes and times, of others bytes or pixels."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        name = source.name(index)
        digest.update(f"{os.path.abspath(name) if os.path.isfile(name) else name}\0".encode("utf-8", "surrogateescape"))
        if os.path.isfile(name):
            status = os.stat(name)
            digest.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
        else:
            own = source.own_content(index)
            digest.update(source.load(index).contiguous().numpy().data if own is None else own)
    return digest.hexdigest()
