"""An experiment: one file says which federation forgets what, and which methods are compared at it."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fedunlearn.architecture import Architecture
from fedunlearn.atomic import atomic_write
from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.metered import Metered
from fedunlearn.backends.wire import encode
from fedunlearn.client import Client, View
from fedunlearn.data import datasets
from fedunlearn.data.partition import Dirichlet, Iid
from fedunlearn.data.treatment import Turned
from fedunlearn.evaluation.cost import Account
from fedunlearn.evaluation.flops import SampleFlops, flops_per_sample
from fedunlearn.evaluation.follow import Step, follow, timed
from fedunlearn.evaluation.membership import MIA_SAMPLES
from fedunlearn.evaluation.scores import Scores, score
from fedunlearn.evaluation.table import ORIGINAL, Row, table
from fedunlearn.federation import ClientId
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.retrain import Retrain
from fedunlearn.models import build
from fedunlearn.programs import SGD, Adam, Constant, Cosine, Exponential, LocalTraining
from fedunlearn.randomness import generator, stable_seed
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient, ForgetInstances, Rest
from fedunlearn.rounds import fedavg
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = [
    "Data",
    "Experiment",
    "ExperimentError",
    "Model",
    "Recovery",
    "Training",
    "changed",
    "explained",
    "load",
    "run",
    "shipped",
    "total_rounds",
    "write",
]

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
_SHIPPED = Path(__file__).parent / "experiments"


class ExperimentError(ValueError):
    """An experiment's file is not as it should be; the sentence names all that is wrong."""


def _any_of(**kinds: type) -> BeforeValidator:
    """A table whose ``kind`` names one of these dataclasses, its other entries the fields; or just the kind."""

    def made(table: Any) -> Any:
        if isinstance(table, tuple(kinds.values())):
            return table
        if isinstance(table, str):
            table = {"kind": table}
        if not isinstance(table, Mapping):
            raise ValueError(f"must be a table with a kind, one of {', '.join(kinds)}, not {table!r}")
        entries = dict(table)
        kind = kinds.get(name := entries.pop("kind", None))
        if kind is None:
            raise ValueError(f"kind must be one of {', '.join(kinds)}, not {name!r}")
        known = [field.name for field in dataclasses.fields(kind)]
        if unknown := sorted(entries.keys() - set(known)):
            raise ValueError(f"{name} has no {', '.join(unknown)}; it has {', '.join(known) or 'no entries'}")
        return TypeAdapter(kind).validate_python(entries)

    return BeforeValidator(made)


Partition = Annotated[Any, _any_of(Iid=Iid, Dirichlet=Dirichlet)]
Treatment = Annotated[Any, _any_of(Turned=Turned)]
Optimizer = Annotated[Any, _any_of(SGD=SGD, Adam=Adam)]
Schedule = Annotated[Any, _any_of(Constant=Constant, Cosine=Cosine, Exponential=Exponential)]
Request = Annotated[Any, _any_of(Client=ForgetClient, Class=ForgetClass, Instances=ForgetInstances)]
Contender = Annotated[Any, _any_of(Retrain=Retrain, FT=FineTune, NoT=NoT)]


@dataclass(frozen=True, config=_STRICT)
class Data:
    """Who holds what.

    Attributes:
        name: of a data set, see `fedunlearn.data.datasets.load`.
        clients: their number; they are called "0", "1", ...
        samples: training samples that a client gets on average, validation included; None: all are dealt out.
        partition: how they are dealt out.
        validation: share that each client keeps for validation.
        treatment: what is peculiar to the data of single clients.
    """

    name: str
    clients: int = Field(default=10, ge=2)
    samples: int | None = Field(default=None, ge=1)
    partition: Partition = Iid()
    validation: float = Field(default=0.2, ge=0, lt=1)
    treatment: Mapping[ClientId, Treatment] = Field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Model:
    """The network: its name, see `fedunlearn.models.build`, and its constructor's further arguments."""

    name: str
    options: Mapping[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Training:
    """How the federation trains, at first and in recovery.

    Attributes:
        rounds: of the first training, and of Retrain.
        optimizer, schedule, epochs, batch_size, clip: see `fedunlearn.programs.LocalTraining`.
    """

    rounds: int = Field(ge=1)
    optimizer: Optimizer = SGD()
    schedule: Schedule = Constant()
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=64, ge=1)
    clip: float | None = Field(default=None, gt=0)

    def program(self) -> LocalTraining:
        """What a client does in a round."""
        return LocalTraining(self.optimizer, self.schedule, self.epochs, None, self.batch_size, clip=self.clip)


@dataclass(frozen=True, config=_STRICT)
class Recovery:
    """What follows the unlearning step.

    Attributes:
        rounds: of recovery, the same for every method; Retrain has as many as the first training.
        evaluate_every: rounds between two scorings; the first state and the last are scored too.
    """

    rounds: int = Field(ge=1)
    evaluate_every: int = Field(default=5, ge=1)


