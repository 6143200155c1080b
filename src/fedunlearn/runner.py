"""Running an experiment in a folder: stopped anywhere, it goes on from there and ends with the same bits."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from itertools import chain, combinations, islice
from pathlib import Path
from typing import Any, Literal

from fedunlearn.backends.in_process import best_device
from fedunlearn.backends.metered import Metered
from fedunlearn.backends.recorded import Recorded, Recorder
from fedunlearn.environment import determinants
from fedunlearn.evaluation.cost import Account
from fedunlearn.evaluation.follow import Step, recovering, timed, unlearning
from fedunlearn.evaluation.rows import ORIGINAL, Row
from fedunlearn.evaluation.scores import Scores
from fedunlearn.experiment import Experiment
from fedunlearn.experimentfile import resolved
from fedunlearn.federation import Federation, Phase, Traffic, Work
from fedunlearn.history import KINDS, History, HistoryError
from fedunlearn.methods.retrain import Retrain
from fedunlearn.needs import NeedsError
from fedunlearn.preconditions import require_runnable
from fedunlearn.programs import Diverged
from fedunlearn.record import Record
from fedunlearn.rounds import fedavg
from fedunlearn.runfolder import FIRST_TRAINING, Cache, RunFolder, folders
from fedunlearn.simulation import Setting, Simulation
from fedunlearn.task import Method
from fedunlearn.weights import Weights

__all__ = ["kept_models", "kept_on_the_way", "run"]

UNLEARNED, HISTORY = "unlearned", "history"  # names in records


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

    Where requests follow one another, each has a run of its own, in a folder below (`folders`), which goes on from
    the models that the one before it left.

    Args:
        experiment: to run.
        folder: for the run; see `RunFolder`. If a run of the same experiment was broken off there, this goes on.
        workers: see `fedunlearn.InProcess`.
        data_dir: see `fedunlearn.data.datasets.load`.
        cache: folder of first trainings and retrained models that runs share; None: none are shared.
        command: that asks for this, for the record.

    Raises:
        FolderError: the folder is in use, or holds something else.
        NeedsError: a method cannot answer a request; nothing has run.
        HistoryError: what was recorded of the first training is broken.
        ValueError: there is no room for what is to be recorded, or data set, network and request do not go together;
            nothing has run.
        ClientError: the first training or Retrain diverged, or the user's code failed.
    """
    homes = [RunFolder(path) for path in folders(experiment, folder)]
    for home in homes:
        home.require_usable()
    first = Setting.of(experiment, workers=workers, data_dir=data_dir)
    decides = {**determinants(best_device()), **first.digests()}
    settings = [dataclasses.replace(first, experiment=stage) for stage in experiment.stages]
    simulations = [[Simulation(setting, seed) for seed in experiment.seeds] for setting in settings]
    require_runnable(experiment, simulations, homes[0])
    before: RunFolder | None = None
    for home, setting, seeds in zip(homes, settings, simulations, strict=True):
        with home.claimed(setting.experiment, {**decides, **setting.own_methods()}, command):
            for simulation in seeds:
                home.write_partition(simulation.seed, dataclasses.asdict(simulation.partition))
                yield from _Seed(simulation, home, Cache(cache) if cache else None, decides, before).rows()
        before = home


