"""Which methods can answer a request under given circumstances, and at what price, before anything was trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedunlearn.amounts import tell_bytes
from fedunlearn.evaluation.cost import Cost
from fedunlearn.evaluation.flops import SampleFlops
from fedunlearn.history import kept_bytes
from fedunlearn.methods.catalogue import CATALOGUE
from fedunlearn.methods.freeze import Freeze
from fedunlearn.methods.mode import MoDE
from fedunlearn.methods.puf import PUF
from fedunlearn.needs import Circumstances, Size
from fedunlearn.programs import LocalTraining
from fedunlearn.task import Method, changed

__all__ = ["CANDIDATES", "Candidate", "Offer", "price", "recommend"]


@dataclass(frozen=True)
class Candidate:
    """A method that can be chosen.

    Attributes:
        name: in `CATALOGUE`.
        method: with the hyper-parameters that it is meant with.
    """

    name: str
    method: Method

    @property
    def changed(self) -> dict[str, Any]:
        """The hyper-parameters that are not as they are by default."""
        return changed(self.method)

    @property
    def label(self) -> str:
        """In a table: the name, with what is changed."""
        said = ", ".join(f"{name}={value}" for name, value in self.changed.items())
        return f"{self.name}({said})" if said else self.name

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        needs = dataclasses.asdict(self.method.needs)
        return {"method": self.name, "hyperparameters": self.changed, "needs": needs}


@dataclass(frozen=True)
class Offer(Candidate):
    """A candidate under given circumstances.

    Attributes:
        lacking: what is missing, each with what to do; it can run if nothing is.
        rounds: of recovery; Retrain's are the first training's.
        unlearning: what the unlearning step costs; None: it cannot run. Seconds are not predicted.
        total: the same with recovery.
        exceeded: budgets that the total exceeds, in words.
    """

    lacking: tuple[str, ...]
    rounds: int
    unlearning: Cost | None
    total: Cost | None
    exceeded: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """For JSON; bytes are parameters, both ways."""
        return {
            **super().summary(),
            "can_run": not self.lacking,
            "lacking": list(self.lacking),
            "exceeded": list(self.exceeded),
            "rounds": self.rounds,
            "unlearning": _summary(self.unlearning),
            "total": _summary(self.total),
        }


_VARIANTS: Mapping[str, tuple[Method, ...]] = {
    "MoDE": (MoDE(guide_target=False),),  # without those who leave
    # Where one client leaves and aggregation is secure, it is hidden among those who stay; in a round of its own there
    # is nobody to hide among. The rate is the authors' for such a round.
    "PUF": (PUF(rate=20.0, round="regular"),),
}
CANDIDATES: tuple[Candidate, ...] = tuple(
    Candidate(name, method)
    for name, kind in CATALOGUE.items()
    if not issubclass(kind, Freeze)  # a test of the theory, by which nobody unlearns
    for method in (kind(), *_VARIANTS.get(name, ()))
)
"""All of the catalogue that unlearns, with default hyper-parameters, and variants that can do with less."""


def recommend(
    size: Size,
    circumstances: Circumstances,
    flops: SampleFlops,
    rounds: int,
    *,
    training_rounds: int,
    recovery: LocalTraining | None = None,
    misfit: Callable[[Method], str | None] = lambda _: None,
    max_bytes: float | None = None,
    max_flops: float | None = None,
    max_storage: float | None = None,
    candidates: Iterable[Candidate] = CANDIDATES,
) -> list[Offer]:
    """Hold methods against what a server finds, and predict in closed form what their runs' accounts will say.

    All clients are taken to take part, and methods that may stop early (PGD, FedOSD) to go on to their end. How well
    a method forgets is another question.

    Args:
        size: of the task.
        circumstances: that the methods' needs are held against.
        flops: of the network.
        rounds: of recovery.
        training_rounds: of the first training, which Retrain's recovery repeats.
        recovery: the local training of recovery, but for Retrain; None: the ordinary one.
        misfit: says why a method does not fit the network, if it does not (`Method.check`); else all are taken to fit.
        max_bytes: of parameters, both ways, recovery included; None: there is no limit.
        max_flops: recovery included.
        max_storage: bytes kept since before the request.
        candidates: to choose from.

    Returns:
        Those that can run within all limits, then those that exceed one, each by bytes, then FLOPs, in total; then
        those that cannot run.
    """
    offers = []
    for candidate in candidates:
        method = candidate.method
        lacking = method.needs.lacking(circumstances)
        if why := misfit(method):
            lacking += (why,)
        after = training_rounds if method.from_scratch else rounds
        unlearning = total = None
        exceeded: tuple[str, ...] = ()
        if not lacking:
            unlearning, recovering = price(method, size, flops, after, recovery)
            total = unlearning + recovering
            exceeded = tuple(_exceeded(total, max_bytes, max_flops, max_storage))
        offers.append(Offer(candidate.name, method, lacking, after, unlearning, total, exceeded))
    return sorted(offers, key=_rank)


def price(
    method: Method, size: Size, flops: SampleFlops, rounds: int, recovery: LocalTraining | None = None
) -> tuple[Cost, Cost]:
    """What the unlearning step and so many rounds of recovery cost, as `Account` counts it; seconds are left out."""
    kind, storage = method.needs.history, 0
    if kind is not None:
        storage = kept_bytes(kind, message=size.message, tensors=size.tensors, clients=size.clients, rounds=size.rounds)
    step, recovering = method.cost(size), size.round(training=None if method.from_scratch else recovery) * rounds
    return (
        Cost(step, flops.of(step.work), storage=storage),
        Cost(recovering, flops.of(recovering.work), storage=storage),
    )


def _rank(offer: Offer) -> tuple[bool, bool, int, int]:
    if offer.total is None:
        return True, False, 0, 0  # as they came
    return False, bool(offer.exceeded), offer.total.traffic.both_ways, offer.total.flops


def _exceeded(
    total: Cost, max_bytes: float | None, max_flops: float | None, max_storage: float | None
) -> Iterator[str]:
    sent = total.traffic.both_ways
    if max_bytes is not None and sent > max_bytes:
        yield f"{tell_bytes(sent)} sent, more than {tell_bytes(max_bytes)}"
    if max_flops is not None and total.flops > max_flops:
        yield f"{total.flops:.3g} FLOPs, more than {max_flops:.3g}"
    if max_storage is not None and total.storage > max_storage:
        yield f"{tell_bytes(total.storage)} stored, more than {tell_bytes(max_storage)}"


def _summary(cost: Cost | None) -> dict[str, int] | None:
    if cost is None:
        return None
    return {"bytes": cost.traffic.both_ways, "flops": cost.flops, "storage": cost.storage}
