"""A run's results: put together from its folder, written as JSON, and read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedunlearn.atomic import read_json, write_json
from fedunlearn.dealing import Partition
from fedunlearn.evaluation.published import Block, published, quantity
from fedunlearn.evaluation.rows import ORIGINAL, Row
from fedunlearn.evaluation.scores import MEASURES
from fedunlearn.evaluation.stopping import Fixed, Oracle, Recovered, StopRule
from fedunlearn.evaluation.table import Line, table
from fedunlearn.layers import First
from fedunlearn.methods.catalogue import CATALOGUE
from fedunlearn.presets import Origin, origins
from fedunlearn.record import RecordError
from fedunlearn.runfolder import FolderError, RunFolder, differences
from fedunlearn.task import defaults

__all__ = [
    "Comparison",
    "Failure",
    "Report",
    "assemble",
    "compare",
    "measures_of",
    "read_report",
    "told",
    "write_report",
]

FILE = "report.json"
_FORMAT = 1


@dataclass(frozen=True)
class Failure:
    """A method that did not come to its end.

    Attributes:
        method: its name.
        seed: of the run.
        rounds: of recovery that it had done.
        why: in a sentence.
    """

    method: str
    seed: int
    rounds: int
    why: str


@dataclass(frozen=True)
class Setting:
    """A hyper-parameter.

    Attributes:
        method: whose it is.
        entry: its name.
        value: as the experiment's file says it.
        origin: who else has used this value; None: nobody that we know of.
    """

    method: str
    entry: str
    value: Any
    origin: Origin | None


@dataclass(frozen=True)
class Report:
    """What a run found.

    Attributes:
        experiment: as its file says it, with nothing left to defaults.
        rows: of the seeds that are complete.
        partitions: who holds what, by seed.
        failures: methods that diverged; they are in no table.
        sessions: on what it ran, one entry a start of the command.
        cached: parts that another run had done, as ``seed, name``: their seconds are of that run.
        missing: seeds that are not complete yet.
        labels: of the experiment's methods, in their order.
        name: of the run.
    """

    experiment: Mapping[str, Any]
    rows: tuple[Row, ...]
    partitions: Mapping[int, Partition]
    failures: tuple[Failure, ...] = ()
    sessions: tuple[Mapping[str, Any], ...] = ()
    cached: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    name: str = field(default="", compare=False)

    @property
    def title(self) -> str:
        """In a line."""
        return str(self.experiment["title"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that are complete."""
        return tuple(dict.fromkeys(row.seed for row in self.rows))

    @cached_property
    def compared(self) -> tuple[Row, ...]:
        """The rows of all that came to its end in every seed."""
        lost = {failure.method for failure in self.failures}
        return tuple(row for row in self.rows if row.method not in lost)

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that came to their end, Retrain among them, in the experiment's order."""
        return tuple(method for method in dict.fromkeys(row.method for row in self.compared) if method != ORIGINAL)

    @cached_property
    def rules(self) -> tuple[StopRule, ...]:
        """The stop rules that are compared."""
        said = {key: value for key, value in self.experiment["recovery"]["stop"].items() if key != "kind"}
        return Fixed(), Oracle(), Recovered(**said)

    def settings(self) -> Iterator[Setting]:
        """Every hyper-parameter of every method, with where its value is from."""
        for label, said in zip(self.labels, self.experiment["methods"], strict=False):
            entries = {entry: value for entry, value in said.items() if entry != "kind"}
            known = origins(said["kind"], entries)
            kind = CATALOGUE.get(said["kind"])  # what a file cannot say, it leaves to the method
            unsaid = {entry: value for entry, value in defaults(kind).items() if entry not in entries} if kind else {}
            for entry, value in entries.items():
                yield Setting(label, entry, value, known.get(entry))
            for entry, value in unsaid.items():
                yield Setting(label, entry, "first" if isinstance(value, First) else "not set", None)

    def table(self, rule: StopRule | None = None) -> list[Line]:
        """A line per method where ``rule`` stops it; None: after all rounds."""
        return table(self.compared, rule)

    def each(self) -> list[list[Line]]:
        """After all rounds, where requests followed one another: the lines held against each request by itself."""
        earlier = len(self.experiment.get("earlier", ()))
        return [table(self.compared, request=number) for number in range(earlier + 1)] if earlier else []

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """Those that every scored model has: the paper's four, and a backdoor's success where there is one."""
        attacked = any(row.scores is not None and row.scores.attack is not None for row in self.rows)
        return (*MEASURES, "attack") if attacked else MEASURES

    @property
    def published(self) -> Block | None:
        """The scores that the paper printed of this, if the experiment says where."""
        name = self.experiment.get("published")
        return published(name) if name is not None and quantity(name) == "gap" else None

    def counterpart(self, method: str) -> str | None:
        """What our method is called that stands beside one of the paper's; it need not be there.

        As the experiment says, else it has the same name, unless the experiment has it stand elsewhere: then None.
        """
        series: Mapping[str, str] = self.experiment.get("series", {})
        return series.get(method, None if method in series.values() else method)

    def summary(self) -> dict[str, Any]:
        """What a script would want of it: the tables at every stop rule."""
        tables = {rule.name: [dataclasses.asdict(line) for line in self.table(rule)] for rule in self.rules}
        return {
            "title": self.title,
            "seeds": list(self.seeds),
            "missing": list(self.missing),
            "failures": [dataclasses.asdict(failure) for failure in self.failures],
            "cached": list(self.cached),
            "settings": [dataclasses.asdict(setting) for setting in self.settings()],
            "tables": tables,
            "each": [[dataclasses.asdict(line) for line in lines] for lines in self.each()],
        }


