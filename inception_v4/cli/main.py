"""The command line: the only place with argument parsing and exit codes.

Nothing here imports torch before a command needs it: `--help` answers at once, and the device back ends are
prepared before torch's first import.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from inception_v4 import __version__
from inception_v4.cli.options import CONTEXT

FAILED, MISUSED = 1, 2
"""Exit codes: the work failed; the command line or a setting is wrong."""

COMMANDS = {
    "train": ("inception_v4.cli.train", "Train or fine-tune: pictures in, weights, curves and metrics out."),
    "validate": ("inception_v4.cli.validate", "Loss, top-1 and top-5 of a weights file on labelled pictures."),
    "predict": ("inception_v4.cli.predict", "Name what is on pictures."),
    "explain": ("inception_v4.cli.explain", "Show where on pictures classes were found."),
    "report": ("inception_v4.cli.report", "One HTML page about a run, or several compared."),
    "demo": ("inception_v4.cli.demo", "A page in the browser to try the network on pictures."),
    "serve": ("inception_v4.cli.serve", "The network as an HTTP service, for programs."),
    "push": ("inception_v4.cli.push", "Push a run's weights to the Hugging Face hub."),
    "export": (
        "inception_v4.cli.export",
        "Write the network for ONNX Runtime, OpenVINO, PyTorch, MindSpore or Ascend chips.",
    ),
    "convert": ("inception_v4.cli.convert", "Carry weights between PyTorch, timm, Cadene, MindCV and the ModelZoo."),
    "average": (
        "inception_v4.cli.average",
        "The mean of several runs' or checkpoints' weights, plain or a greedy soup.",
    ),
    "benchmark": ("inception_v4.cli.benchmark", "Time the network beside other programs', and the loader."),
    "env": ("inception_v4.cli.env", "Versions, devices and what works here."),
    "pack": (
        "inception_v4.cli.pack",
        "Pack pictures into shards (tar files), for disks and storage that like them large.",
    ),
    "draw": ("inception_v4.cli.draw", "Draw a new picture of a shape, to try `predict` on."),
}


_ENDS_IN_ORDER = ("train", "serve", "demo")
"""Commands with other processes, writers and connections, which Python may take apart at its leisure."""


class Commands(click.Group):
    """Subcommands whose code is imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader (`| head`) has gone: nothing is wrong, though click thinks so, and nothing more can be said.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="inception-v4")
def cli() -> None:
    """Inception-v4: train, validate, predict, convert.

    \b
    First steps:
      inception-v4 train                                    a two-minute run on drawn pictures
      inception-v4 train --data-dir photos/ --pretrained    your own folder, a sub-folder per class
      inception-v4 predict photo.jpg --pretrained           ImageNet names for a picture
      torchrun --nproc-per-node 8 -m inception_v4 train -c imagenet_rmsprop --data-dir /imagenet

    Every command explains itself: inception-v4 COMMAND --help. With --debug an error shows its traceback.
    """


def program() -> NoReturn:
    """`main` as a process of its own.

    What is registered for the end is done and written, then the process ends: to take torch and a runtime apart object
    by object takes half a second, as long as everything else about one picture.
    """
    try:
        main()
    except SystemExit as finished:
        if _needs_order():
            raise
        code = finished.code if isinstance(finished.code, int) else FAILED
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            continue  # the reader has gone, as in `run`
        except OSError as error:
            code = _complain(f"the output could not be written: {error.strerror}", FAILED)
    os._exit(code)


def _needs_order() -> bool:
    """Whether somebody waits for the interpreter's own end: a profiler, `python -i`, threads, another process."""
    watched = sys.getprofile() or sys.gettrace() or sys.flags.inspect or "RANK" in os.environ
    threads = [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    return bool(watched or threads or set(sys.argv[1:]) & set(_ENDS_IN_ORDER))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed, 2 wrong use, 75 stopped by a signal with its state saved."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or bool(os.environ.get("INCEPTION_V4_DEBUG"))
    words = [word for word in words if word != "--debug"]
    sys.exit(run(words, debug=debug))


def run(words: list[str], *, debug: bool = False) -> int:
    """The exit code of a command; errors become one line on stderr."""
    try:
        outcome = cli.main(words, prog_name="inception-v4", standalone_mode=False)
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return MISUSED
    except click.ClickException as error:
        return _complain(error.format_message(), MISUSED)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", 130)
    except Exception as error:
        if debug:
            raise
        return _complain(explain(error), getattr(error, "exit_code", FAILED))
    return outcome if isinstance(outcome, int) else 0


def explain(error: Exception) -> str:
    """One line for a person. Errors meant for them are `ValueError`, `OSError` or this project's own."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or ''}: {error.strerror}".removeprefix(": ")
    ours = type(error).__module__.startswith("inception_v4")
    if ours or isinstance(error, (ValueError, OSError)):
        return text
    return f"{type(error).__name__}: {text[:300]} (run again with --debug for the traceback)"


def _complain(message: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    click.echo(f"error: {message}" if rank == "0" else f"error (process {rank}): {message}", err=True)
    return code
