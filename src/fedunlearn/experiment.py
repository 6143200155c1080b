"""An experiment: one file says which federation forgets what, and which methods are compared at it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import InitErrorDetails

from fedunlearn.data.images import Cropped, Flipped
from fedunlearn.data.partition import Dirichlet, Iid
from fedunlearn.data.treatment import Backdoored, Turned
from fedunlearn.evaluation.published import published, require_published
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.stopping import Recovered
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.experiments import SCALES, reproducing, shipped
from fedunlearn.federation import ClientId, Predicate
from fedunlearn.history import HistoryKind
from fedunlearn.methods.catalogue import CATALOGUE
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.perturbation import PERTURBATIONS
from fedunlearn.methods.retrain import Retrain
from fedunlearn.presets import presets
from fedunlearn.problems import again, meant, sentence, sentences, short, unfit, wrong
from fedunlearn.programs import SGD, Adam, Constant, Cosine, Exponential, LocalTraining
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient, ForgetInstances, ForgetShare
from fedunlearn.task import Method, changed
from fedunlearn.tomlfile import KeyPath, TomlError, read
from fedunlearn.tomlkinds import Kinds, as_json, sayable

__all__ = [
    "Data",
    "Experiment",
    "ExperimentError",
    "Keep",
    "Model",
    "Recovery",
    "Training",
    "load",
    "made",
    "resolved",
]

_Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Rounds = Annotated[int, Field(ge=1, le=10**9)]
_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


_GOES_ON = "must be true where requests follow (then): each method goes on from the model that it has left"


class ExperimentError(ValueError):
    """An experiment's file is not as it should be.

    Attributes:
        problems: a sentence for all that is wrong, each beginning with its place.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class _Methods(Kinds):
    """Methods, whose tables may name a preset; what stands beside it goes before it."""

    def completed(self, name: str, entries: dict[str, Any]) -> dict[str, Any]:
        """See `Kinds`."""
        wanted = entries.pop("preset", None)
        known = presets(name)
        if wanted is None:
            return entries
        if not isinstance(wanted, str) or wanted not in known:
            there = f"there is none of {name}" if not known else f"must be {' or '.join(known)}{meant(wanted, known)}"
            problem = wrong("preset", f"{there}, not {short(wanted)}", wanted)
            raise ValidationError.from_exception_data("preset", [problem])
        return {**known[wanted].values, **entries}


class _Requests(Kinds):
    """Requests; an array of them is several at once."""

    def __call__(self, table: Any) -> Any:
        """See `Kinds`."""
        if isinstance(table, AnyOf):
            return table
        if not isinstance(table, (list, tuple)):
            return super().__call__(table)
        if not table:
            raise ValueError("must name one request at least")
        problems: list[InitErrorDetails] = []
        requests = []
        for position, entry in enumerate(table):
            try:
                requests.append(super().__call__(entry))
            except ValidationError as error:
                problems += [{**again(one), "loc": (position, *one["loc"])} for one in error.errors()]
            except ValueError as error:
                problems.append({**wrong("request", str(error), entry), "loc": (position,)})
        if problems:
            raise ValidationError.from_exception_data("request", problems)
        return requests[0] if len(requests) == 1 else AnyOf(tuple(requests))


_PARTITIONS = Kinds(Iid=Iid, Dirichlet=Dirichlet)
_IMAGES = Kinds(Cropped=Cropped, Flipped=Flipped)
_TREATMENTS = Kinds(Turned=Turned, Backdoored=Backdoored)
_OPTIMIZERS = Kinds(SGD=SGD, Adam=Adam)
_SCHEDULES = Kinds(Constant=Constant, Cosine=Cosine, Exponential=Exponential)
_REQUESTS = _Requests(Client=ForgetClient, Class=ForgetClass, Instances=ForgetInstances, Share=ForgetShare)
_STOP_RULES = Kinds(Recovered=Recovered)
_METHODS = _Methods(Method, **CATALOGUE)
_ALL_KINDS = (
    _PARTITIONS,
    _IMAGES,
    _TREATMENTS,
    _OPTIMIZERS,
    _SCHEDULES,
    _REQUESTS,
    _STOP_RULES,
    _METHODS,
    PERTURBATIONS,
)

Partition = Annotated[Any, BeforeValidator(_PARTITIONS)]
Images = Annotated[Any, BeforeValidator(_IMAGES)]
Treatment = Annotated[Any, BeforeValidator(_TREATMENTS)]
Optimizer = Annotated[Any, BeforeValidator(_OPTIMIZERS)]
Schedule = Annotated[Any, BeforeValidator(_SCHEDULES)]
Request = Annotated[Any, BeforeValidator(_REQUESTS)]
StopRule = Annotated[Any, BeforeValidator(_STOP_RULES)]
Contender = Annotated[Any, BeforeValidator(_METHODS)]


