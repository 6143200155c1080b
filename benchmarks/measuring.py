"""What all benchmarks share: seconds, medians, ratios, tables, and raw results as JSON beside what they ran on.

A benchmark writes a file with ``record``; `docs/draw_results.py` makes the documents' tables of such files, by the
benchmark's function ``tables(found) -> {place: Markdown}``.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedunlearn.atomic import write_json
from fedunlearn.environment import environment

__all__ = ["machine", "record", "relative", "spread", "table", "timed"]


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def relative(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Median of the ratios of neighbours: both sides of each were measured one after the other."""
    return statistics.median(ours / theirs for ours, theirs in zip(seconds, others, strict=True))


def spread(values: Sequence[float]) -> str:
    """Median, and from the smallest to the largest: ``0.17 (0.157 to 0.224)``."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown: the first column to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def record(output: Path | None, found: Mapping[str, Any]) -> dict[str, Any]:
    """Raw results with the command and what it ran on, written to a file where one is named."""
    here = Path(__file__).resolve().parent.parent
    command = " ".join(["python", Path(os.path.relpath(sys.argv[0], here)).as_posix(), *sys.argv[1:]])
    recorded = {"command": command, "environment": environment(), **found}
    if output is not None:
        write_json(output, recorded)
    return recorded


def machine(recorded: Mapping[str, Any]) -> str:
    """The command and what it ran on, in a line of Markdown."""
    on = recorded["environment"]
    return f"`{recorded['command']}`: {on['processor']}, {on['cores']} cores, torch {on['versions']['torch']}."
