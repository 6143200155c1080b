"""What diagnoses find beside what the paper prints of them: the rows and columns of Table 3 and Figures 3, 7 and 8."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from math import isfinite
from typing import Any

from fedunlearn.diagnoses import Bounds, Similarities, Spectra
from fedunlearn.evaluation.published import Finding, finding, quantity
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.findings import Found
from fedunlearn.report.block import about
from fedunlearn.report.grid import Entry, Grid, GridRow
from fedunlearn.report.report import Report
from fedunlearn.report.theory.page import section_of
from fedunlearn.theory.cka import normalised
from fedunlearn.theory.gradient_spectrum import dimension_ratio

__all__ = ["grid_of"]

FINE_TUNING, NOT, RANDOM = "FT", "NoT", f"{REFERENCE}, first"
Row = tuple[str, list[list[float | None]]]
"""A label, and for each column our numbers, one a seed."""


def grid_of(report: Report, experiment: str, name: str, found: Found[Any]) -> Grid:
    """A run's diagnosis beside what the paper published of it.

    Args:
        report: of the run.
        experiment: its name, with the scale before it.
        name: of what it stands beside, such as ``figure-3/cifar-10/cnn``.
        found: by the diagnosis that this is of.

    Raises:
        ValueError: a method that the paper's numbers are of is not in the run, or came to no end.
    """
    printed = finding(name)
    told, columns, rows = _GRIDS[quantity(name)](found.results, printed, report)
    facts = about(report, experiment) | {"seeds": found.seeds}
    alike = set(printed.columns) <= set(columns)  # else it is of another network, whose positions have no place here
    known: dict[str, Sequence[float | tuple[float, float]]] = {**printed.rows, **_ratio(printed)} if alike else {}
    return Grid(
        **facts,
        published=name,
        artefact=printed.title,
        paper=f"{printed.dataset}, {printed.model}",
        quantity=told,
        columns=columns,
        rows=tuple(
            GridRow(label, tuple(_entry(known.get(label, ()), at, values) for at, values in enumerate(ours)))
            for label, ours in rows
        ),
        says=section_of(found).says,
    )


def _entry(printed: Sequence[float | tuple[float, float]], at: int, ours: Sequence[float | None]) -> Entry:
    return Entry(printed[at] if at < len(printed) else None, tuple(ours))


def _bounds(results: Sequence[Bounds], printed: Finding, report: Report) -> tuple[str, tuple[str, ...], list[Row]]:
    """The bound as printed and corrected, in time and FLOPs, and when the gap was closed; FT's as so many NoT's."""
    first, second = (_there(report, method, results[0].bounds) for method in (FINE_TUNING, NOT))

    def values(read: Callable[[Bounds, str], float | None], method: str) -> list[float | None]:
        return [read(one, method) for one in results]

    reads: list[Callable[[Bounds, str], float | None]] = [
        lambda one, method: one.bounds[method].printed,
        lambda one, method: one.bounds[method].printed * one.flops,
        lambda one, method: one.bounds[method].corrected,
        lambda one, method: one.measured[method],
    ]
    rows = [(told, [values(read, method) for read in reads]) for told, method in ((FINE_TUNING, first), (NOT, second))]
    ratio = [
        [_over(ft, own) for ft, own in zip(values(read, first), values(read, second), strict=True)] for read in reads
    ]
    return "bound", (*printed.columns, "t, corrected", "t, measured"), [*rows, (_RATIO, ratio)]


_RATIO = f"{FINE_TUNING} / {NOT}"


def _ratio(printed: Finding) -> dict[str, tuple[float, ...]]:
    """What of Table 3 can be compared between settings."""
    if not {FINE_TUNING, NOT} <= printed.rows.keys():
        return {}
    pairs = zip(printed.rows[FINE_TUNING], printed.rows[NOT], strict=True)
    return {_RATIO: tuple(one / other for one, other in pairs if isinstance(one, float) and isinstance(other, float))}


def _there(report: Report, method: str, found: Container[str]) -> str:
    """What a method of the paper is called in a run."""
    label = report.counterpart(method) or method
    if label not in found:
        raise ValueError(f"{report.name} has no {label} that came to its end, which the paper's numbers are of: run it")
    return label


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _similarities(
    results: Sequence[Similarities], printed: Finding, report: Report
) -> tuple[str, tuple[str, ...], list[Row]]:
    """CKA by position; where the paper normalises it, so do we."""
    positions = tuple(next(iter(results[0].models.values())))
    labels = [label for label in printed.rows if label in results[0].models]
    labels += [label for label in results[0].models if label not in labels]
    rows: list[Row] = []
    for label in labels:
        rows.append((label, [[_finite(one.models[label][at].unbiased) for one in results] for at in positions]))
    if not printed.rows:  # figure 7
        rows += [
            (
                f"{label}, normalised",
                [
                    [
                        _finite(normalised(one.models[label][at].unbiased, one.models[RANDOM][at].unbiased))
                        for one in results
                    ]
                    for at in positions
                ],
            )
            for label in labels
            if label != RANDOM
        ]
    columns = printed.columns if len(printed.columns) == len(positions) else positions
    return "CKA", columns, rows


def _spectra(results: Sequence[Spectra], printed: Finding, report: Report) -> tuple[str, tuple[str, ...], list[Row]]:
    """NoT's dimension as a share of Retrain's at several levels, since the paper's is that of a curve's very end."""
    label = _there(report, NOT, results[0].methods)
    (whole,) = printed.rows

    def ratios(level: float) -> list[list[float | None]]:
        return [
            [
                dimension_ratio(one.methods[label], one.methods[REFERENCE], level) if REFERENCE in one.methods else None
                for one in results
            ]
        ]

    named = {whole: 0.999, "at 99 %": 0.99, "at 95 %": 0.95}
    return "share of dimensions", printed.columns, [(told, ratios(level)) for told, level in named.items()]


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


_GRIDS: Mapping[str, Callable[[Sequence[Any], Finding, Report], tuple[str, tuple[str, ...], list[Row]]]] = {
    "bound": _bounds,
    "cka": _similarities,
    "spectrum": _spectra,
}
