"""l1-sparse: by hand, against NumPy, and what its specification promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from joint import DECAY, LR, MOMENTUM, REQUESTS, STEPS, account, by_hand, rounds, same, twin, vector, watched
from numpy_twin import Overheard
from numpy_twin_joint import labelled, sgd, weighted
from torch import Tensor, nn

from fedunlearn.backends.wire import decode, encode
from fedunlearn.contract import small_task
from fedunlearn.evaluation.follow import follow
from fedunlearn.federation import Batch, ClientContext, Predicate, Reply, Work
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.l1_sparse import L1Penalty, L1Sparse
from fedunlearn.programs import CrossEntropy, LocalTraining
from fedunlearn.requests import ForgetClass, ForgetClient
from fedunlearn.rounds import Round, fedavg
from fedunlearn.task import Task


def test_a_round_by_hand() -> None:
    """x = (1, 1, 0) of class 1 has w x = 0: its gradient is x / 2. The term's is 0.2 (1, -1, 0), as sign(0) = 0."""
    task = by_hand(ForgetClient("a"), {"a": [((9, 9, 9), 0)], "b": [((1, 1, 0), 1)] * 3}, weights=(0.5, -0.5, 0))
    (after,) = rounds(L1Sparse(epochs=1, strength=0.2), task)
    assert vector(after) == [0.5 - 0.1 * (0.5 + 0.2), -0.5 - 0.1 * (0.5 - 0.2), 0]


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_three_rounds_equal_numpys_with_the_term_on_every_parameter(request_: Predicate) -> None:
    world = twin(request_)
    theta = world.theta
    for strength, after in zip((0.3, 0.2, 0.1), rounds(L1Sparse(epochs=3, strength=0.3), world.task), strict=True):
        replies = []
        for own in world.retained.values():
            gradient = labelled(own)

            def sparse(at, gradient=gradient, strength=strength):  # type: ignore[no-untyped-def]
                return gradient(at) + strength * np.sign(at)

            replies.append((sgd(theta, sparse, LR, STEPS, MOMENTUM, DECAY), len(own)))
        theta = weighted(replies)
        same(after, theta)


# --- the term -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "expected"),
    [(L1Sparse(), [0.002, 0.001]), (L1Sparse(4, 1.0), [1.0, 0.75, 0.5, 0.25]), (L1Sparse(1, 0.5), [0.5])],
)
def test_the_strength_decays_linearly_from_the_first_epoch_to_none_after_the_last(
    method: L1Sparse, expected: list[float]
) -> None:
    task = twin(REQUESTS["client"]).task
    overheard = Overheard(task.retained, [])
    rounds(method, replace(task, retained=overheard))
    told = {turn.number: program.loss.strength for turn, program, _, _ in overheard.heard}  # type: ignore[attr-defined]
    assert [told[number] for number in range(method.epochs)] == expected


@dataclass
class Costs:
    """What the term adds to a loss at a client, and what it should."""

    def __call__(self, context: ClientContext) -> Reply:
        model, (batch, *_) = context.model.eval(), context.batches(0, 8)
        term = L1Penalty(Ten(), 0.25)(context)(model, batch) - 10
        self.pair = (term.item(), 0.25 * sum(float(p.detach().abs().sum()) for p in model.parameters()))
        self.names = {name for name, p in model.named_parameters() if p.detach().any()}
        return Reply()


@dataclass(frozen=True)
class Ten:
    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        return lambda model, batch: torch.tensor(10.0)


def test_the_term_is_of_all_parameters_biases_and_norms_too_and_stands_beside_the_trainings_own_loss() -> None:
    task, costs = small_task(ForgetClient("1")), Costs()
    list(task.retained.run(costs, task.weights, task.turn(), ["0"]))
    assert costs.names == {"conv.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert costs.pair[0] == pytest.approx(costs.pair[1], rel=1e-5)
    overheard = Overheard(task.retained, [])
    rounds(L1Sparse(epochs=1), replace(task, training=replace(task.training, loss=Chosen()), retained=overheard))
    assert {program.loss.loss for _, program, _, _ in overheard.heard} == {Chosen()}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Chosen(CrossEntropy):
    """A loss that a user has chosen."""


def test_what_a_client_is_told_travels() -> None:
    program = LocalTraining(loss=L1Penalty(CrossEntropy(), 0.5))
    assert decode(encode(program)[0]) == program


# --- what the specification promises --------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [ForgetClient("1"), ForgetClass(2)], ids=["client", "class"])
def test_a_strength_of_zero_is_fine_tuning_bit_for_bit(request_: Predicate) -> None:
    """Ordinary rounds, with BatchNorm, dropout and momentum."""
    task = small_task(request_)
    plain = fedavg(task.retained, task.weights, task.training, task.seed, "unlearn")
    found = rounds(L1Sparse(epochs=3, strength=0.0), task)
    assert len(found) == 3
    assert all(after.same_bits(done.after) for after, done in zip(found, plain, strict=False))


def test_a_strength_of_zero_and_recovery_are_fts_rounds_where_no_order_is_drawn() -> None:
    task = by_hand(ForgetClient("a"), {"a": [((9, 9, 9), 0)], "b": [((1, 2, 3), 1)]}, weights=(0.5, -0.25, 0))
    sparse = [step.round.after for step in follow(L1Sparse(epochs=2, strength=0.0), task, 3)]
    tuned = [step.round.after for step in follow(FineTune(), task, 5)]
    assert all(a.same_bits(b) for a, b in zip(sparse, tuned, strict=True))


def l1_norm(task: Task, method: L1Sparse) -> float:
    return float(rounds(method, task)[-1].vector().abs().sum())


@pytest.mark.parametrize("request_", [ForgetClient("1"), ForgetClass(2)], ids=["client", "class"])
def test_the_l1_norm_falls_below_that_of_fine_tuning_and_no_weight_becomes_zero(request_: Predicate) -> None:
    task = small_task(request_)
    norms = [l1_norm(task, L1Sparse(epochs=3, strength=strength)) for strength in (0.0, 0.002, 0.02)]
    assert norms[0] > norms[1] > norms[2]
    assert rounds(L1Sparse(epochs=3, strength=0.02), task)[-1].vector().all()


@pytest.mark.parametrize("kind", REQUESTS)
def test_what_goes_is_never_read_and_all_that_stays_is_in_each_epoch(kind: str) -> None:
    world = twin(REQUESTS[kind])
    task, visits = watched(world.task)
    rounds(L1Sparse(epochs=2), task)
    expected = [(n, k, {tuple(x) for x in own.x.tolist()}) for n in range(2) for k, own in world.retained.items()]
    assert [(visit.turn.number, visit.client, visit.x) for visit in visits] == expected
    assert (L1Sparse().needs.forget_data, L1Sparse().needs.target_online) == ("none", False)


def test_the_price_is_that_of_fine_tuning() -> None:
    task, ledger = account(twin(REQUESTS["client"]).task)
    rounds(L1Sparse(epochs=2), task)
    spent, passes = ledger.phases["unlearn"], 2 * STEPS * (7 + 4 + 6)
    assert (spent.down, spent.up) == (2 * 3 * 15 * 8, 2 * 3 * 15 * 8)
    assert spent.work == Work(passes, passes)


def test_only_the_rounds_that_are_left_follow() -> None:
    task = twin(REQUESTS["client"]).task
    assert [done.number for done in L1Sparse(epochs=4).unlearn(task, Round(1, task.weights))] == [2, 3]
    assert rounds(L1Sparse(epochs=0), task) == []
    assert L1Sparse().name == "l1-sparse"
