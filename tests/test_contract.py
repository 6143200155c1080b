"""Every method keeps the contract; and the contract can fail, each promise for its own reason."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import pytest
import torch

from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.wire import decode, encode
from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.contract import CHECKS, Case, small_task
from fedunlearn.evaluation.follow import follow
from fedunlearn.federation import ClientContext, ClientId, Predicate, Program, Reply, Traffic, Turn, Work
from fedunlearn.methods.badt import BadT
from fedunlearn.methods.fcu import FCU
from fedunlearn.methods.federaser import FedAccum, FedEraser
from fedunlearn.methods.fedosd import FedOSD
from fedunlearn.methods.fedquit import FedQUIT
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.freeze import NRFreeze, PFreeze, RFreeze
from fedunlearn.methods.fukd import FUKD
from fedunlearn.methods.ga import GA
from fedunlearn.methods.l1_sparse import L1Sparse
from fedunlearn.methods.mode import MoDE
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.neggrad import NegGradPlus
from fedunlearn.methods.notnot import NotNot
from fedunlearn.methods.perturbation import PERTURBATIONS, Perturb, PruneAndReinitialise, RotateOutputs, WhiteNoise
from fedunlearn.methods.pgd import PGD
from fedunlearn.methods.puf import PUF
from fedunlearn.methods.randl import RandL
from fedunlearn.methods.retrain import Retrain
from fedunlearn.methods.salun import SalUn
from fedunlearn.methods.scrub import SCRUB
from fedunlearn.methods.ssd import SSD
from fedunlearn.needs import Needs, NeedsError, Size
from fedunlearn.programs import Evaluate, LocalTraining
from fedunlearn.requests import ForgetClass, ForgetClient, ForgetInstances
from fedunlearn.rounds import Round, aggregate, fedavg
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

REQUESTS: Mapping[str, Predicate] = {
    "client": ForgetClient("1"),
    "class": ForgetClass(2),
    "instances": ForgetInstances({"0": (0, 5, 7), "2": (3,)}),
}


METHODS: list[Method] = [  # a newcomer stands here too
    Retrain(),
    FineTune(),
    NoT(),
    NoT(batchnorm="recalibrate"),
    NotNot(layers=["conv", "head"]),
    FedEraser(),
    FedEraser(norm="global", calibration=1.0, history="updates"),
    FedAccum(),
    FUKD(),
    PGD(squared_stop_distance=1e9),  # its price is stated for all steps, and a client that stops early takes less
    MoDE(rounds=3, erasure_rounds=1),
    MoDE(rounds=1, erasure_rounds=1, guide_target=False),
    FCU(iterations=5, interval=2),
    PUF(),
    PUF(round="regular"),
    FedOSD(rounds=2),
    FedOSD(rounds=1, recovery="plain"),
    FedQUIT(),
    GA(epochs=2, clip=1.0),
    NegGradPlus(epochs=2),
    BadT(epochs=2),
    SCRUB(),
    SCRUB(epochs=1, msteps=0),
    RandL(rounds=2),
    RandL(rounds=2, mix="joint", exclude_true=False),
    L1Sparse(),
    SSD(batch_size=8),
    SalUn(rounds=2),
    SalUn(rounds=1, mix="joint", lr=0.01),
    Perturb(WhiteNoise(), "*"),
    Perturb(RotateOutputs(), recalibrate=True),
    Perturb(PruneAndReinitialise(0.9), "*", include_bias=True),
    NRFreeze(),
    PFreeze("head", include_bias=True),
    RFreeze(),
]


Tasks = Callable[[str, str], Task]


@pytest.fixture(scope="module")
def tasks(request: pytest.FixtureRequest) -> Tasks:
    """The task of some workers and a request, made once: that no method changes it is a check of its own."""

    @functools.cache
    def task(workers: str, asked: str) -> Task:
        return small_task(REQUESTS[asked], request.getfixturevalue(workers))

    return task


# That two workers give the bits of one is a test of its own, for all requests; so with two, one request is enough, and
# of the checks those of what a worker does or sends.
AT_WORKERS = (
    "same_seed_same_bits",
    "costs_are_the_closed_form",
    "a_client_holds_three_models",
    "resumed_after_any_round",
)
SETTINGS = [
    *(("one_worker", asked, check) for asked in REQUESTS for check in CHECKS),
    *(("two_workers", "client", check) for check in AT_WORKERS),
]


@pytest.mark.parametrize(("workers", "asked", "check"), SETTINGS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_keeps_the_contract(method: Method, tasks: Tasks, workers: str, asked: str, check: str) -> None:
    task = tasks(workers, asked)
    if not method.needs.whole_clients or task.circumstances.whole_clients:
        CHECKS[check](Case(method, task))
    else:
        with pytest.raises(NeedsError, match="cannot forget a part of a client"):
            next(follow(method, task, 1))


@pytest.mark.parametrize("kind", PERTURBATIONS.kinds)
def test_every_perturbation_keeps_the_contract(kind: str, one_worker: InProcess) -> None:
    task = small_task(ForgetClient("1"), one_worker)
    for check in CHECKS.values():
        check(Case(Perturb(PERTURBATIONS(kind)), task))


@pytest.mark.parametrize("asked", REQUESTS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_one_and_two_workers_give_the_same_bits(method: Method, tasks: Tasks, asked: str) -> None:
    both = [tasks(workers, asked) for workers in ("one_worker", "two_workers")]
    if method.needs.whole_clients and not both[0].circumstances.whole_clients:
        return  # refused, as above
    one, two = (list(follow(method, task, 2)) for task in both)
    assert [s.phase for s in one] == [s.phase for s in two]
    assert all(a.round.after.same_bits(b.round.after) for a, b in zip(one, two, strict=True))


class Wired(Wrapper):
    """A federation whose programs come as JSON, with weights beside it."""

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        message, beside = encode(program)
        return self.inner.run(decode(json.loads(json.dumps(message)), beside), weights, turn, clients)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_programs_travel(method: Method, tasks: Tasks) -> None:
    task = tasks("one_worker", "client")
    views = {name: Wired(getattr(task, name)) for name in ("everyone", "retained", "forgotten", "proxy")}
    here, there = (list(follow(method, one, 1)) for one in (task, replace(task, **views)))  # type: ignore[arg-type]
    assert all(a.round.after.same_bits(b.round.after) for a, b in zip(here, there, strict=True))


def test_an_empty_request_is_answered_before_the_method_is_called(one_worker: InProcess) -> None:
    class Never(Retrain):
        def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
            raise AssertionError("called")

    with pytest.warns(UserWarning, match="nothing is to be forgotten"):
        assert list(follow(Never(), small_task(ForgetClient("nobody"), one_worker), 3)) == []


# --- methods that break one promise each -----------------------------------------------------------------------


class Unseeded(NoT):
    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        if resume is None:
            yield Round(0, task.weights.map(lambda t: t + 1e-6 * torch.randn(t.shape)))


class ChangesItsInput(NoT):
    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        if resume is None:
            yield Round(0, task.weights.map(lambda t: t.neg_()).map(torch.clone))


class ReadsWhatItDoesNotDeclare(NoT):
    def cost(self, size: Size) -> Traffic:
        return size.sent(len(size.forgotten), Work(sum(size.forgotten.values())), up=0)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        if resume is None:
            for _ in task.forgotten.run(Evaluate(), task.weights, task.turn()):
                pass
            yield Round(0, task.weights)


class ReadsLabelsThatItDoesNotDeclare(FedQUIT):
    needs = Needs(forget_data="inputs", target_online=True)


@dataclass(frozen=True)
class SeesSingleUpdates(Method):
    needs = Needs(retain_online=True)

    def cost(self, size: Size) -> Traffic:
        return size.round(dict([next(iter(size.retained.items()))]))

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        if resume is None:
            _, reply = next(iter(task.retained.run(task.training, task.weights, task.turn())))
            assert reply.weights is not None
            yield Round(0, replace(reply.weights, buffers=task.weights.buffers))


@dataclass(frozen=True)
class AsksOnceTooOften(Method):
    needs = Needs(retain_online=True)

    def cost(self, size: Size) -> Traffic:
        return size.round()

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        if resume is None:
            aggregate(task.retained, task.weights, task.training, task.turn())
            yield Round(0, aggregate(task.retained, task.weights, task.training, task.turn()))


class AveragesCounters(NoT):
    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        if resume is None:
            buffers = {n: b if b.is_floating_point() else b + 1 for n, b in task.weights.buffers.items()}
            yield Round(0, replace(task.weights, buffers=buffers))


class LosesTheFirstClient(NoT):
    def recover(self, task: Task, weights: Weights, start: int = 0) -> Iterator[Round]:
        for number in count(start):
            turn = Turn(task.seed, "recover", number)
            weights = aggregate(task.retained, weights, task.training, turn, task.retained.clients[1:])
            yield Round(number, weights)


class RecoversOnEverything(NoT):
    def recover(self, task: Task, weights: Weights, start: int = 0) -> Iterator[Round]:
        return fedavg(task.everyone, weights, task.training, task.seed, "recover", start)


class PeeksInRecovery(NoT):
    def recover(self, task: Task, weights: Weights, start: int = 0) -> Iterator[Round]:
        for done in super().recover(task, weights, start):
            for _ in task.forgotten.run(Evaluate(), done.after, task.turn(done.number)):
                pass
            yield done


class Remembers(NoT):
    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        if resume is None:
            object.__setattr__(self, "kept", task.weights * 0.5)
            yield Round(0, task.weights)
        if resume is None or resume.number == 0:
            yield Round(1, getattr(self, "kept", task.weights))


class NeedsTooMuch(NoT):
    needs = Needs(per_client_updates=True)  # type: ignore[assignment]


class NotFinite(NoT):
    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        if resume is None:  # a running variance: training never reads it, so nothing else goes wrong
            buffers = {n: b * float("nan") if n.endswith("var") else b for n, b in task.weights.buffers.items()}
            yield Round(0, replace(task.weights, buffers=buffers))


class StartsAgain(NoT):
    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        yield Round(0, task.weights * 0.5)
        yield Round(1, task.weights * 0.25)


@dataclass(frozen=True)
class HoldsTooMuch(NoT):
    needs = Needs(retain_online=True)  # type: ignore[assignment]

    def cost(self, size: Size) -> Traffic:
        return size.round()

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        if resume is None:
            yield Round(0, aggregate(task.retained, task.weights, Hoards(task.training), task.turn()))


@dataclass(frozen=True)
class Hoards:
    training: LocalTraining

    def __call__(self, context: ClientContext) -> Reply:
        hoard = [context.frozen() for _ in range(3)]
        reply = self.training(context)
        assert hoard
        return reply


@dataclass(frozen=True)
class Broken:
    method: Method
    caught_by: str


BROKEN = [
    Broken(Unseeded(), "same_seed_same_bits"),
    Broken(ChangesItsInput(), "inputs_unchanged"),
    Broken(ReadsWhatItDoesNotDeclare(), "needs_are_true"),
    Broken(ReadsLabelsThatItDoesNotDeclare(), "needs_are_true"),
    Broken(SeesSingleUpdates(), "needs_are_true"),
    Broken(AsksOnceTooOften(), "costs_are_the_closed_form"),
    Broken(HoldsTooMuch(), "a_client_holds_three_models"),
    Broken(AveragesCounters(), "integer_buffers_are_copied"),
    Broken(LosesTheFirstClient(), "those_who_stay_take_part"),
    Broken(RecoversOnEverything(), "those_who_stay_take_part"),
    Broken(PeeksInRecovery(), "those_who_stay_take_part"),
    Broken(NeedsTooMuch(), "needs_are_true"),
    Broken(Remembers(), "resumed_after_any_round"),
    Broken(NotFinite(), "results_are_finite"),
    Broken(StartsAgain(), "resumed_after_any_round"),
]


@pytest.mark.parametrize(
    ("workers", "asked"), [*(("one_worker", asked) for asked in REQUESTS), ("two_workers", "client")]
)
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: type(broken.method).__name__)
def test_the_contract_catches_what_is_broken_and_nothing_else(
    broken: Broken, tasks: Tasks, workers: str, asked: str
) -> None:
    task, caught = tasks(workers, asked), []
    for name, check in CHECKS.items():
        try:
            check(Case(broken.method, task))
        except AssertionError:
            caught.append(name)
    assert caught == [broken.caught_by]


def test_every_check_has_a_method_that_it_catches() -> None:
    assert {broken.caught_by for broken in BROKEN} == set(CHECKS)
