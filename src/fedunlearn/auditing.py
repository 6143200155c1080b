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
from fedunlearn.audits.certainty import curve, detectable, excess_found, needed
from fedunlearn.audits.forgetting import FEWEST as FEWEST_FOR_QUALITY
from fedunlearn.audits.forgetting import forgetting_quality
from fedunlearn.audits.membership import (
    Attacked,
    Compared,
    Evidence,
    Result,
    Scorer,
    by_confidence,
    by_likelihood,
    by_population,
    compared,
)
from fedunlearn.evaluation.rows import ORIGINAL, Row
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.examination import Examined, examine
from fedunlearn.experiment import Experiment
from fedunlearn.experimentfile import load
from fedunlearn.runfolder import InUseError, RunFolder
from fedunlearn.shadows import Model, Moment, Readings, Targets, read_models, shadow
from fedunlearn.simulation import Setting, Simulation

__all__ = [
    "ATTACKS",
    "FEWEST",
    "FILE",
    "Attack",
    "Audit",
    "AuditError",
    "Kind",
    "Progress",
    "audit",
    "plan_of",
    "put_together",
]

FEWEST = needed(0.9)
"""Shadows: with fewer, an attacker who is right about nine clients in ten would not be told from chance."""

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
        blind: see `compared`.
    """

    name: str
    knowledge: str
    versions: tuple[Moment | str, ...]
    scorer: Scorer
    forget: bool = True
    blind: bool = True


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


@dataclass(frozen=True)
class Attack:
    """What came of an attack.

    Attributes:
        name, knowledge, forget, blind: see `Kind`.
        results: by method; "Original" is the model before the request.
        beside: by method, compared with retrained models.
        curves: by method, see `fedunlearn.audits.certainty.curve`, over all shadows.
        histograms: by method, of the scores of members and of their twins, between -10 and 10 in 40 bins, the first
            and the last with what lies beyond; of likelihood ratios alone.
    """

    name: str
    knowledge: str
    forget: bool
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
        methods: in the experiment's order, Retrain among them.
        attacks: with shadows.
        found_wins: the smallest rate of wins about the client that would have been found; see `detectable`.
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
    said = home.experiment  # which raises
    if "shadow" in said or said.get("earlier") or said.get("then"):
        raise AuditError(f"{folder} holds no run of one request that was trained on data of its own: audit such a one")
    plan = load(folder / "experiment.toml")
    seed = plan.seeds[0] if seed is None else seed
    if seed not in plan.seeds:
        raise AuditError(f"{folder} has no seed {seed}: take one of {', '.join(map(str, plan.seeds))}")
    if shadows < FEWEST:
        raise AuditError(
            f"{shadows} shadows could not tell an attacker who is right nine times in ten from chance: "
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
    cache: Path | None = None,
    command: str = "",
) -> Generator[Progress, None, Audit]:
    """Audit a run, and tell after every round of a shadow and every model that was examined.

    What is done lies in ``audit`` below the run's folder, and is not done again. The same command in another
    process, or on another machine that sees the folder, trains the shadows that nobody works on.

    Args:
        folder: of the run.
        plan, seed: see `plan_of`.
        shadows: to be trained; more of them later go on from these.
        workers, data_dir, cache, command: see `fedunlearn.runner.run`.

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
    readings = yield from _trained(place, shadows, plan, targets[seed], data_dir, cache, command)
    heads = np.zeros(len(targets[seed].forget), dtype=np.bool_)
    here = Readings(heads, read_models(home, seed, targets[seed]))
    return put_together(plan, folder.resolve().name, targets[seed], readings, here, examined)


def put_together(
    plan: Experiment,
    run: str,
    targets: Targets,
    readings: Sequence[Readings],
    here: Readings,
    examined: Sequence[Examined],
) -> Audit:
    """Attack the run's models and the shadows, each with all other shadows.

    Args:
        plan: of the run.
        run: its name.
        targets: that were read.
        readings: of the shadows.
        here: of the run itself.
        examined: see `Audit`.
    """
    forget = targets.forget.numpy()
    methods = tuple(label for label in plan.labels if all(Model(label, "last") in r.models for r in (*readings, here)))
    attacks = tuple(_attack(kind, methods, forget if kind.forget else ~forget, readings, here) for kind in ATTACKS)
    retrained = Attacked.in_turn(_evidence((Model(REFERENCE, "last"),), forget, readings, here), by_likelihood)
    return Audit(
        plan.title,
        run,
        targets.simulation.seed,
        len(readings),
        int(forget.sum()),
        int((~forget).sum()),
        methods,
        attacks,
        detectable(len(retrained.leads)) or 1.0,
        excess_found(retrained.areas),
        _quality(methods, forget, readings),
        tuple(examined),
    )


def _attack(
    kind: Kind, methods: Sequence[str], which: NDArray[np.bool_], readings: Sequence[Readings], here: Readings
) -> Attack:
    attacked, in_turn = {}, {}
    for method in (ORIGINAL, *methods):
        versions = _versions(kind, method, here)
        if versions and which.any():
            evidence = _evidence(versions, which, readings, here)
            attacked[method] = Attacked.of(evidence, kind.scorer)
            in_turn[method] = Attacked.in_turn(evidence, kind.scorer)
    ratios = attacked if kind.scorer is by_likelihood else {}
    retrain = in_turn.get(REFERENCE)
    return Attack(
        kind.name,
        kind.knowledge,
        kind.forget,
        kind.blind,
        {method: found.result() for method, found in attacked.items()},
        {}
        if retrain is None
        else {
            method: compared(found, retrain, blind=kind.blind)
            for method, found in in_turn.items()
            if method not in (ORIGINAL, REFERENCE)
        },
        {method: tuple(curve(found.members[:-1], found.others[:-1])) for method, found in attacked.items()},
        {method: (_counts(found.members[:-1]), _counts(found.others[:-1])) for method, found in ratios.items()},
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
    models = int(np.median(held.sum(0)))  # half of the samples have so many
    if models < FEWEST_FOR_QUALITY:
        return {}
    chosen = held.sum(0) >= models
    rows = [np.flatnonzero(column)[:models] for column in held[:, chosen].T]

    def signals(method: str) -> NDArray[np.float64]:
        return np.stack([one.models[Model(method, "last")].own[forget] for one in readings])[:, chosen]

    retrained = signals(REFERENCE)[:models]
    return {
        method: forgetting_quality(np.stack([c[r] for c, r in zip(signals(method).T, rows, strict=True)], 1), retrained)
        for method in methods
    }


def _trained(
    folder: Path,
    shadows: int,
    plan: Experiment,
    targets: Targets,
    data_dir: Path | None,
    cache: Path | None,
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
            steps = shadow(plan, number, place, targets=targets, data_dir=data_dir, cache=cache, command=command)
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
    then, now = home.sessions[-1]["decides"], setting.digests()
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
