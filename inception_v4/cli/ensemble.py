"""The words that say what is averaged: several files after `--ckpt-path`, several views of each picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

FLAG = "--ckpt-path"
_FILES = (".safetensors", ".pth", ".pt", ".tar", ".bin", ".ckpt", ".npz", ".index", ".onnx", ".xml", ".pt2", ".om")
"""Suffixes that no picture has."""


def views_options(command: Any) -> Any:
    """`--crops` and `--flip`."""
    crops = click.option(
        "--crops", default="1", show_default=True, type=click.Choice(["1", "10", "12", "144"]),
        help="Views of each picture whose probabilities are averaged, as in the papers; more than 1 include mirror "
        "images and have sizes of their own, whatever crop_pct.",
    )  # fmt: skip
    flip = click.option("--flip", is_flag=True, help="Average each picture with its mirror image.")
    return crops(flip(command))


def is_file_of_weights(word: str) -> bool:
    """By its name alone, as a shell shows it: no picture is called so."""
    return word.lower().endswith(_FILES)


def one_flag_each(words: Sequence[str], belongs: Callable[[str], bool]) -> list[str]:
    """`words` with `--ckpt-path A B` spelled `--ckpt-path=A --ckpt-path=B`.

    Args:
        belongs: whether a word after the first file is another one; a flag never is.
    """
    found: list[str] = []
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name.replace("_", "-") != FLAG or not (equals or rest):
            found.append(f"{name}{equals}{value}")
            continue
        files = [value if equals else rest.pop(0)]
        while rest and not rest[0].startswith("-") and belongs(rest[0]):
            files.append(rest.pop(0))
        found += [f"{FLAG}={file}" for file in files]
    return found


class PredictCommand(click.Command):
    """A command that takes pictures, and several weights files after one flag: told apart by their suffix."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, one_flag_each(args, is_file_of_weights))
