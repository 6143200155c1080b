"""An audit of a run: what can still be found out of what its models were to forget, by whom, and how surely."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from fedunlearn.atomic import FileError, read_json, write_json
from fedunlearn.audits.certainty import curve, excess_found, needed, wins_found
from fedunlearn.audits.forgetting import FEWEST as FEWEST_FOR_QUALITY
from fedunlearn.audits.forgetting import forgetting_quality
from fedunlearn.audits.membership import (
    Attacked,
    Compared,
    Evidence,
    Result,
    Scorer,
    beside_chance,
    beside_retrain,
    by_confidence,
    by_likelihood,
    by_population,
)
from fedunlearn.evaluation.rows import ORIGINAL, Row
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.examination import Examined, examine
from fedunlearn.experiment import Experiment
from fedunlearn.experimentfile import load
from fedunlearn.runfolder import InUseError, RunFolder, runs_in
from fedunlearn.shadows import Model, Moment, Readings, Targets, read_models, shadow
from fedunlearn.simulation import Setting, Simulation

__all__ = [
    "ATTACKS",
    "FEWEST",
    "FILE",
    "TESTS",
    "Attack",
    "Audit",
    "AuditError",
    "Kind",
    "Progress",
    "audit",
    "plan_of",
    "put_together",
]


_PATIENCE = 5.0  # seconds
_FOLDER = "audit"
FILE = "audit.json"
_FORMAT = 1
_BINS, _WIDEST = 40, 10.0  # of the scores' histograms


class AuditError(ValueError):
    """A run cannot be audited; the sentence says what to do."""


@dataclass(frozen=True)
class Progress:
    """Something that was done: the part of the audit, what it is within that, and how many rounds it took."""

    part: str
    step: str = ""
    rounds: int = 0


@dataclass(frozen=True)
class Kind:
    """A kind of attack on membership.

    Attributes:
        name: of the attack.
        knowledge: of the attacker, in words.
        versions: of the model that it holds; "before" is the model before the request.
        scorer: from what the models say to a score each sample.
        forget: whether it is about what was to be forgotten; else about what stays.
        final: whether it is about the models that methods end with.
        blind: whether a retrained model can tell nothing by construction, so that methods are held against chance
            itself.
    """

    name: str
    knowledge: str
    versions: tuple[Moment | str, ...]
    scorer: Scorer
    forget: bool = True
    final: bool = True
    blind: bool = True

    @property
    def judged(self) -> bool:
        """Whether a method's verdict rests on it."""
        return self.forget and self.final


_DATA = "has the model after unlearning and the data that it asks about"
_SHADOWS = "can train federations of its own on data of the same kind, by the same method"

ATTACKS = (
    Kind("Confidence", f"{_DATA}, and nothing else", ("last",), by_confidence),
    Kind("RMIA", f"{_DATA}; {_SHADOWS}, and looks at those without the sample alone", ("last",), by_population),
    Kind("U-LiRA", f"{_DATA}; {_SHADOWS}, with the sample and without", ("last",), by_likelihood),
    Kind(
        "Sign turned back",
        f"{_DATA}; {_SHADOWS}; and knows which layers were negated",
        ("last", "turned back"),
        by_likelihood,
    ),
    Kind(
        "Before and after",
        f"{_DATA}; {_SHADOWS}; and holds the model from before the request, as every client of the federation does",
        ("before", "last"),
        by_likelihood,
        blind=False,
    ),
    Kind(
        "First message",
        f"has the model that the first round of recovery begins with, as every client that stays does; {_SHADOWS}",
        ("unlearned",),
        by_likelihood,
        final=False,
    ),
    Kind(
        "LiRA on those who stay",
        f"{_DATA}, which stay in training; {_SHADOWS}, with the sample and without",
        ("last",),
        by_likelihood,
        forget=False,
        blind=False,
    ),
)
"""The attacks with shadows, from the one that knows least."""

TESTS = sum(2 if kind.blind else 1 for kind in ATTACKS if kind.judged)
"""On which a method's verdict rests: about samples, and, where retrained models tell nothing, about all together."""


