"""Experiments in TOML files: read and judged, and said as a file would."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from fedunlearn.amounts import brief
from fedunlearn.evaluation.published import published, quantity
from fedunlearn.experiment import MUST_KEEP_LAST, Experiment
from fedunlearn.experiments import SCALES, reproducing, shipped
from fedunlearn.problems import meant, sentence, sentences, short, unfit
from fedunlearn.requests import AnyOf
from fedunlearn.task import Method
from fedunlearn.tomlfile import KeyPath, TomlError, read
from fedunlearn.tomlkinds import as_json, sayable
from fedunlearn.vocabulary import ALL_KINDS, METHODS

__all__ = ["ExperimentError", "load", "made", "resolved"]


class ExperimentError(ValueError):
    """An experiment's file is not as it should be.

    Attributes:
        problems: a sentence for all that is wrong, each beginning with its place.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(map(brief, problems))  # they quote the file
        super().__init__("\n".join(self.problems))


def load(name: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment: a shipped one by its name, one that reproduces the paper as ``cpu/table-1-cnn``, or a file.

    A file may say ``extends = "other.toml"`` (or a shipped one's name) and give only what is different.

    Args:
        name: of the experiment, or its file.
        overrides: such as ``training.rounds=20``, each of one value, in order.

    Raises:
        ExperimentError: there is none, or it is not as it should be; it names all that is wrong.
    """
    ours = shipped()
    named = ours | {key: path for scale in SCALES for key, path in reproducing(scale).items()}
    path = named.get(str(name), Path(name))
    if not path.is_file():
        raise ExperimentError([f"there is no experiment {str(name)!r}: give a TOML file, or one of {', '.join(ours)}"])
    try:
        document = read(path, ours)
        for assignment in overrides:
            document = document.overridden(assignment)
    except TomlError as error:
        raise ExperimentError([str(error)]) from None
    unsayable, problems = dict(unfit(document.table)), []
    try:
        plan = TypeAdapter(Experiment).validate_json(as_json(document.table), strict=True)
    except ValidationError as error:
        problems = error.errors()
    if problems or unsayable:
        raise ExperimentError(sentences(problems, unsayable, document, Experiment))
    if disagreeing := {**dict(_disagreeing(plan)), **dict(_unknown_series(plan))}:
        raise ExperimentError(sentences([], disagreeing, document, Experiment))
    return plan


def _disagreeing(plan: Experiment) -> Iterator[tuple[KeyPath, str]]:
    """Entries that do not go together, or are not for files."""
    if plan.then and not plan.keep.last:
        yield ("keep", "last"), MUST_KEEP_LAST
    if plan.earlier:
        told = "is written by a run whose requests follow one another, and no run of its own can begin there"
        yield ("earlier",), f"{told}: run the file that says `then`, in the folder above"


def _unknown_series(plan: Experiment) -> Iterator[tuple[KeyPath, str]]:
    """Names in ``series`` that do not exist."""
    if plan.series and plan.published is None:
        yield ("series",), "stands beside nothing: say with published what the paper's methods are from"
        return
    scored = plan.published is not None and quantity(plan.published) == "gap"
    rows = [row.method for row in published(str(plan.published)).rows] if scored else []
    for name, label in plan.series.items():
        if name not in rows:
            yield ("series", name), f"is none of the paper's{meant(name, rows)}; there are {', '.join(rows)}"
        elif label not in plan.labels:
            known = f"{meant(label, plan.labels)}: these are {', '.join(plan.labels)}"
            yield ("series", name), f"{short(label)} is none of the methods{known}"


def made(table: Mapping[str, Any]) -> Method:
    """A method as a file says it: its kind, perhaps a preset, and hyper-parameters.

    Raises:
        ExperimentError: it is none, or a hyper-parameter is not as it should be.
    """
    try:
        return cast(Method, METHODS(table))
    except ValidationError as error:
        raise ExperimentError(
            f"{'.'.join(map(str, problem['loc']))}: {sentence(problem, problem['loc'], Experiment)}"
            for problem in error.errors()
        ) from None


def resolved(value: Any) -> Any:
    """An experiment, or a part of one, as a file would say it with nothing left to defaults.

    What a file cannot say is left out: None, and `fedunlearn.FIRST`; both are defaults. Written to a file, an
    experiment without ``earlier`` loads as itself.
    """
    if isinstance(value, Mapping):
        return {str(key): resolved(item) for key, item in value.items() if sayable(item)}
    if isinstance(value, AnyOf):
        value = value.requests
    if isinstance(value, (tuple, list)):
        return [resolved(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    said = {name: resolved(item) for name, item in fields.items() if sayable(item)}
    kinds = next((kinds for kinds in ALL_KINDS if kinds.has(value)), None)
    return {"kind": kinds.name(value), **said} if kinds else said
