"""The paper's tables and figures, and the experiments that reproduce them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedunlearn.evaluation.published import quantity, runs_of, titles
from fedunlearn.experiments import SCALES, reproducing, shipped
from fedunlearn.problems import meant
from fedunlearn.tomlfile import read

__all__ = ["Artefact", "artefact", "artefacts"]


@dataclass(frozen=True)
class Artefact:
    """A table or a figure of the paper.

    Attributes:
        name: such as ``table-1``.
        title: what it is of.
        minutes: what each of its experiments takes, by scale and by the experiment's name, in order; None where its
            file does not say.
    """

    name: str
    title: str
    minutes: Mapping[str, Mapping[str, float | None]]

    def experiments(self, scale: str) -> list[str]:
        """The names of its experiments.

        Raises:
            ValueError: there is none at this scale.
        """
        if scale not in SCALES:
            raise ValueError(f"there is no scale {scale!r}: take {' or '.join(SCALES)}")
        if not self.minutes[scale]:
            there = ", ".join(f"--scale {other}" for other in SCALES if self.minutes[other])
            raise ValueError(f"{self.name} has no experiment at scale {scale}: take {there}")
        return list(self.minutes[scale])


def artefacts() -> dict[str, Artefact]:
    """Those that there is an experiment for, by name, in the paper's order.

    An experiment belongs to the table or figure that its file is named after, and to those that can be had of its runs
    too.
    """
    tables = {scale: _tables(scale) for scale in SCALES}
    found = {}
    for name, title in sorted(titles().items(), key=lambda item: (item[0][0] == "f", item[0])):
        minutes = {scale: _minutes(name, tables[scale]) for scale in SCALES}
        if any(minutes.values()):
            found[name] = Artefact(name, title, minutes)
    return found


def artefact(name: str) -> Artefact:
    """One of them.

    Raises:
        ValueError: there is no such table or figure, or no experiment for it.
    """
    known = artefacts()
    if name not in known:
        there = f"take one of {', '.join(known)}" if known else "no experiment for any is there"
        raise ValueError(f"there is no table or figure {name!r} to reproduce{meant(name, known)}: {there}")
    return known[name]


def _tables(scale: str) -> dict[str, Mapping[str, Any]]:
    return {name: read(path, shipped()).table for name, path in reproducing(scale).items()}


def _minutes(name: str, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    def named_after(experiment: str) -> bool:
        stem = Path(experiment).name
        return stem == name or stem.startswith(f"{name}-")

    own = [experiment for experiment in tables if named_after(experiment)]
    blocks = runs_of(name)
    shared = [experiment for experiment, table in tables.items() if table.get("published") in blocks]
    every = sorted({*own, *shared}) if quantity(name) != "gap" else own or shared  # a finding is in each of them
    return {experiment: tables[experiment].get("minutes") for experiment in every}