@dataclass(frozen=True)
class Attack:
    """What came of an attack.

    Attributes:
        name, knowledge, forget, judged, blind: see `Kind`.
        results: by method; "Original" is the model before the request.
        beside: by method, compared with retrained models.
        curves: by method, see `fedunlearn.audits.certainty.curve`, over all shadows.
        histograms: by method, of the scores of members and of their twins, between -10 and 10 in 40 bins, the first
            and the last with what lies beyond; of likelihood ratios alone.
    """

    name: str
    knowledge: str
    forget: bool
    judged: bool
    blind: bool
    results: Mapping[str, Result]
    beside: Mapping[str, Compared]
    curves: Mapping[str, tuple[tuple[float, float], ...]]
    histograms: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


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
    if unfinished := [one for one in plan.seeds if not _complete(home, plan, one)]:
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
        attacks.append(_attack(kind, methods, forget if kind.forget else ~forget, readings, here))
        yield Progress(f"attacked: {kind.name}")
    evidence = _evidence((Model(REFERENCE, "last"),), forget, readings, here)
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
        _quality(methods, forget, readings),
        tuple(examined),
    )


def _attack(
    kind: Kind, methods: Sequence[str], which: NDArray[np.bool_], readings: Sequence[Readings], here: Readings
) -> Attack:
    evidence = {
        method: _evidence(versions, which, readings, here)
        for method in (ORIGINAL, *methods)
        if which.any() and (versions := _versions(kind, method, here))
    }
    attacked = {method: Attacked.of(found, kind.scorer) for method, found in evidence.items()}
    compared = [method for method in attacked if method not in (ORIGINAL, REFERENCE)]
    return Attack(
        kind.name,
        kind.knowledge,
        kind.forget,
        kind.judged,
        kind.blind,
        {method: found.result() for method, found in attacked.items()},
        {
            method: beside_chance(evidence[method], kind.scorer)
            if kind.blind
            else beside_retrain(attacked[method], attacked[REFERENCE])
            for method in compared
        },
        {method: tuple(curve(found.members[:-1], found.others[:-1])) for method, found in attacked.items()},
        {
            method: (_counts(found.members[:-1]), _counts(found.others[:-1]))
            for method, found in attacked.items()
            if kind.scorer is by_likelihood
        },
    )


def _versions(kind: Kind, method: str, here: Readings) -> tuple[Model, ...]:
    """The versions of a method's model that the attacker holds; none where there are no such."""
    if method == ORIGINAL and kind.versions != ("last",):
        return ()
    if method == REFERENCE and "turned back" in kind.versions:  # it has nothing to be turned back
        versions: tuple[Model, ...] = (Model(REFERENCE, "last"),)
    else:
        versions = tuple(
            Model(ORIGINAL, "last") if moment == "before" else Model(method, cast(Moment, moment))
            for moment in kind.versions
        )
    return versions if all(version in here.models for version in versions) else ()


def _evidence(
    versions: Sequence[Model], which: NDArray[np.bool_], readings: Sequence[Readings], here: Readings
) -> Evidence:
    rows = [[one.models[version] for version in versions] for one in (*readings, here)]
    signals = [[np.concatenate([model.own[which], model.twin[which]]) for model in row] for row in rows]
    return Evidence(
        np.stack([np.stack(row, -1) for row in signals]),
        np.stack([one.heads[which] for one in (*readings, here)]),
        np.stack([row[-1].population for row in rows]),
    )


def _quality(methods: Sequence[str], forget: NDArray[np.bool_], readings: Sequence[Readings]) -> dict[str, float]:
    """Forgetting quality by method, of the samples that enough shadows have seen; nothing where these are too few."""
    held = np.stack([~one.heads[forget] for one in readings])
    both = np.minimum(held.sum(0), (~held).sum(0))
    models = int(np.median(both))  # half of the samples have so many that held them, and so many that did not
    if models < FEWEST_FOR_QUALITY:
        return {}
    chosen = both >= models

    def signals(method: str, which: NDArray[np.bool_]) -> NDArray[np.float64]:
        said = np.stack([one.models[Model(method, "last")].own[forget] for one in readings])[:, chosen]
        return np.stack([column[rows][:models] for column, rows in zip(said.T, which[:, chosen].T, strict=True)], 1)

    retrained = signals(REFERENCE, ~held)  # of other shadows than those that are compared with them
    return {method: forgetting_quality(signals(method, held), retrained) for method in methods}


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


def _complete(home: RunFolder, plan: Experiment, seed: int) -> bool:
    records = home.records(seed)
    return len(records) == 2 + len(plan.methods) and all(record.complete for record in records)


def _counts(scores: NDArray[np.float64]) -> tuple[int, ...]:
    edges = np.linspace(-_WIDEST, _WIDEST, _BINS + 1)
    return tuple(np.histogram(np.clip(scores, -_WIDEST, _WIDEST), edges)[0].tolist())