class _Seed:
    """One seed of a run."""

    def __init__(
        self,
        simulation: Simulation,
        folder: RunFolder,
        cache: Cache | None,
        decides: Mapping[str, str],
        before: RunFolder | None,
    ) -> None:
        self.simulation, self.folder, self.cache, self.decides = simulation, folder, cache, decides
        self.seed, self.plan, self.before = simulation.seed, simulation.setting.experiment, before

    def rows(self) -> Iterator[Row]:
        """All of the seed, part by part."""
        record = self.folder.record(self.seed, 0, FIRST_TRAINING)
        if self.before is not None and not record.complete:
            record = Record.adopted(record.folder, self.before.record(self.seed, 0, FIRST_TRAINING).folder)
        training = _Training(self, record, ORIGINAL, self.plan.training.rounds)
        last: Row | None = None
        for row in training.rows():
            if last is not None:
                yield last
            last = row  # the last row comes with its scores, which depend on the request
        assert last is not None
        weights = training.result
        yield self._original(last, weights)
        try:
            history = training.history
            for position, (method, label) in enumerate(zip(self.plan.methods, self.plan.labels, strict=True), 2):
                record = self.folder.record(self.seed, position, label)
                earlier = self.before.record(self.seed, position, label) if self.before else None
                if earlier is not None and earlier.failed:
                    if not record.complete:
                        record.begin()
                        record.finish(label, failed=f"at an earlier request: {earlier.failed}")
                    continue
                start = _last(earlier) if earlier else weights
                rounds = self.plan.rounds(method)
                yield from _Contender(self, record, label, rounds, method, start, history).rows()
        except HistoryError as error:
            folder = training.record.folder
            raise HistoryError(f"{error} (in this run: remove {folder}, and the same command does it anew)") from error

    def _original(self, last: Row, weights: Weights) -> Row:
        record = self.folder.record(self.seed, 1, ORIGINAL)
        if not record.complete:
            scores = None
            if self.plan.shadow is None:
                validation = self.simulation.validate(self.simulation.federation, weights)
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
        self.decides, self.storage = seed.decides, 0

    def rows(self) -> Iterator[Row]:
        """Those that are there, then the others."""
        record = self.record
        cache = self.cache if self.reference else None
        if cache is not None and not record.complete and not record.rows:
            found = (cache.fetch(key, record.folder) for key in self._keys())
            self.record = record = next((one for one in found if one is not None), record)
        yield from list(record.rows)
        if record.complete:
            return
        record.begin()
        paid = record.rows[-1].costs if record.rows else {}
        self.account = Account(self.simulation.setting.flops, self.storage, paid)
        self.everybody = Metered(self.simulation.federation, self.account.ledger)
        self.federation = self.simulation.taking_part(self.everybody)
        saved = record.saved
        self.last = Step(saved.phase, saved.round, 0.0) if saved else None
        self.rows_then = len(record.rows)
        self.done = record.rows[-1].rounds if record.rows else 0
        try:
            yield from self._others()
        except BaseException as error:
            failed = isinstance(error, (Diverged, NeedsError)) or isinstance(error.__cause__, Diverged)
            if failed and not self.reference:
                record.finish(self.label, failed=str(error))
                return
            if self.last is not None:  # an error, Ctrl-C, or a reader who has enough: nothing that was done is lost
                self._save(self.last, now=True)
            raise
        record.finish(self.label)
        if cache is not None:
            cache.store(next(self._keys()), record)

    def _keys(self) -> Iterator[dict[str, Any]]:
        """All that decides what the record holds; then what decides records that would do as well."""
        plan, data = self.plan, self.plan.data
        if data.samples is not None:
            data = dataclasses.replace(data, proxy=0)  # which changes nobody's data then
        said: dict[str, Any] = {"part": self.label, "seed": self.seed, "decides": dict(self.decides)}
        said |= {"data": data, "model": plan.model, "training": plan.training, "keep": plan.keep}
        if plan.shadow is not None:  # the server's samples and the request decide who has a twin
            said |= {"shadow": plan.shadow, "request": plan.request, "data": plan.data}
        yield {name: resolved(value) for name, value in said.items()}

    @abstractmethod
    def _others(self) -> Iterator[Row]:
        """The rows after those that are there."""

    def _done(self, step: Step) -> Iterator[Row]:
        """Take in a step."""
        self.account.add(step.phase, step.seconds)
        counts = self._counts(step)
        self.done += counts
        row = self._row(step.phase, self._scores(step) if counts else None)
        self._keep(step)
        self.record.add(row)
        self.last, self.rows_then = step, len(self.record.rows)
        self._save(step)
        yield row

    def _save(self, step: Step, *, now: bool = False) -> None:
        self.record.save(step.phase, step.round, self.rows_then, now=now)

    def _row(self, phase: Phase, scores: Scores | None) -> Row:
        return Row(self.seed, self.label, phase, self.done, self.account.costs(), scores)

    def _counts(self, step: Step) -> bool:
        """Whether a step is one of the rounds that are counted."""
        return step.phase != "unlearn"

    def _scores(self, step: Step) -> Scores | None:
        return None

    def _keep(self, step: Step) -> None:
        keep, final = self.plan.keep, self.done >= self.total
        every = keep.every is not None and self.done % keep.every == 0
        if step.phase != "unlearn" and (every or (final and (keep.last or step.phase == "train"))):
            self._kept(_named(step.phase, self.done), step.phase, step.round.after)

    def _kept(self, name: str, phase: Phase, weights: Weights) -> None:
        about = {"method": self.label, "seed": self.seed, "phase": phase, "rounds": self.done}
        self.record.keep(name, weights, about)


class _Training(_Part):
    """The first training, with the histories that the methods need."""

    def __init__(self, seed: _Seed, record: Record, label: str, rounds: int) -> None:
        super().__init__(seed, record, label, rounds)
        self.kinds = self.plan.history
        self.recorder: Recorder | None = None

    @property
    def result(self) -> Weights:
        """The trained model."""
        return self.record.kept(_named("train", self.total))

    @property
    def history(self) -> History | None:
        """What was kept of it."""
        return History(self.record.folder / HISTORY) if self.kinds else None

    def _keys(self) -> Iterator[dict[str, Any]]:
        (key,) = super()._keys()
        others = [kind for kind in KINDS if kind not in self.kinds]
        for more in chain.from_iterable(combinations(others, number) for number in range(len(others) + 1)):
            yield {**key, "history": sorted([*self.kinds, *more])}  # with more kinds it serves as well

    def _others(self) -> Iterator[Row]:
        weights = self.last.round.after if self.last else self.simulation.setting.architecture.fresh(self.seed)
        federation: Federation = self.federation
        if self.kinds:
            self.recorder = Recorder(self.record.folder / HISTORY, self.kinds, federation.clients)
            self.recorder.rewind(self.done)
            federation = Recorded(federation, self.recorder)
        rounds = fedavg(federation, weights, self.simulation.training, self.seed, "train", self.done)
        for step in timed("train", islice(rounds, self.total - self.done)):
            weights = step.round.after
            yield from self._done(step)
        if self.recorder is not None and self.last is not None:
            self._save(self.last, now=True)  # what is older may then go
            self.recorder.finish(weights)

    def _save(self, step: Step, *, now: bool = False) -> None:
        recorder = self.recorder
        if recorder is None or recorder.rounds == step.round.number + 1:  # else it is ahead: an error came in between
            first = recorder.flush if recorder is not None else None
            self.record.save(step.phase, step.round, self.rows_then, now=now, first=first)


