"""A task: all that a method may see; and what a method must say of itself."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from fedunlearn.architecture import Architecture
from fedunlearn.federation import ClientId, Federation, Phase, Predicate, Traffic, Turn
from fedunlearn.history import History
from fedunlearn.needs import Circumstances, Needs, Size
from fedunlearn.programs import LocalTraining
from fedunlearn.randomness import stable_seed
from fedunlearn.requests import AnyOf, ForgetClient, Rest
from fedunlearn.rounds import Round, fedavg
from fedunlearn.weights import Weights

__all__ = ["Method", "Task", "changed", "defaults"]


@dataclass(frozen=True, eq=False)
class Task:
    """A request on a trained model, with all that a method may see.

    Attributes:
        weights: the trained global model.
        everyone: all samples, flagged by the request: the only place where forget and retain meet in a batch.
        retained: what stays.
        forgotten: what is to go; without clients if those who held it have left.
        targets: clients that go wholly, also those that have left: a history knows them by name.
        training: the ordinary local training.
        architecture: how networks are built.
        seed: of all randomness.
        history: what the server kept.
        proxy: the server's own data, a federation of one.
        single_updates: whether the server sees single updates; secure aggregation hides them.
        recovery: the local training of which recovery consists; None: of the ordinary one (`recovering`).
    """

    weights: Weights
    everyone: Federation
    retained: Federation
    forgotten: Federation
    targets: tuple[ClientId, ...]
    training: LocalTraining
    architecture: Architecture
    seed: int = 0
    history: History | None = None
    proxy: Federation | None = None
    single_updates: bool = True
    recovery: LocalTraining | None = None

    @classmethod
    def of(
        cls,
        federation: Federation,
        weights: Weights,
        request: Predicate,
        training: LocalTraining,
        architecture: Architecture,
        *,
        recovery: LocalTraining | None = None,
        seed: int = 0,
        left: tuple[ClientId, ...] = (),
        history: History | None = None,
        proxy: Federation | None = None,
        single_updates: bool = True,
    ) -> Task:
        """The task of answering ``request``.

        Args:
            federation: of all clients, also those in ``left`` (whom no method will then reach).
            weights: the trained global model.
            request: what is to be forgotten.
            training: the ordinary local training.
            architecture: how networks are built.
            recovery: the local training of which recovery consists; None: the ordinary one.
            seed: of all randomness.
            left: clients that are gone already: their whole data is to be forgotten, without them.
            history: what the server kept.
            proxy: the server's own data.
            single_updates: whether the server sees single updates.

        Raises:
            ValueError: a client in ``left`` is not in the federation, or the history is of another training.
        """
        if not isinstance(weights, Weights):
            raise TypeError(
                f"weights must be fedunlearn.Weights, such as Weights.of(model), not {type(weights).__name__}"
            )
        if not isinstance(architecture, Architecture):
            raise TypeError("architecture must be an Architecture, such as federation.architecture")
        if strangers := sorted(set(left) - set(federation.clients)):
            raise ValueError(f"no such client has left: {', '.join(strangers)} (give the federation with them)")
        if history is not None and not history.leads_to(weights):
            raise ValueError(
                f"the history in {history.layout.folder} does not lead to this model: give the history of the training "
                "that ended with it, or none (after a first unlearning: what `History.forget` gives)"
            )
        if left:
            gone = AnyOf(tuple(map(ForgetClient, left)))
            present = federation.where(Rest(gone))
        else:
            present = federation
        retained, forgotten = present.where(Rest(request)), present.where(request)
        staying = set(retained.clients)
        wholly = (client for client in forgotten.clients if client not in staying)
        targets = tuple(dict.fromkeys((*wholly, *left)))
        return cls(
            weights, present.marking(request), retained, forgotten, targets, training, architecture,
            seed, history, proxy, single_updates, recovery,
        )  # fmt: skip

    @property
    def recovering(self) -> LocalTraining:
        """The local training of which recovery consists."""
        return self.recovery or self.training

    @property
    def empty(self) -> bool:
        """Whether there is nothing to forget."""
        return not self.targets and not self.forgotten.clients

    def fresh(self, *purpose: object) -> Weights:
        """Newly initialised weights, by a seed that depends on the task's and on what they are for."""
        return self.architecture.fresh(stable_seed(self.seed, "fresh", *purpose))

    def turn(self, number: int = 0, step: str = "", phase: Phase = "unlearn") -> Turn:
        """A turn of this task."""
        return Turn(self.seed, phase, number, step)

    @property
    def circumstances(self) -> Circumstances:
        """What `Needs` are held against."""
        there = set(self.forgotten.clients)
        return Circumstances(
            history=self.history.kinds if self.history is not None else frozenset(),
            target_online=bool(there) and there.issuperset(self.targets),
            retain_online=bool(self.retained.clients),
            proxy=self.proxy is not None,
            single_updates=self.single_updates,
            whole_clients=there.issubset(self.targets),
        )


class Method(ABC):
    """A way to unlearn: a frozen dataclass of hyper-parameters.

    A method is its unlearning step; recovery is the same endless FedAvg on what stays, for all of them. A method
    cannot print, time, score or stop itself: whoever reads its rounds does.

    Attributes:
        from_scratch: whether its recovery trains a new network, and so has as many rounds as the first training.
    """

    from_scratch: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """As in the paper's tables."""
        return type(self).__name__

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What the unlearning step cannot do without; may depend on hyper-parameters."""

    def check(self, task: Task) -> None:  # noqa: B027 - most have nothing to look at
        """Look, before anything runs, whether the hyper-parameters fit the task's network; most fit any.

        Raises:
            ValueError: they do not.
        """

    def cost(self, size: Size) -> Traffic:
        """What the unlearning step sends and computes, in closed form, where everybody takes part; mostly nothing."""
        return Traffic()

    @abstractmethod
    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """The unlearning step, round by round, numbered from 0: perhaps none, perhaps many.

        Args:
            task: to be solved; nothing of it may be changed.
            resume: the last round that was saved; only the rounds after it are yielded, with the same bits.
        """

    def recover(self, task: Task, weights: Weights, start: int = 0) -> Iterator[Round]:
        """Rounds on what stays, without end; the first is numbered ``start``. From scratch is trained as at first."""
        training = task.training if self.from_scratch else task.recovering
        return fedavg(task.retained, weights, training, task.seed, "recover", start)


def defaults(kind: type) -> dict[str, Any]:
    """The hyper-parameters of a method, or of a part of one, by default; `dataclasses.MISSING` where there is none."""
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(kind)
        if field.init
    }


def changed(method: object) -> dict[str, Any]:
    """The hyper-parameters of a method, or of a part of one, that are not as they are by default."""
    values = {name: (getattr(method, name), default) for name, default in defaults(type(method)).items()}
    return {name: value for name, (value, default) in values.items() if value != default}
