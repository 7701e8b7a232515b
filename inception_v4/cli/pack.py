"""The `pack` subcommand."""

from __future__ import annotations

from typing import Any

import click

from inception_v4.cli.options import CONTEXT, announce

PACKABLE = ["folder", "list", "imagenet", "cifar10", "cifar100", "wds"]


@click.command("pack", context_settings=CONTEXT)
@click.argument("data")
@click.argument("shards")
@click.option("--dataset", type=click.Choice(PACKABLE),
              help="Kind of DATA; default: a list by its ending, ImageNet by its tar files, else folders.")  # fmt: skip
@click.option("--shard-mb", default=256.0, show_default=True, type=click.FloatRange(0, min_open=True),
              help="Megabytes of a shard, about.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the order in which training pictures are packed; those "
              "for validation stay in order.")  # fmt: skip
@click.option("--train-split", help="Training pictures; as in `train`.")
@click.option("--val-split", help="Validation pictures; as in `train`.")
@click.option("--class-order", default="text", show_default=True, type=click.Choice(["text", "natural"]),
              help="Of class folders; as in `train`.")  # fmt: skip
def command(data: str, shards: str, shard_mb: float, seed: int, **options: Any) -> None:
    """Pack pictures into shards (webdataset's tar files), to be read from disks and storage that like large files.

    DATA is what `train --data-dir` takes: folders by class, a list, CIFAR, or ImageNet's own tar files, which need not
    be unpacked. SHARDS is a new folder or an address (s3://bucket/folder). Pictures keep their bytes; labels and class
    names are inside, and a table of contents lies beside. The same command goes on after an interruption.

    \b
      inception-v4 pack photos/ shards/
      inception-v4 train --dataset wds --data-dir shards/
      inception-v4 pack /imagenet s3://bucket/imagenet --dataset imagenet
    """
    from inception_v4.data.packing import Destination, open_for_packing, pack
    from inception_v4.settings.schema import Data

    settings = Data(data_dir=data, **{name: value for name, value in options.items() if value is not None})
    to, said = Destination(shards), set[str]()
    for split, source in open_for_packing(settings, seed):
        announce([remark for remark in source.remarks if remark not in said])
        said.update(source.remarks)
        count = pack(source, split, to, shard_bytes=int(shard_mb * 1e6), seed=seed if split == "train" else None)
        click.echo(f"{shards}: {len(source)} pictures of {len(source.class_names)} classes in {count} shards ({split})")
