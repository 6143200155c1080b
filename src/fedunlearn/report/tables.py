"""The tables of one run or of several, as LaTeX, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from fedunlearn.evaluation.table import Line, Spread
from fedunlearn.report.report import Report, measures_of

__all__ = ["as_csv", "as_latex", "as_markdown", "cells"]

_HEADINGS = {"retain": "Retain", "forget": "Forget", "test": "Test", "mia": "MIA", "attack": "Attack"}
_COSTS = ("Avg. gap", "Bytes", "FLOPs")


def as_csv(reports: Sequence[Report]) -> str:
    """Every method at every stop rule, numbers in full."""
    file = io.StringIO()
    measures = (*measures_of(reports), "mia_efficacy")
    spreads = [f"{measure}_{part}" for measure in measures for part in ("mean", "sd", "distance")]
    writer = csv.writer(file, lineterminator="\n")
    costs = ("bytes", "flops", "seconds", "storage")
    start, gaps = ("run", "rule", "method", "seeds", "met", "rounds"), ("gap_of_means", "gap_per_seed")
    writer.writerow([*start, *spreads, *gaps, *costs])
    for report in reports:
        for rule in report.rules:
            for line in report.table(rule):
                values = [getattr(line, measure) for measure in measures]
                numbers = [x for s in values for x in ((s.mean, s.sd, s.distance) if s else ("", "", ""))]
                begin = [report.name, rule.name, line.method, line.seeds, line.met, line.rounds]
                paid = [getattr(line, cost) for cost in costs]
                writer.writerow([*begin, *numbers, line.gap.of_means, line.gap.mean, *paid])
    return file.getvalue()


def as_markdown(reports: Sequence[Report]) -> str:
    """The paper's table, after all rounds."""
    first = ["Run"] if len(reports) > 1 else []
    measures = measures_of(reports)
    head = [*first, *_head(measures)]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for name, line in _lines(reports):
        lines.append(_row([*([name] if first else []), *cells(line, measures)]))
    return "\n".join(lines) + "\n"


def as_latex(reports: Sequence[Report]) -> str:
    """The paper's table, after all rounds; needs the package booktabs."""
    first = ["Run"] if len(reports) > 1 else []
    measures = measures_of(reports)
    rows = [
        " & ".join(
            _escaped(cell).replace("±", "$\\pm$") for cell in [*([name] if first else []), *cells(line, measures)]
        )
        for name, line in _lines(reports)
    ]
    heading = _head(measures)
    columns = "l" * (1 + len(first)) + "r" * (len(heading) - 1)
    head = " & ".join([*first, *heading])
    body = " \\\\\n".join(rows)
    return (
        f"% {' / '.join(' '.join(report.title.split()) for report in reports)}\n\\begin{{tabular}}{{{columns}}}\n"
        f"\\toprule\n{head} \\\\\n\\midrule\n{body} \\\\\n\\bottomrule\n\\end{{tabular}}\n"
    )


def cells(line: Line, measures: Sequence[str]) -> list[str]:
    """A method's row as the paper prints it: mean ± sd (distance to Retrain) of each of ``measures``."""
    spreads = [_spread(getattr(line, measure)) for measure in measures]
    return [line.method, *spreads, f"{line.gap.of_means:.2f}", f"{line.bytes:.2e}", f"{line.flops:.2e}"]


def _head(measures: Sequence[str]) -> list[str]:
    return ["Method", *(_HEADINGS[measure] for measure in measures), *_COSTS]


def _spread(s: Spread | None) -> str:
    return "" if s is None else f"{s.mean:.2f}±{s.sd:.2f} ({s.distance:.2f})"


def _lines(reports: Sequence[Report]) -> Iterator[tuple[str, Line]]:
    return ((report.name, line) for report in reports for line in report.table())


def _row(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
