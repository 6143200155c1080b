"""What a person sees in a terminal: progress of a run, and its table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:  # else a table of layers would wait for torch
    from fedunlearn.evaluation.table import Line, Row, Spread

__all__ = ["console", "print_comparison", "watching"]


def console(width: int | None = None) -> Console:
    """Where to print; a pipe has no width, and rich would break names at 80 columns."""
    return Console(width=width if sys.stdout.isatty() else 160, markup=False, highlight=False)


@contextmanager
def watching(rounds: int) -> Iterator[Callable[[Row], None]]:
    """A bar on standard error, out of so many rounds; call what it gives with each row."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("starting", total=rounds)

        def show(row: Row) -> None:
            where = f"seed {row.seed}, {row.method}, {row.phase} {row.rounds}"
            progress.update(bar, advance=row.phase != "unlearn", description=where)

        yield show


def print_comparison(title: str, lines: Sequence[Line]) -> None:
    """The paper's table, in two that fit a terminal of 80 columns: how good, and at what price."""
    from fedunlearn.evaluation.table import ORIGINAL

    out = console()
    out.print(title, style="bold")
    quality = _table("Retain %", "Forget %", "Test %", "MIA %", "MIA-eff. %", "Avg. gap")
    price = _table("Rounds", "Bytes", "FLOPs", "Seconds", "Gap per seed", "Best gap (round)")
    for line in lines:
        measures = (line.retain, line.forget, line.test, line.mia, line.mia_efficacy)
        style = "dim" if line.method == ORIGINAL else ""
        quality.add_row(line.method, *map(_spread, measures), f"{line.gap.of_means:.2f}", style=style)
        price.add_row(
            line.method,
            str(line.rounds),
            f"{line.bytes:.2e}",
            f"{line.flops:.2e}",
            f"{line.seconds:.1f}",
            f"{line.gap.mean:.2f}",
            f"{line.best.gap:.2f} ({line.best.rounds})" if line.best else "",
            style=style,
        )
    out.print(quality)
    out.print(price)
    seeds = max(line.seeds for line in lines)
    out.print(
        f"""Mean ± sd over {seeds} seed{"s" * (seeds > 1)}; in brackets the distance to Retrain's mean. Every
measure is two-sided: Retrain's value is the target, above is as far as below.
MIA: accuracy of a membership attack, forget against test samples. MIA-eff.:
share of forget samples that another attack takes for non-members.
Avg. gap: mean of the distances in retain, forget, test and MIA (the paper's
reading); per seed: the same of each seed's own models, averaged. Best gap: the
oracle's choice among the scored rounds, which needs the Retrain models.
Bytes: parameters, both ways. FLOPs: at the clients. Neither these nor seconds
hold the first training, which is Original's. Seconds hold the start of worker
processes in whose rounds it fell: compare them in long runs only."""
    )


def _table(*headings: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("Method")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _spread(s: Spread) -> str:
    return f"{s.mean:.2f}±{s.sd:.2f}\n({s.distance:.2f})"