@dataclass(frozen=True, config=_STRICT)
class Experiment:
    """A comparison of methods at one request, over several seeds.

    Attributes:
        title: one line.
        story: why anyone should want this forgotten.
        data, model, training, recovery: see there.
        request: what is to be forgotten.
        methods: that are compared; Retrain, the reference, is always among them.
        seeds: one whole run each: partition, initial weights, order of batches.
    """

    title: str
    data: Data
    model: Model
    training: Training
    request: Request
    recovery: Recovery
    story: str = ""
    methods: tuple[Contender, ...] = (Retrain(), FineTune(), NoT())
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)

    def __post_init__(self) -> None:
        if not any(isinstance(method, Retrain) for method in self.methods):
            raise ValueError("methods must hold Retrain, the reference of the average gap")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("methods must differ, from one another or in what is said of them")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ")

    @property
    def labels(self) -> tuple[str, ...]:
        """What the methods are called in rows and tables: by name, and by what is said of those that share one."""
        names = [method.name for method in self.methods]
        return tuple(
            name if names.count(name) == 1 else f"{name}({_said(method)})"
            for name, method in zip(names, self.methods, strict=True)
        )


def _said(method: Method) -> str:
    """The hyper-parameters that are not as they are by default."""
    default = type(method)()
    found = [(f.name, getattr(method, f.name)) for f in dataclasses.fields(method)]  # type: ignore[arg-type]
    return ", ".join(f"{name}={value}" for name, value in found if value != getattr(default, name))


