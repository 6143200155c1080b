"""Running an experiment in a folder: stopped anywhere, it goes on from there and ends with the same bits."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from fedunlearn.backends.in_process import best_device
from fedunlearn.backends.metered import Metered
from fedunlearn.environment import determinants
from fedunlearn.evaluation.cost import Account
from fedunlearn.evaluation.follow import Step, recovering, require, timed, unlearning
from fedunlearn.evaluation.rows import ORIGINAL, Row
from fedunlearn.evaluation.scores import Scores, validate
from fedunlearn.experiment import Experiment, resolved
from fedunlearn.federation import Phase
from fedunlearn.methods.retrain import Retrain
from fedunlearn.programs import Diverged
from fedunlearn.record import Record
from fedunlearn.rounds import fedavg
from fedunlearn.runfolder import Cache, RunFolder
from fedunlearn.simulation import Setting, Simulation
from fedunlearn.task import Method
from fedunlearn.weights import Weights

__all__ = ["run"]

FIRST_TRAINING, UNLEARNED = "First training", "unlearned"  # names of a record, and of a kept model


def run(
    experiment: Experiment,
    folder: Path,
    *,
    workers: int | None = None,
    data_dir: Path | None = None,
    cache: Path | None = None,
    command: str = "",
) -> Generator[Row, None, None]:
    """Run an experiment; a row after every round, and those that the folder holds already.

    Args:
        experiment: to run.
        folder: for the run; see `RunFolder`. If a run of the same experiment was broken off there, this goes on.
        workers: see `fedunlearn.InProcess`.
        data_dir: see `fedunlearn.data.datasets.load`.
        cache: folder of first trainings and retrained models that runs share; None: none are shared.
        command: that asks for this, for the record.

    Raises:
        FolderError: the folder is in use, or holds something else.
        NeedsError: a method cannot answer this request; nothing has run.
        ValueError: data set, network and request do not go together; nothing has run.
        ClientError: the first training or Retrain diverged, or the user's code failed.
    """
    home = RunFolder(folder)
    home.require_usable()
    setting = Setting.of(experiment, workers=workers, data_dir=data_dir)
    decides = {**determinants(best_device()), **setting.digests()}
    simulations = [Simulation(setting, seed) for seed in experiment.seeds]
    for simulation in simulations:
        _require_needs(simulation)
    with home.claimed(experiment, {**decides, **setting.own_methods()}, command):
        for simulation in simulations:
            home.write_partition(simulation.seed, dataclasses.asdict(simulation.partition))
            yield from _Seed(simulation, home, Cache(cache) if cache else None, decides).rows()


def _require_needs(simulation: Simulation) -> None:
    """Before the first training, not after it."""
    setting = simulation.setting
    task = simulation.task(simulation.federation, setting.architecture.fresh(0))
    for method in setting.experiment.methods:
        require(method, task)


class _Seed:
    """One seed of a run."""

    def __init__(
        self, simulation: Simulation, folder: RunFolder, cache: Cache | None, decides: Mapping[str, str]
    ) -> None:
        self.simulation, self.folder, self.cache, self.decides = simulation, folder, cache, decides
        self.seed, self.plan = simulation.seed, simulation.setting.experiment

    def rows(self) -> Iterator[Row]:
        """All of the seed, part by part."""
        training = _Training(
            self, self.folder.record(self.seed, 0, FIRST_TRAINING), ORIGINAL, self.plan.training.rounds
        )
        last: Row | None = None
        for row in training.rows():
            if last is not None:
                yield last
            last = row  # the last row comes with its scores, which depend on the request
        assert last is not None
        weights = training.result
        yield self._original(last, weights)
        for position, (method, label) in enumerate(zip(self.plan.methods, self.plan.labels, strict=True), 2):
            record = self.folder.record(self.seed, position, label)
            yield from _Contender(self, record, label, self.plan.rounds(method), method, weights).rows()

    def _original(self, last: Row, weights: Weights) -> Row:
        record = self.folder.record(self.seed, 1, ORIGINAL)
        if not record.complete:
            retained = self.simulation.task(self.simulation.federation, weights).retained
            validation = validate(retained, weights, self.seed)
            scores = self.simulation.score(weights, final=True, validation=validation)
            record.begin()
            record.add(dataclasses.replace(last, scores=scores))
            record.finish(ORIGINAL)
        return record.rows[0]


class _Part(ABC):
    """The first training or a method, at one seed: from its steps to its rows, on the disk and to the reader.

    Attributes:
        reference: whether there is nothing to compare without it, and whether runs share it. Another method that
            diverges is a result, and no reason to lose the others.
    """

    reference = True

    def __init__(self, seed: _Seed, record: Record, label: str, rounds: int) -> None:
        self.seed, self.plan, self.simulation = seed.seed, seed.plan, seed.simulation
        self.record, self.cache, self.label, self.total = record, seed.cache, label, rounds
        self.decides = seed.decides

    def rows(self) -> Iterator[Row]:
        """Those that are there, then the others."""
        record = self.record
        cache = self.cache if self.reference else None
        if cache is not None and not record.complete and not record.rows:
            self.record = record = cache.fetch(self._key(), record.folder) or record
        yield from list(record.rows)
        if record.complete:
            return
        record.begin()
        self.account = Account(self.simulation.setting.flops, paid=record.rows[-1].costs if record.rows else {})
        self.federation = Metered(self.simulation.federation, self.account.ledger)
        saved = record.saved
        self.last = Step(saved.phase, saved.round, 0.0) if saved else None
        self.rows_then = len(record.rows)
        self.done = record.rows[-1].rounds if record.rows else 0
        try:
            yield from self._others()
        except BaseException as error:
            diverged = isinstance(error, Diverged) or isinstance(error.__cause__, Diverged)
            if diverged and not self.reference:
                record.finish(self.label, failed=str(error))
                return
            if self.last is not None:  # an error, Ctrl-C, or a reader who has enough: nothing that was done is lost
                record.save(self.last.phase, self.last.round, self.rows_then, now=True)
            raise
        record.finish(self.label)
        if cache is not None:
            cache.store(self._key(), record)

    def _key(self) -> dict[str, Any]:
        """All that decides what the record holds."""
        plan, needs = self.plan, [method.needs.history for method in self.plan.methods]
        said: dict[str, Any] = {"part": self.label, "seed": self.seed, "decides": dict(self.decides)}
        said |= {"data": plan.data, "model": plan.model, "training": plan.training, "keep": plan.keep}
        said["history"] = sorted({kind for kind in needs if kind is not None})
        return {name: resolved(value) for name, value in said.items()}

    @abstractmethod
    def _others(self) -> Iterator[Row]:
        """The rows after those that are there."""

    def _done(self, step: Step) -> Iterator[Row]:
        """Take in a step."""
        self.account.add(step.phase, step.seconds)
        self.done += step.phase != "unlearn"
        row = self._row(step.phase, self._scores(step))
        self._keep(step)
        self.record.add(row)
        self.last, self.rows_then = step, len(self.record.rows)
        self.record.save(step.phase, step.round, self.rows_then)
        yield row

    def _row(self, phase: Phase, scores: Scores | None) -> Row:
        return Row(self.seed, self.label, phase, self.done, self.account.costs(), scores)

    def _scores(self, step: Step) -> Scores | None:
        return None

    def _keep(self, step: Step) -> None:
        keep, final = self.plan.keep, self.done == self.total
        every = keep.every is not None and self.done % keep.every == 0
        if step.phase != "unlearn" and (every or (final and (keep.last or step.phase == "train"))):
            self._kept(_named(step.phase, self.done), step.phase, step.round.after)

    def _kept(self, name: str, phase: Phase, weights: Weights) -> None:
        about = {"method": self.label, "seed": self.seed, "phase": phase, "rounds": self.done}
        self.record.keep(name, weights, about)


class _Training(_Part):
    """The first training."""

    @property
    def result(self) -> Weights:
        """The trained model."""
        return self.record.kept(_named("train", self.total))

    def _others(self) -> Iterator[Row]:
        weights = self.last.round.after if self.last else self.simulation.setting.architecture.fresh(self.seed)
        rounds = fedavg(self.federation, weights, self.simulation.training, self.seed, "train", self.done)
        for step in timed("train", islice(rounds, self.total - self.done)):
            yield from self._done(step)


class _Contender(_Part):
    """A method on the trained model."""

    def __init__(self, seed: _Seed, record: Record, label: str, rounds: int, method: Method, weights: Weights) -> None:
        super().__init__(seed, record, label, rounds)
        self.method, self.weights = method, weights
        self.reference = type(method) is Retrain

    def _key(self) -> dict[str, Any]:
        plan = self.plan
        return super()._key() | {"request": resolved(plan.request), "evaluate_every": plan.recovery.evaluate_every}

    def _others(self) -> Iterator[Row]:
        task = self.simulation.task(self.federation, self.weights)
        if self.last is None or self.last.phase == "unlearn":
            for step in unlearning(self.method, task, self.last):
                yield from self._done(step)
            yield self._unlearned(self.last.round.after if self.last else self.weights)
        for step in recovering(self.method, task, self.total, self.last):
            yield from self._done(step)

    def _unlearned(self, weights: Weights) -> Row:
        """The model that recovery starts from, which every method has, and which is scored."""
        if self.plan.keep.first:
            self._kept(UNLEARNED, "unlearn", weights)
        scores = self._scored(weights, final=False)
        row = self._row("unlearn", scores)
        self.record.add(row)
        return row

    def _scores(self, step: Step) -> Scores | None:
        final = self.done == self.total
        due = step.phase == "recover" and (final or self.done % self.plan.recovery.evaluate_every == 0)
        return self._scored(step.round.after, final=final) if due else None

    def _scored(self, weights: Weights, *, final: bool) -> Scores:
        validation = None
        if any(self.simulation.partition.validation):
            # What those who stay are asked is a stop rule's cost; all else only a simulation can know.
            started = time.perf_counter()
            validation = validate(self.simulation.task(self.federation, weights).retained, weights, self.seed)
            self.account.add("evaluate", time.perf_counter() - started)
        return self.simulation.score(weights, final=final, validation=validation)


def _named(phase: Phase, rounds: int) -> str:
    return f"{phase}-{rounds:04d}"