def measures_of(reports: Sequence[Report]) -> tuple[str, ...]:
    """Those of one at least."""
    return max((report.measures for report in reports), key=len)


def assemble(folder: Path) -> Report:
    """Put a report together from a run's folder, of the seeds that are complete.

    Raises:
        FolderError: it is no run's folder, or no seed is complete yet.
        FileError: something in it is not as a run writes it.
    """
    home = RunFolder(folder)
    experiment = home.experiment
    if "shadow" in experiment:
        raise FolderError(f"{folder} is a shadow of another run, made for its audit, and has no scores: name that run")
    parts = 2 + len(experiment["methods"])
    rows: list[Row] = []
    partitions: dict[int, Partition] = {}
    failures: list[Failure] = []
    cached: list[str] = []
    missing = []
    labels: tuple[str, ...] = ()
    for seed in experiment["seeds"]:
        records = home.records(seed)
        if len(records) < parts or not all(record.complete for record in records):
            missing.append(seed)
            continue
        partitions[seed] = TypeAdapter(Partition).validate_python(home.partition(seed))
        training, original, *others = records
        labels = tuple(record.label for record in others)
        rows += [*training.rows[:-1], *original.rows, *(row for record in others for row in record.rows)]
        for record in (training, *others):
            rounds = record.rows[-1].rounds if record.rows else 0
            if record.failed:
                failures.append(Failure(record.label, seed, rounds, record.failed))
            if record.cached:
                cached.append(f"seed {seed}, {'first training' if record is training else record.label}")
    if not partitions:
        raise FolderError(f"in {folder} no seed is complete yet: let the run go on, by the same command")
    return Report(
        experiment,
        tuple(rows),
        partitions,
        tuple(failures),
        tuple(home.sessions),
        tuple(cached),
        tuple(missing),
        labels,
        folder.resolve().name,
    )


def write_report(report: Report, path: Path) -> None:
    """Write a report as JSON, with its tables, for scripts."""
    content = {"format": _FORMAT, **dataclasses.asdict(report), **report.summary()}
    write_json(path, content)


def read_report(path: Path) -> Report:
    """A run's report: from its folder, or from the JSON that was written of it.

    Raises:
        FolderError: there is no run there.
        FileError: the file is none of ours.
    """
    if path.is_dir():
        return assemble(path)
    content = read_json(path)
    if not content:
        raise FolderError(f"there is no run at {path}: name a run's folder, or its {FILE}")
    if content.get("format") != _FORMAT:
        raise RecordError(
            f"{path} is no report of this version: it has format {content.get('format')!r}, not {_FORMAT}"
        )
    names = [entry.name for entry in dataclasses.fields(Report)]
    try:
        report = TypeAdapter(Report).validate_python({name: content[name] for name in names if name in content})
        report.summary()  # which needs what a table of any kind cannot promise
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(f"{path} is no report: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path} is no report that could be shown: {error!r}") from None
    return report


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side, each with its own Retrain.

    Attributes:
        reports: of the runs, with names that differ.
    """

    reports: tuple[Report, ...]

    @property
    def differences(self) -> dict[str, tuple[Any, ...]]:
        """The entries in which the experiments differ, by dotted name, with what each has."""
        return differences([dict(report.experiment) for report in self.reports])

    def summary(self) -> dict[str, Any]:
        """What a script would want of it."""
        return {
            "differences": self.differences,
            "runs": {report.name: report.summary() for report in self.reports},
        }


def told(value: object) -> str:
    """An entry of an experiment, as its file would say it; nothing where it has none."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def compare(paths: Sequence[Path]) -> Comparison:
    """Read several runs.

    Raises:
        ValueError: there are fewer than two, or one is no run.
    """
    if len(paths) < 2:
        raise ValueError("a comparison needs two runs or more: name their folders")
    reports = [read_report(path) for path in paths]
    names = [report.name for report in reports]
    unique = [
        name if names.count(name) == 1 and name else f"{name or 'run'} {number}" for number, name in enumerate(names, 1)
    ]
    return Comparison(tuple(dataclasses.replace(r, name=name) for r, name in zip(reports, unique, strict=True)))