def shipped() -> list[str]:
    """Names of the experiments that come with the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def load(name: str | Path) -> Experiment:
    """Read an experiment: a shipped one by its name, or a TOML file.

    Raises:
        ExperimentError: there is none, or it is not as it should be; the sentence names all that is wrong.
    """
    path = _SHIPPED / f"{name}.toml" if str(name) in shipped() else Path(name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ExperimentError(
            f"there is no experiment {str(name)!r}: give a TOML file, or one of {', '.join(shipped())}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path} is no TOML file: {error}") from None
    try:
        return TypeAdapter(Experiment).validate_python(table)
    except ValidationError as error:
        raise ExperimentError(f"{path}: {explained(error)}") from None


def explained(error: ValidationError) -> str:
    """All that is wrong, each with its place, in one sentence."""
    told = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        says = {"missing": "is missing", "unexpected_keyword_argument": "is unknown"}.get(
            problem["type"], problem["msg"]
        )
        told.append(f"{place}: {says.removeprefix('Value error, ')}" if place else says.removeprefix("Value error, "))
    return "; ".join(told)


def run(experiment: Experiment, *, workers: int | None = None, data_dir: Path | None = None) -> Iterator[Row]:
    """Run an experiment; a row after every round.

    Args:
        experiment: to run.
        workers: see `InProcess`.
        data_dir: see `fedunlearn.data.datasets.load`.

    Raises:
        ValueError: data set, network and request do not go together.
    """
    data = datasets.load(experiment.data.name, data_dir)
    architecture = Architecture(_Build(experiment.model, data.classes, data.shape))
    try:
        flops = flops_per_sample(architecture.build, data.shape)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{experiment.model.name} does not take inputs of shape {data.shape}: {error}") from error
    for seed in experiment.seeds:
        yield from _Run(experiment, data, architecture, flops, seed, workers).rows()


def changed(
    experiment: Experiment, *, seeds: tuple[int, ...] | None = None, data: str | None = None, model: str | None = None
) -> Experiment:
    """The experiment with other seeds, another data set or another network (without options).

    Raises:
        ExperimentError: seeds repeat.
    """
    changes: dict[str, Any] = {}
    if seeds is not None:
        changes["seeds"] = seeds
    if data is not None:
        changes["data"] = dataclasses.replace(experiment.data, name=data)
    if model is not None:
        changes["model"] = Model(model)
    try:
        return dataclasses.replace(experiment, **changes)
    except ValidationError as error:
        raise ExperimentError(explained(error)) from None


def write(path: Path, experiment: Experiment, rows: Sequence[Row]) -> None:
    """Write a run as JSON: the experiment, its table (None while rows are missing) and its rows.

    The file is whole or not there; folders on the way to it are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    complete = sum(row.phase != "unlearn" for row in rows) == total_rounds(experiment)
    report = {
        "experiment": encode(experiment)[0],
        "table": [dataclasses.asdict(line) for line in table(rows)] if complete else None,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    with atomic_write(path) as file:
        file.write(json.dumps(report, indent=1).encode())


def total_rounds(experiment: Experiment) -> int:
    """How many rounds a run has, first training included."""
    each = sum(_rounds(experiment, method) for method in experiment.methods)
    return len(experiment.seeds) * (experiment.training.rounds + each)


@dataclasses.dataclass(frozen=True)
class _Build:
    """Builds the network: a class and no lambda, so that workers can be sent it."""

    model: Model
    classes: int
    shape: tuple[int, ...]

    def __call__(self) -> torch.nn.Module:
        return build(self.model.name, self.classes, self.shape, **self.model.options)


class _Run:
    """One seed."""

    _TESTS = ("test 0", "test 1")  # two, so that two cores score

    def __init__(
        self,
        experiment: Experiment,
        data: datasets.DataSet,
        architecture: Architecture,
        flops: SampleFlops,
        seed: int,
        workers: int | None,
    ) -> None:
        self.experiment, self.architecture, self.flops, self.seed = experiment, architecture, flops, seed
        tests = [
            Client.of(name, data.test, part, validation=0)
            for name, part in zip(self._TESTS, torch.arange(len(data.test.labels)).tensor_split(2), strict=True)
        ]
        clients = _clients(experiment.data, data, seed)
        everybody = InProcess(architecture, [*clients, *tests], workers=workers)
        testing = AnyOf(tuple(map(ForgetClient, self._TESTS)))
        self.federation, self.test = everybody.where(Rest(testing)), everybody.where(testing)
        view = View((experiment.request,))
        meant = sum(len(view.of(client).positions(None, "train")) for client in clients)
        if meant == 0:
            raise ValueError("the request means no training sample of anybody: nothing is to be forgotten")
        if meant < MIA_SAMPLES:
            raise ValueError(
                f"the request means {meant} training samples, but the membership attack needs {MIA_SAMPLES}: "
                "forget more of them, or score with functions of your own"
            )
        self.training = experiment.training.program()

    def rows(self) -> Iterator[Row]:
        account = Account(self.flops)
        federation = Metered(self.federation, account.ledger)
        weights = self.architecture.fresh(self.seed)
        ordinary = fedavg(federation, weights, self.training, self.seed, "train")
        for step in islice(timed("train", ordinary), self.experiment.training.rounds):
            weights = step.round.after
            done = step.round.number + 1
            yield self._row(ORIGINAL, step, account, done, self.experiment.training.rounds, every=None)
        for method, label in zip(self.experiment.methods, self.experiment.labels, strict=True):
            yield from self._followed(method, label, weights)

    def _followed(self, method: Method, label: str, weights: Weights) -> Iterator[Row]:
        account = Account(self.flops)
        federation = Metered(self.federation, account.ledger)
        seed = stable_seed(self.seed, "unlearning")
        task = Task.of(federation, weights, self.experiment.request, self.training, self.architecture, seed=seed)
        rounds, done = _rounds(self.experiment, method), 0
        for step in follow(method, task, rounds):
            if step.phase == "recover" and not account.costs():  # without a step of its own: from the model as it was
                yield Row(self.seed, label, "unlearn", 0, {}, self._score(weights, efficacy=False))
            done += step.phase == "recover"
            yield self._row(label, step, account, done, rounds, every=self.experiment.recovery.evaluate_every)

    def _row(self, method: str, step: Step, account: Account, done: int, rounds: int, *, every: int | None) -> Row:
        account.add(step)
        last = done == rounds
        due = last or (every is not None and done % every == 0)
        scores = self._score(step.round.after, efficacy=last) if due else None
        return Row(self.seed, method, step.phase, done, account.costs(), scores)

    def _score(self, weights: Weights, *, efficacy: bool) -> Scores:
        everyone = self.federation.marking(self.experiment.request)
        return score(weights, everyone, self.test, self.seed, efficacy=efficacy)


def _rounds(experiment: Experiment, method: Method) -> int:
    return experiment.training.rounds if isinstance(method, Retrain) else experiment.recovery.rounds


def _clients(plan: Data, data: datasets.DataSet, seed: int) -> list[Client]:
    labels = data.train.labels
    wanted = len(labels) if plan.samples is None else plan.clients * plan.samples
    if wanted > len(labels):
        raise ValueError(
            f"{plan.clients} clients with {plan.samples} samples each need {wanted}, but {data.name} has "
            f"{len(labels)}: lower data.clients or data.samples"
        )
    if strangers := sorted(plan.treatment.keys() - {str(k) for k in range(plan.clients)}):
        raise ValueError(f"data.treatment names no client: {', '.join(strangers)}; they are 0 to {plan.clients - 1}")
    used = torch.randperm(len(labels), generator=generator(seed, "samples"))[:wanted]
    clients = []
    for number, part in enumerate(plan.partition(labels[used], plan.clients, seed)):
        treat = plan.treatment.get(str(number), lambda samples: samples)
        clients.append(Client.of(str(number), treat(data.train), used[part], validation=plan.validation, seed=seed))
    return clients