class _Contender(_Part):
    """A method on the trained model."""

    def __init__(
        self,
        seed: _Seed,
        record: Record,
        label: str,
        rounds: int,
        method: Method,
        weights: Weights,
        history: History | None,
    ) -> None:
        super().__init__(seed, record, label, rounds)
        self.method, self.weights, self.history = method, weights, history
        self.reference = type(method) is Retrain
        if history is not None and method.needs.history is not None:
            self.storage = history.nbytes(method.needs.history)

    def _keys(self) -> Iterator[dict[str, Any]]:
        (key,) = super()._keys()
        asked = {name: resolved(getattr(self.plan, name)) for name in ("request", "earlier", "left")}
        yield key | asked | {"evaluate_every": self.plan.recovery.evaluate_every}

    def _others(self) -> Iterator[Row]:
        images = self.simulation.proxy
        proxy = Metered(images, self.account.ledger, wire=False) if images is not None else None
        task = self.simulation.task(self.federation, self.weights, history=self.history, proxy=proxy)
        self.worked = self._worked()
        if self.last is None or self.last.phase == "unlearn":
            steps = unlearning(self.method, task, self.last)
            # Only where its rounds are counted can it use up the budget.
            while self.done < self.total and (step := next(steps, None)) is not None:
                yield from self._done(step)
            yield self._unlearned(self.last.round.after if self.last else self.weights)
        recovered = self.last.round.number + 1 if self.last and self.last.phase == "recover" else 0
        for step in recovering(self.method, task, self.total - self.done + recovered, self.last):
            yield from self._done(step)

    def _unlearned(self, weights: Weights) -> Row:
        """The model that recovery starts from, which every method has, and which is scored."""
        final = self.done >= self.total
        if self.plan.keep.first:
            self._kept(UNLEARNED, "unlearn", weights)
        if final and self.plan.keep.last:
            self._kept(_named("recover", self.done), "unlearn", weights)
        scores = self._scored(weights, final=final)
        row = self._row("unlearn", scores)
        self.record.add(row)
        return row

    def _counts(self, step: Step) -> bool:
        if self.plan.recovery.budget != "all" or step.phase != "unlearn":
            return super()._counts(step)
        before, self.worked = self.worked, self._worked()
        return self.worked != before

    def _worked(self) -> Work:
        """What clients have done in the unlearning step so far."""
        return self.account.ledger.phases.get("unlearn", Traffic()).work

    def _scores(self, step: Step) -> Scores | None:
        final = self.done >= self.total
        due = final or self.done % self.plan.recovery.evaluate_every == 0
        return self._scored(step.round.after, final=final) if due else None

    def _scored(self, weights: Weights, *, final: bool) -> Scores | None:
        if self.plan.shadow is not None:
            return None
        validation = None
        if any(self.simulation.partition.validation):
            # What those who stay are asked is a stop rule's cost; all else only a simulation can know.
            started = time.perf_counter()
            validation = self.simulation.validate(self.everybody, weights)
            self.account.add("evaluate", time.perf_counter() - started)
        return self.simulation.score(weights, final=final, validation=validation)


def kept_models(home: RunFolder, seed: int) -> Iterator[tuple[str, Literal["unlearned", "last"], Weights]]:
    """The models that a complete seed has kept: method, moment, weights; the model before the request is the first."""
    training, original, *others = home.records(seed)
    yield original.label, "last", training.kept(_named("train", training.rows[-1].rounds))
    for record in others:
        if not record.failed:
            yield record.label, "unlearned", record.kept(UNLEARNED)
            yield record.label, "last", _last(record)


def kept_on_the_way(home: RunFolder, seed: int, label: str) -> Iterator[tuple[int, Weights]]:
    """The models of a method's recovery that a complete seed has kept, each with its round."""
    for record in home.records(seed):
        if record.label == label:
            named = ((row.rounds, _name_of(row)) for row in record.rows)
            yield from ((rounds, record.kept(name)) for rounds, name in named if name in record.models)


def _name_of(row: Row) -> str:
    return _named(row.phase, row.rounds)


def _last(record: Record) -> Weights:
    """The model that a method ended with."""
    return record.kept(_named("recover", record.rows[-1].rounds))


def _named(phase: Phase, rounds: int) -> str:
    return f"{phase}-{rounds:04d}"
