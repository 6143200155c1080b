"""What every comparison with the paper has in common: what stands beside what, and on which run it rests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedunlearn.report.report import Report

__all__ = ["Block", "about"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of one of the paper's tables, or a figure, beside the run that reproduces it.

    Attributes:
        experiment: its name, with the scale before it.
        title: of the experiment.
        published: the block's name.
        artefact: the table's or the figure's title, with its number.
        paper: the paper's data set and network.
        ours: the experiment's.
        seeds: that are complete.
        missing: that are not.
        failures: sentences on the methods that came to no end.
        seconds: wall time of all parts, without scoring.
        session: on what it ran last: command, versions, hardware.
    """

    experiment: str
    title: str
    published: str
    artefact: str
    paper: str
    ours: str
    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    failures: tuple[str, ...]
    seconds: float
    session: Mapping[str, Any]

    @property
    def scale(self) -> str:
        """That the experiment is of."""
        return self.experiment.split("/")[0]

    @property
    def folder(self) -> str:
        """Of the run, beside the page."""
        return self.experiment.split("/")[1]

    @property
    def heading(self) -> str:
        """What stands beside what."""
        return f"{self.folder}: {self.ours} (scale {self.scale}), beside the paper's {self.paper}"

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Sentences on what is not there."""
        missing = ", ".join(map(str, self.missing))
        return (*self.failures, *([f"Not complete yet, and not counted: seed {missing}."] if missing else []))


def about(report: Report, experiment: str) -> dict[str, Any]:
    """The fields of a `Block` that a run's report says.

    Args:
        report: of the run.
        experiment: its name, with the scale before it.
    """
    ends = {(row.seed, row.method): row for row in report.rows}
    return {
        "experiment": experiment,
        "title": report.title,
        "ours": f"{report.experiment['data']['name']}, {report.experiment['model']['name']}",
        "seeds": report.seeds,
        "missing": report.missing,
        "failures": tuple(
            f"{one.method} is left out: in seed {one.seed}, after {one.rounds} rounds of recovery: {one.why}"
            for one in report.failures
        ),
        "seconds": sum(cost.seconds for row in ends.values() for cost in row.costs.values()),
        "session": report.sessions[-1] if report.sessions else {},
    }