@dataclass(frozen=True, config=_STRICT)
class Data:
    """Who holds what.

    Attributes:
        name: of a data set, see `fedunlearn.data.datasets.load`.
        clients: their number; they are called "0", "1", ... One: centralized unlearning, whose rounds are epochs.
        samples: training samples that a client gets on average, validation included; None: all are dealt out.
        partition: how they are dealt out.
        validation: share that each client keeps for validation.
        treatment: what is peculiar to the data of single clients.
        proxy: training samples that no client holds and the server does, without looking at their labels. Where
            ``samples`` leaves enough of them, adding some changes nobody's data.
        images: how they become inputs, which says what shape the network sees; None: as they are.
    """

    name: str
    clients: int = Field(default=10, ge=1)
    samples: int | None = Field(default=None, ge=1)
    partition: Partition = Iid()
    validation: float = Field(default=0.2, ge=0, lt=1)
    treatment: Mapping[ClientId, Treatment] = Field(default_factory=dict)
    proxy: int = Field(default=0, ge=0)
    images: Images | None = None


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
        participation: share of the clients that take part in a round, see `fedunlearn.backends.sampled.Sampled`.
    """

    rounds: _Rounds
    optimizer: Optimizer = SGD()
    schedule: Schedule = Constant()
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=64, ge=1)
    clip: float | None = Field(default=None, gt=0)
    participation: float = Field(default=1.0, gt=0, le=1)

    def program(self) -> LocalTraining:
        """What a client does in a round."""
        return LocalTraining(self.optimizer, self.schedule, self.epochs, None, self.batch_size, clip=self.clip)


@dataclass(frozen=True, config=_STRICT)
class Recovery:
    """What follows the unlearning step.

    Attributes:
        rounds: of recovery, the same for every method; Retrain has as many as the first training.
        evaluate_every: rounds between two scorings; the first state and the last are scored too.
        stop: the rule that needs no Retrain model; what it would have given is reported beside the fixed number
            of rounds and the paper's oracle.
        budget: what counts as a round: those of recovery alone, or "all" in which clients work, the unlearning step's
            among them, which are then scored like those of recovery. Centralized methods are compared so, at the
            same number of epochs; an unlearning step that would take more is cut off there.
    """

    rounds: _Rounds
    evaluate_every: _Rounds = 5
    stop: StopRule = Recovered()
    budget: Literal["recovery", "all"] = "recovery"


@dataclass(frozen=True, config=_STRICT)
class Keep:
    """Of which rounds the weights are kept in a run's folder.

    Attributes:
        first: what each method's unlearning step left.
        last: what each method ended with. The first training's last model is always kept.
        every: each so-manieth round of recovery and of the first training.
    """

    first: bool = True
    last: bool = True
    every: _Rounds | None = None


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must differ from one another")
    return values


def _comparable(methods: tuple[Method, ...]) -> tuple[Method, ...]:
    if not any(type(method) is Retrain for method in methods):
        raise ValueError("must hold Retrain, the reference of the average gap")
    if len(set(_labels(methods))) < len(methods):
        raise ValueError("must differ from one another: leave out what stands twice, or give it other entries")
    return methods


@dataclass(frozen=True, config=_STRICT)
class Experiment:
    """A comparison of methods at one request, over several seeds.

    Attributes:
        title: one line.
        story: why anyone should want this forgotten.
        minutes: how long a run takes on two cores, about.
        published: the paper's results to show beside ours: table, data set and network, or a figure, as
            `fedunlearn.evaluation.published` knows them.
        series: which of our methods stands beside one of the paper's, by the paper's name; others stand beside those of
            their own name.
        data, model, training, recovery, keep: see there.
        request: what is to be forgotten; an array of requests: all of it at once.
        methods: that are compared; Retrain, the reference, is always among them. Hyper-parameters may be those of a
            preset (`fedunlearn.presets`). Your own as ``package.module:Class``.
        seeds: one whole run each: partition, initial weights, order of batches.
        then: what is asked later, one request after the other: each method goes on from the model that it has left.
        earlier: what was asked before; `stages` sets it.
        left: clients who are gone when the request for all of their data is answered: nobody can ask them to help.
    """

    title: str
    data: Data
    model: Model
    training: Training
    request: Request
    recovery: Recovery
    story: str = ""
    minutes: float | None = Field(default=None, gt=0)
    published: Annotated[str, AfterValidator(require_published)] | None = None
    series: Mapping[str, str] = Field(default_factory=dict)
    keep: Keep = Keep()
    methods: Annotated[tuple[Contender, ...], AfterValidator(_comparable)] = (Retrain(), FineTune(), NoT())
    seeds: Annotated[tuple[_Seed, ...], AfterValidator(_distinct)] = Field(default=(0, 1, 2), min_length=1)
    then: tuple[Request, ...] = ()
    earlier: tuple[Request, ...] = ()
    left: Annotated[tuple[ClientId, ...], AfterValidator(_distinct)] = ()

    @property
    def stages(self) -> tuple[Experiment, ...]:
        """One experiment for each request that follows another; itself, where none does.

        Raises:
            ValueError: the models that later requests go on from are not kept.
        """
        if self.then and not self.keep.last:
            raise ValueError(f"keep.last {_GOES_ON}")
        requests = (self.request, *self.then)
        return tuple(
            replace(self, request=request, then=(), earlier=(*self.earlier, *requests[:number]))
            for number, request in enumerate(requests)
        )

    @property
    def forgotten(self) -> Predicate:
        """All that has been asked to be forgotten, once this request is answered."""
        return AnyOf((*self.earlier, self.request)) if self.earlier else cast(Predicate, self.request)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the methods are called in rows and tables: by name, and by what is said of those that share one."""
        return _labels(self.methods)

    @property
    def history(self) -> frozenset[HistoryKind]:
        """Kinds of history that the first training records, since a method needs them."""
        return frozenset(method.needs.history for method in self.methods if method.needs.history is not None)

    def rounds(self, method: Method) -> int:
        """How many rounds follow a method's unlearning step."""
        return self.training.rounds if type(method) is Retrain else self.recovery.rounds

    @property
    def total_rounds(self) -> int:
        """How many rounds a run has, first training included, unlearning steps not."""
        once = len(self.seeds) * (self.training.rounds + sum(map(self.rounds, self.methods)))
        return once * (1 + len(self.then))


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
    if disagreeing := {**dict(_disagreeing(plan)), **dict(_strangers(plan))}:
        raise ExperimentError(sentences([], disagreeing, document, Experiment))
    return plan


