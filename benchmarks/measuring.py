"""What all benchmarks share: medians and ratios of pairs, and raw results as JSON beside what they ran on.

A benchmark writes a file with ``record``; `docs/draw_results.py` makes the documents' tables of such files, by the
benchmark's function ``tables(found) -> {place: Markdown}``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedunlearn.atomic import write_json
from fedunlearn.environment import environment

__all__ = ["machine", "record", "relative", "spread"]


def relative(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Median of the ratios of neighbours: both sides of each were measured one after the other."""
    return statistics.median(ours / theirs for ours, theirs in zip(seconds, others, strict=True))


def spread(values: Sequence[float]) -> str:
    """Median, and from the smallest to the largest: ``0.17 (0.157 to 0.224)``."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def machine(found: Mapping[str, Any]) -> str:
    """What recorded results were measured on, in a line."""
    here = found.get("environment") or environment()
    torch = here["versions"]["torch"]
    return f"`{found.get('command', 'not recorded')}`, on {here['cores']} cores of {here['processor']}, torch {torch}"


def record(output: Path | None, found: Mapping[str, Any]) -> None:
    """Write raw results, with the command and what it ran on; nothing where no file is named."""
    if output is not None:
        command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        write_json(output, {"command": command, "environment": environment(), **found})
