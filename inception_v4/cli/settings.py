"""The settings of a run as flags, and the way from the words of a command line to a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from inception_v4.cli.options import announce
from inception_v4.settings.dialects import FLAGS, SWITCHES
from inception_v4.settings.recipes import leaf_fields, load_config
from inception_v4.settings.schema import Config


class SettingsCommand(click.Command):
    """A command whose flags are the settings of a run, shown by section; `name=value` needs no dashes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {option for parameter in self.params for option in parameter.opts}
        return super().parse_args(ctx, with_keywords([with_dashes(word, known) for word in args]))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        leaves = leaf_fields()
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            section = leaves[parameter.name][0] if parameter.name in leaves else None
            if row:
                holder = Config.model_fields[section].annotation if section else None
                title = (holder.__doc__ or "").rstrip(".") if holder else "Options"
                sections.setdefault(title, []).append(row)
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def with_dashes(word: str, known: set[str]) -> str:
    """`name=value` as a flag where `known` has it; other words as they are."""
    name, equals, _ = word.partition("=")
    return f"--{word}" if equals and f"--{name.replace('_', '-')}" in known else word


def with_keywords(words: list[str]) -> list[str]:
    """The several words `a=1 b=2` that timm takes after `--opt-kwargs` as one, `a=1,b=2`."""
    joined: list[str] = []
    for word in words:
        follows = len(joined) > 1 and joined[-2] == "--opt-kwargs" and "=" in word and not word.startswith("-")
        joined[-1:] = [f"{joined[-1]},{word}"] if follows else [*joined[-1:], word]
    return joined


def settings(*sections: str, own: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """A flag for every setting of the sections (default: all), and hidden ones in other projects' spelling.

    Args:
        own: flags that mean something else to the command.
    """

    def decorate(function: Any) -> Any:
        ours = {name: row for name, row in leaf_fields().items() if name not in own}
        for name in sorted(FLAGS, reverse=True):
            if name not in leaf_fields() and name not in own:
                function = _option(name, FLAGS[name], hidden=True)(function)
        for name, (section, field) in reversed(ours.items()):
            visible = not sections or section in sections
            if field.annotation is bool or field.annotation == (bool | None):
                function = _negative(name)(function)
            function = _option(name, _help(field), hidden=not visible, is_bool=_is_bool(field))(function)
        return function

    return decorate


def _is_bool(field: Any) -> bool:
    return field.annotation is bool or field.annotation == (bool | None)


def _help(field: Any) -> str:
    default = field.default
    if default is None or default is False or default == ():
        return str(field.description)
    shown = ",".join(f"{v:.4g}" for v in default) if isinstance(default, tuple) else default
    return f"{field.description} [{shown}]"


def _option(name: str, text: str, *, hidden: bool = False, is_bool: bool = False) -> Callable[[Any], Any]:
    flag = name.replace("_", "-")
    # Bare `--pretrained` is true, and so is `--pretrained True`; other projects' flags may stand alone too.
    alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if is_bool or hidden or name in SWITCHES else {}
    metavar = "" if is_bool else "VALUE"
    return click.option(f"--{flag}", name, type=str, default=None, help=text, hidden=hidden, metavar=metavar, **alone)


def _negative(name: str) -> Callable[[Any], Any]:
    return click.option(f"--no-{name.replace('_', '-')}", f"no_{name}", is_flag=True, default=False, hidden=True)


def given_settings(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that were on the command line; `--no-x` is x = false."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    negated = [name for name in given if name.startswith("no_") and name not in FLAGS]
    return {name: v for name, v in given.items() if name not in negated} | {name[3:]: "false" for name in negated}


def resolve(recipe: str | None, options: dict[str, Any]) -> Config:
    config, notices = load_config(recipe, given_settings(options))
    announce(notices)
    return config