def _disagreeing(plan: Experiment) -> Iterator[tuple[KeyPath, str]]:
    """Entries that do not go together, or are not for files."""
    if plan.then and not plan.keep.last:
        yield ("keep", "last"), _GOES_ON
    if plan.earlier:
        told = "is written by a run whose requests follow one another, and no run of its own can begin there"
        yield ("earlier",), f"{told}: run the file that says `then`, in the folder above"


def _strangers(plan: Experiment) -> Iterator[tuple[KeyPath, str]]:
    """What ``series`` names that there is not."""
    if plan.series and plan.published is None:
        yield ("series",), "stands beside nothing: say with published what the paper's methods are from"
        return
    rows = [row.method for row in published(plan.published).rows] if plan.published else []
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
        return cast(Method, _METHODS(table))
    except ValidationError as error:
        raise ExperimentError(
            f"{'.'.join(map(str, problem['loc']))}: {sentence(problem, problem['loc'], Experiment)}"
            for problem in error.errors()
        ) from None


def resolved(value: Any) -> Any:
    """An experiment, or a part of one, as a file would say it with nothing left to defaults.

    What a file cannot say is left out: None, and `fedunlearn.FIRST`; both are defaults. `load` of what this gives
    for an experiment is the same experiment.
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
    kinds = next((kinds for kinds in _ALL_KINDS if kinds.has(value)), None)
    return {"kind": kinds.name(value), **said} if kinds else said


def _labels(methods: Sequence[Method]) -> tuple[str, ...]:
    names = [method.name for method in methods]
    said = [
        f"{name}({_said(method)})" if names.count(name) > 1 and _said(method) else name
        for name, method in zip(names, methods, strict=True)
    ]
    return tuple(
        f"{type(method).__module__}:{label}" if said.count(label) > 1 or _taken(label, method) else label
        for label, method in zip(said, methods, strict=True)
    )


def _taken(label: str, method: Method) -> bool:
    """Whether the table has a line of this name already, and it is of something else."""
    return label == ORIGINAL or (label == REFERENCE and type(method) is not Retrain)


def _said(method: Method) -> str:
    """The hyper-parameters that are not as they are by default."""
    return ", ".join(_entries(method, method.name))


def _entries(of: object, name: str) -> Iterator[str]:
    """The fields that are not as they are by default; those of a part that has lent ``of`` its name, as its own."""
    for entry, value in changed(of).items():
        if dataclasses.is_dataclass(value) and type(value).__name__ == name:
            yield from _entries(value, name)
        else:
            yield f"{entry}={value}"
