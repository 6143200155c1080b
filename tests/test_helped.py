"""Every command's --help tells what each of its arguments is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import click
import pytest
import typer
from typer.models import ArgumentInfo

from fedunlearn.cli import app


def commands(app: typer.Typer, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command's words, and its function."""
    for command in app.registered_commands:
        assert command.name is not None
        yield (*path, command.name), command.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        name = group.typer_instance.info.name
        assert isinstance(name, str)
        yield from commands(group.typer_instance, *path, name)


COMMANDS = dict(commands(app))


def shown(path: tuple[str, ...]) -> str:
    command = typer.main.get_command(app)
    context = click.Context(command, info_name="fedunlearn")
    for word in path:
        assert isinstance(command, click.Group)
        command = command.commands[word]
        context = click.Context(command, info_name=word, parent=context)
    return " ".join(command.get_help(context).split())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_arguments_are_told_once_and_nothing_is_escaped(path: tuple[str, ...]) -> None:
    told = shown(path)
    assert "\\" not in told
    for hint in get_type_hints(COMMANDS[path], include_extras=True).values():
        for noted in getattr(hint, "__metadata__", ()):
            if isinstance(noted, ArgumentInfo):
                assert noted.help
                rest = told.partition(" Arguments: ")[2].partition(" Options: ")[0]
                assert rest.count(f"{noted.metavar}") >= 1
                assert rest.count(noted.help) == 1
    assert told.count("rguments:") <= 1


def test_what_must_be_given_is_said() -> None:
    assert re.search(r"REGISTER Its folder; no server may be at work there\. \[required\]", shown(("keys", "rotate")))
    assert "The private key that signs it now. [required]" in shown(("keys", "rotate"))
    assert "[env var: FEDUNLEARN_CACHE; default: ~/.cache/fedunlearn/models]" in shown(("run",))


def test_there_are_arguments_to_tell_of() -> None:
    assert len(COMMANDS) > 20
    assert {("keys", "show"), ("requests", "page"), ("receipt", "verify"), ("theory", "cka")} <= COMMANDS.keys()
