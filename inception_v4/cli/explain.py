"""The `explain` subcommand."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from inception_v4.accelerator import prepare_environment
from inception_v4.cli.options import CONTEXT, image_size_option, map_runtime_option
from inception_v4.console import say, track


@click.command("explain", context_settings=CONTEXT)
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE_OR_FOLDER...")
@click.option("--ckpt-path", metavar="FILE", help="Weights file, run directory or exported file.")
@click.option("--pretrained", is_flag=True, help="The published ImageNet weights.")
@click.option("--class", "class_name", metavar="NAME", help="Where this class is; default: the most probable ones.")
@click.option("--top-k", default=3, show_default=True, type=click.IntRange(1), help="Classes shown per picture.")
@click.option("--method", type=click.Choice(["gradcam", "occlusion"]), help="One way alone; default: both, or "
              "occlusion alone for an exported file.")  # fmt: skip
@click.option("-o", "--output-dir", default="explained", show_default=True, type=click.Path(file_okay=False),
              metavar="FOLDER", help="Where the PNG files go.")  # fmt: skip
@map_runtime_option
@image_size_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, npu, mps or xpu.")
def command(pictures: Sequence[str], class_name: str | None, **options: Any) -> int:
    """Show where on pictures classes were found, as heat over the picture.

    Two ways: Grad-CAM reads the network's last feature maps; occlusion covers one part after another and sees how far
    the probability falls. Where both agree, the network has looked there. For each picture a sheet NAME.png, and each
    overlay alone as NAME-RANK-CLASS-METHOD.png.

    \b
      inception-v4 explain photo.jpg --pretrained
      inception-v4 explain photo.jpg --ckpt-path runs/photos --class cat --method gradcam
    """
    prepare_environment(options["device"])
    if options["pretrained"] == bool(options["ckpt_path"]):
        raise click.UsageError("give --ckpt-path FILE or --pretrained, one of them")
    from inception_v4.data.named_files import pictures_in
    from inception_v4.data.pictures import CorruptImage
    from inception_v4.inference.predict import PRETRAINED, Predictor
    from inception_v4.pages.explaining import class_number, explain_picture, methods_for, stems, write_overlays
    from inception_v4.storage.outgoing import check_target, outgoing

    check_target(options["output_dir"])

    names = pictures_in(pictures, sys.stdin.buffer)
    source = PRETRAINED if options["pretrained"] else options["ckpt_path"]
    given = {name: options[name] for name in ("runtime", "device", "image_size")}
    predictor = Predictor(source, cache=False, **given)  # in PyTorch, which has feature maps
    for message in predictor.messages:
        say(message)
    methods = methods_for(predictor, options["method"])
    if class_name is not None:
        class_number(predictor.class_names, class_name)  # a wrong name is said before any work
    unread = 0
    with outgoing(options["output_dir"]) as folder:
        for name, stem in track(list(zip(names, stems(names), strict=True)), "explaining"):
            try:
                found = explain_picture(predictor, name, methods=methods, top_k=options["top_k"], class_name=class_name)
            except (CorruptImage, OSError) as error:
                if len(names) == 1:
                    raise
                unread += 1
                say(f"{name}: {error}" if name not in str(error) else str(error))
                continue
            click.echo(folder.told(str(write_overlays(found, stem, folder.path)[0])))
    if unread:
        say(f"{unread} of {len(names)} pictures could not be read")
    return int(bool(unread))
