"""Tuning a method on one seed, and reporting it on others.

Hyper-parameters that were chosen by their gap to Retrain on the seeds of the table flatter a method: the paper tunes
all of its methods so. Here the seed that chose is never among those that are reported.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedunlearn.evaluation.rows import Row
from fedunlearn.experiment import Experiment
from fedunlearn.experimentfile import made
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.retrain import Retrain
from fedunlearn.presets import grid
from fedunlearn.report.report import assemble
from fedunlearn.runner import run
from fedunlearn.task import Method

__all__ = ["SEARCH", "TESTED", "Search", "Trial"]

SEARCH, TESTED = "search", "tested"  # folders of the two runs


@dataclass(frozen=True)
class Trial:
    """A point of the grid.

    Attributes:
        method: with its hyper-parameters.
        label: in the report of the search.
        gap: average gap to Retrain after all rounds, in percentage points; None: it diverged.
        bytes: that it sent.
    """

    method: Method
    label: str
    gap: float | None
    bytes: int | None


@dataclass(frozen=True)
class Search:
    """A method to be tuned on an experiment.

    Attributes:
        plan: the experiment; those of its seeds that do not choose are reported.
        candidates: the method at each point of a grid.
        seed: that chooses.
    """

    plan: Experiment
    candidates: tuple[Method, ...]
    seed: int

    @classmethod
    def of(
        cls,
        method: Mapping[str, Any],
        plan: Experiment,
        points: Mapping[str, Sequence[Any]] | None = None,
        seed: int | None = None,
    ) -> Search:
        """Every combination of some values.

        Args:
            method: as a file says it: its kind, perhaps a preset, and what all points share.
            plan: the experiment.
            points: values to try, by hyper-parameter; None: the method's own grid.
            seed: that chooses; None: the experiment's first.

        Raises:
            ValueError: there is nothing to tune, a value is none, or no seed is left to report.
        """
        points = points or grid(method["kind"])
        if not points:
            made(method)  # which says so, if there is no such method
            raise ValueError(f"{method['kind']} has no grid of its own: say what to try, such as --grid lr=0.01,0.1")
        combinations = itertools.product(*points.values())
        found = dict.fromkeys(made({**method, **dict(zip(points, values, strict=True))}) for values in combinations)
        seed = plan.seeds[0] if seed is None else seed
        if not set(plan.seeds) - {seed}:
            raise ValueError(f"seed {seed} is the only one: give the experiment seeds to report, or tune on another")
        return cls(plan, tuple(found), seed)

    @property
    def searching(self) -> Experiment:
        """Every candidate, on the seed that chooses."""
        title = f"{self.plan.title}: search on seed {self.seed}"
        return replace(self.plan, title=title, seeds=(self.seed,), methods=(Retrain(), *self.candidates))

    def testing(self, chosen: Method) -> Experiment:
        """The chosen one beside fine-tuning, on the seeds that did not choose it."""
        seeds = tuple(seed for seed in self.plan.seeds if seed != self.seed)
        title = f"{self.plan.title}: tuned on seed {self.seed}, which is not among these"
        return replace(self.plan, title=title, seeds=seeds, methods=(Retrain(), FineTune(), chosen))

    @property
    def rounds(self) -> int:
        """How many rounds it all takes, unlearning steps not counted."""
        return self.searching.total_rounds + self.testing(self.candidates[0]).total_rounds

    def trials(self, folder: Path) -> list[Trial]:
        """What the search in ``folder`` found, the best first; those that diverged last."""
        lines = {line.method: line for line in assemble(folder / SEARCH).table()}
        found = []
        for method, label in list(zip(self.searching.methods, self.searching.labels, strict=True))[1:]:
            line = lines.get(label)
            gap, sent = (line.gap.of_means, line.bytes) if line else (None, None)
            found.append(Trial(method, label, gap, sent))
        return sorted(found, key=lambda trial: math.inf if trial.gap is None else trial.gap)

    def run(self, folder: Path, **options: Any) -> Generator[Row, None, None]:
        """Search, then run the best; rows as they come. Broken off, the same call goes on.

        Args:
            folder: for both runs.
            **options: of `fedunlearn.runner.run`.

        Raises:
            ValueError: every candidate diverged; and whatever a run raises.
        """
        yield from run(self.searching, folder / SEARCH, **options)
        best = self.trials(folder)[0]
        if best.gap is None:
            raise ValueError("every point of the grid diverged: try smaller learning rates with --grid")
        yield from run(self.testing(best.method), folder / TESTED, **options)
