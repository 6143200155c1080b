"""An audit of a run: what can still be found out of what its models were to forget, by whom, and how surely."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fedunlearn.atomic import FileError, read_json, write_json
from fedunlearn.attacks import ATTACKS, TESTS, Attack, evidence_of, quality_of, tried
from fedunlearn.audits.certainty import excess_found, needed, wins_found
from fedunlearn.audits.membership import Attacked, by_likelihood
from fedunlearn.evaluation.rows import Row
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.examination import Examined, examine
from fedunlearn.experiment import Experiment
from fedunlearn.experimentfile import load
from fedunlearn.runfolder import InUseError, RunFolder, runs_in
from fedunlearn.shadows import Model, Readings, Targets, read_models, shadow
from fedunlearn.simulation import Setting, Simulation

__all__ = ["FEWEST", "FILE", "Audit", "AuditError", "Progress", "audit", "plan_of", "put_together"]


_PATIENCE = 5.0  # seconds
_FOLDER = "audit"
FILE = "audit.json"
_FORMAT = 1


class AuditError(ValueError):
    """A run cannot be audited; the sentence says what to do."""


@dataclass(frozen=True)
class Progress:
    """Something that was done: the part of the audit, what it is within that, and how many rounds it took."""

    part: str
    step: str = ""
    rounds: int = 0


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        title, run: of the run.
        seed: of which shadows were trained.
        shadows: how many.
        targets, stay: how many samples were asked about, of those to be forgotten and of those that stay.
        methods: in the experiment's order, Retrain among them; those that came to their end everywhere.
        lost: the others, with the number of federations, the run and its shadows, in which each diverged.
        attacks: with shadows.
        found_wins: the smallest rate of wins about the client that would have been found; see `wins_found`.
        found_excess: the smallest excess of the area under U-LiRA's curve; see `excess_found`.
        quality: forgetting quality, by method; empty where there are too few shadows.
        examined: what the run's models give away without shadows, seed by seed.
    """

    title: str
    run: str
    seed: int
    shadows: int
    targets: int
    stay: int
    methods: tuple[str, ...]
    lost: Mapping[str, int]
    attacks: tuple[Attack, ...]
    found_wins: float
    found_excess: float
    quality: Mapping[str, float]
    examined: tuple[Examined, ...]

    def attack(self, name: str) -> Attack:
        """The attack of that name."""
        return next(attack for attack in self.attacks if attack.name == name)

    def write(self, path: Path, summary: Mapping[str, Any]) -> None:
        """As JSON, with a summary for whoever reads it."""
        write_json(path, {"format": _FORMAT, "summary": summary, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: Path) -> Audit:
        """What `write` has written.

        Raises:
            FileError: it is none of ours.
        """
        content = read_json(path)
        if content.get("format") != _FORMAT:
            raise FileError(f"{path} is no audit of this version: run the audit's command again")
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            return TypeAdapter(cls).validate_python({name: content[name] for name in names if name in content})
        except ValidationError as error:
            why = error.errors()[0]
            raise FileError(f"{path} is no audit: {'.'.join(map(str, why['loc']))}: {why['msg']}") from None


FEWEST = needed(0.95, TESTS)
"""Shadows: with fewer, an attacker who is right nineteen times in twenty would not be told from chance."""


def plan_of(folder: Path, seed: int | None, shadows: int) -> tuple[Experiment, int]:
    """The experiment of a run that can be audited, and the seed to audit.

    Args:
        folder: of the run.
        seed: of the run; None: its first.
        shadows: to be trained.

    Raises:
        FolderError: it is no run's folder.
        AuditError: the run cannot be audited.
    """
    home = RunFolder(folder)
    if [folder] != (several := runs_in(folder)):
        raise AuditError(f"{folder} holds the runs of several requests: audit {several[0]}")
    said = home.experiment  # which raises
    if "shadow" in said:
        raise AuditError(f"{folder} is a shadow, made for an audit: audit the run that it is a shadow of")
    if said.get("earlier") or said.get("then"):
        raise AuditError(f"{folder} answers a request that followed another: only the first of them can be audited")
    plan = load(folder / "experiment.toml")
    seed = plan.seeds[0] if seed is None else seed
    if seed not in plan.seeds:
        raise AuditError(f"{folder} has no seed {seed}: take one of {', '.join(map(str, plan.seeds))}")
    if len(plan.methods) == 1:
        raise AuditError(f"{folder} holds Retrain alone: run a method beside it, there is nothing else to audit")
    if shadows < FEWEST:
        raise AuditError(
            f"{shadows} shadows could not tell an attacker who is right nineteen times in twenty from chance: "
            f"take {FEWEST} or more"
        )
    if not (plan.keep.first and plan.keep.last):
        raise AuditError("an audit looks at the models that a run has kept: run it with keep.first and keep.last true")
    if unfinished := [one for one in plan.seeds if not home.complete(plan, one)]:
        raise AuditError(f"seed {unfinished[0]} of {folder} is not complete: let the run go on, by the same command")
    return plan, seed


def audit(
    folder: Path,
    plan: Experiment,
    seed: int,
    shadows: int,
    *,
    workers: int | None = None,
    data_dir: Path | None = None,
    command: str = "",
) -> Generator[Progress, None, Audit]:
    """Audit a run, and tell after every round of a shadow and every model that was examined.

    What is done lies in ``audit`` below the run's folder, and is not done again. The same command in another
    process, or on another machine that sees the folder, trains the shadows that nobody works on.

    Args:
        folder: of the run.
        plan, seed: see `plan_of`.
        shadows: to be trained; more of them later go on from these.
        workers, data_dir, command: see `fedunlearn.runner.run`.

    Raises:
        AuditError: the data are not those of the run.
        ValueError: too few samples have twins.
    """
    home, ground = RunFolder(folder), folder / _FOLDER
    setting = Setting.of(plan, workers=workers, data_dir=data_dir)
    _require_same(home, setting)
    targets = {one: Targets.of(Simulation(setting, one)) for one in plan.seeds}
    examined = []
    for one in plan.seeds:
        path = ground / f"seed-{one}" / "examined.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in examine(home, targets[one], path):
            yield Progress(f"seed {one}, examined {name}")
        examined.append(Examined.read(path))
    place = ground / f"seed-{seed}" / "shadows"
    readings = yield from _trained(place, shadows, plan, targets[seed], data_dir, command)
    heads = np.zeros(len(targets[seed].forget), dtype=np.bool_)
    here = Readings(heads, read_models(home, seed, targets[seed]))
    return (yield from put_together(plan, folder.resolve().name, targets[seed], readings, here, examined))


def put_together(
    plan: Experiment,
    run: str,
    targets: Targets,
    readings: Sequence[Readings],
    here: Readings,
    examined: Sequence[Examined],
) -> Generator[Progress, None, Audit]:
    """Attack the run's models and the shadows, each with all other shadows; tell after every attack.

    Args:
        plan: of the run.
        run: its name.
        targets: that were read.
        readings: of the shadows.
        here: of the run itself.
        examined: see `Audit`.

    Raises:
        AuditError: no method came to its end in the run and in all shadows.
    """
    forget = targets.forget.numpy()
    missing = {label: sum(Model(label, "last") not in one.models for one in (*readings, here)) for label in plan.labels}
    methods = tuple(label for label, number in missing.items() if not number)
    if methods == (REFERENCE,):
        raise AuditError(f"every method but {REFERENCE} diverged, in the run or in a shadow: there is nothing to audit")
    attacks = []
    for kind in ATTACKS:
        attacks.append(tried(kind, methods, forget, readings, here))
        yield Progress(f"attacked: {kind.name}")
    evidence = evidence_of((Model(REFERENCE, "last"),), forget, readings, here)
    return Audit(
        plan.title,
        run,
        targets.simulation.seed,
        len(readings),
        int(forget.sum()),
        int((~forget).sum()),
        methods,
        {label: number for label, number in missing.items() if number},
        tuple(attacks),
        wins_found(len(readings), TESTS),
        excess_found(Attacked.of(evidence, by_likelihood).areas, TESTS),
        quality_of(methods, forget, readings),
        tuple(examined),
    )


def _trained(
    folder: Path,
    shadows: int,
    plan: Experiment,
    targets: Targets,
    data_dir: Path | None,
    command: str,
) -> Generator[Progress, None, list[Readings]]:
    """All shadows; those that others work on are waited for."""
    found: dict[int, Readings] = {}
    waiting = list(range(1, shadows + 1))
    folder.mkdir(parents=True, exist_ok=True)
    while waiting:
        taken = []
        for number in waiting:
            place = folder / f"{number:04d}"
            steps = shadow(plan, number, place, targets=targets, data_dir=data_dir, command=command)
            try:
                found[number] = yield from _told(f"shadow {number} of {shadows}", steps)
            except InUseError:
                taken.append(number)
        if taken == waiting:
            time.sleep(_PATIENCE)
        waiting = taken
    return [found[number] for number in sorted(found)]


def _told(part: str, rows: Generator[Row, None, Readings]) -> Generator[Progress, None, Readings]:
    """The same, a row said in words."""
    try:
        while True:
            row = next(rows)
            yield Progress(part, f"{row.method}, {row.phase} {row.rounds}", row.phase != "unlearn")
    except StopIteration as done:
        return cast(Readings, done.value)


def _require_same(home: RunFolder, setting: Setting) -> None:
    """Else what is called own and what is called twin would be other samples than the run's."""
    then, now = home.sessions[-1]["decides"], {**setting.digests(), **setting.own_methods()}
    if other := [name for name, digest in now.items() if then.get(name) != digest]:
        raise AuditError(
            f"{home.path} was run with other {', '.join(other)} than there is now: audit it where its data are, "
            "or run it anew"
        )
