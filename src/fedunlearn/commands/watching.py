"""Showing how far something is that takes long, and that goes on after it was stopped."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from fedunlearn.evaluation.rows import Row

__all__ = ["command_line", "of_run", "of_seed", "watch"]

Step = TypeVar("Step")
Result = TypeVar("Result")


def command_line() -> str:
    """What was typed, for the record."""
    return shlex.join(["fedunlearn", *sys.argv[1:]])


def of_run(row: Row) -> tuple[str, str, int]:
    """What `watch` is to say of a row of a run."""
    return f"seed {row.seed}, {row.method}", f"{row.phase} {row.rounds}", row.phase != "unlearn"


def of_seed(diagnosis: str, seed: int) -> tuple[str, str, int]:
    """What `watch` is to say of a seed that a diagnosis has looked at."""
    return f"seed {seed}, {diagnosis}", "", 1


def watch(
    steps: Generator[Step, None, Result], rounds: int, folder: Path, told: Callable[[Step], tuple[str, str, int]]
) -> Result:
    """Take all steps, showing each, and give what comes of them; Ctrl-C stops, with a sentence, and exit code 130.

    Args:
        steps: to be taken.
        rounds: that there are in all.
        folder: that holds what was done, which the same command goes on from.
        told: of a step, the part that it belongs to, what it is within it, and how many rounds it has done.
    """
    from fedunlearn.console import watching

    try:
        with watching(rounds) as show:
            while True:
                try:
                    show(*told(next(steps)))
                except StopIteration as done:
                    return done.value  # type: ignore[no-any-return]
    except KeyboardInterrupt:
        steps.close()
        print(f"fedunlearn: stopped; what was done is in {folder}, and the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
