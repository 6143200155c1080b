"""An experiment: one file says which federation forgets what, and which methods are compared at it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedunlearn.data.partition import Iid
from fedunlearn.evaluation.published import require_published
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.stopping import Recovered
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.federation import ClientId, Predicate
from fedunlearn.history import HistoryKind
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.retrain import Retrain
from fedunlearn.programs import SGD, Constant, LocalTraining
from fedunlearn.requests import AnyOf
from fedunlearn.task import Method, changed
from fedunlearn.vocabulary import Contender, Images, Optimizer, Partition, Request, Schedule, StopRule, Treatment

__all__ = ["MUST_KEEP_LAST", "Data", "Experiment", "Keep", "Model", "Recovery", "Training"]

_Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Rounds = Annotated[int, Field(ge=1, le=10**9)]
_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


MUST_KEEP_LAST = "must be true where requests follow (then): each method goes on from the model that it has left"


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
        rounds: of the first training, and of Retrain and others that train from scratch.
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
        rounds: of recovery, the same for every method; where one trains from scratch, as Retrain does, it has as many
            as the first training.
        epochs: local epochs of such a round, which may be worth more than the bytes that they save; None: as in
            training. What trains from scratch trains as the first training did.
        evaluate_every: rounds between two scorings; the first state and the last are scored too.
        stop: the rule that needs no Retrain model; what it would have given is reported beside the fixed number
            of rounds and the paper's oracle.
        budget: what counts as a round: those of recovery alone, or "all" in which clients work, the unlearning step's
            among them, which are then scored like those of recovery. Centralized methods are compared so, at the
            same number of epochs; an unlearning step that would take more is cut off there.
    """

    rounds: _Rounds
    epochs: float | None = Field(default=None, gt=0)
    evaluate_every: _Rounds = 5
    stop: StopRule = Recovered()
    budget: Literal["recovery", "all"] = "recovery"

    def __post_init__(self) -> None:
        """Epochs cannot be counted as rounds where rounds have several."""
        if self.budget == "all" and self.epochs is not None:
            raise ValueError('budget "all" compares methods at the same number of epochs: leave recovery.epochs out')


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
        series: which of our methods stands beside one of the paper's, by the paper's name; others stand beside those
            of their own name.
        data, model, training, recovery, keep: see there.
        request: what is to be forgotten; an array of requests: all of it at once.
        methods: that are compared; Retrain, the reference, is always among them. Hyper-parameters may be those of a
            preset (`fedunlearn.presets`). Your own as ``package.module:Class``.
        seeds: one whole run each: partition, initial weights, order of batches.
        then: what is asked later, one request after the other: each method goes on from the model that it has left.
        earlier: what was asked before; `stages` sets it.
        left: clients who are gone when the request for all of their data is answered: nobody can ask them to help.
        shadow: None, or the seed whose data these are, but for tosses of a coin at each seed: at each training sample,
            one decides whether the client holds it or its twin (`fedunlearn.dealing.Deal.twins`). Such shadows are
            what attackers compare a model with; they are not scored. `fedunlearn audit` sets it.
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
    shadow: _Seed | None = None

    @property
    def stages(self) -> tuple[Experiment, ...]:
        """One experiment for each request that follows another; itself, where none does.

        Raises:
            ValueError: the models that later requests go on from are not kept.
        """
        if self.then and not self.keep.last:
            raise ValueError(f"keep.last {MUST_KEEP_LAST}")
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
        return self.training.rounds if method.from_scratch else self.recovery.rounds

    @property
    def total_rounds(self) -> int:
        """How many rounds a run has, first training included, unlearning steps not."""
        once = len(self.seeds) * (self.training.rounds + sum(map(self.rounds, self.methods)))
        return once * (1 + len(self.then))


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
