"""Help that tells of arguments too, whatever click typer stands on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import get_type_hints

import click
import typer
from typer.core import TyperArgument, TyperCommand
from typer.models import ArgumentInfo

__all__ = ["give_help"]


class _Command(TyperCommand):
    """A command whose help is whole.

    Flower holds typer below 0.21. On click 8.5, whose arguments have a help of their own, it loses the help of each;
    and it escapes brackets for rich although rich is not to read them.
    """

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        told = dict(_told(self))
        for parameter in self.params:
            if isinstance(parameter, TyperArgument) and parameter.name in told:
                parameter.help = told[parameter.name]
        super().format_help(ctx, formatter)
        formatter.buffer[:] = [text.replace("\\[", "[") for text in formatter.buffer]

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: what click 8.5 asks for here stands among typer's own chapters, in `format_options`."""


def give_help(app: typer.Typer) -> None:
    """Let all commands of an app, and of those in it, tell all of their help."""
    for command in app.registered_commands:
        command.cls = _Command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            give_help(group.typer_instance)


def _told(command: click.Command) -> Iterator[tuple[str, str]]:
    """Names of arguments, with the help that the command's function gives each."""
    assert command.callback is not None
    for name, hint in get_type_hints(inspect.unwrap(command.callback), include_extras=True).items():
        for noted in getattr(hint, "__metadata__", ()):
            if isinstance(noted, ArgumentInfo) and noted.help:
                yield name, noted.help
