"""What several methods promise in the same words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from joint import DECAY, MOMENTUM, REQUESTS, TRAINING, rounds, twin

from fedunlearn.methods.badt import BadT
from fedunlearn.methods.fedosd import FedOSD
from fedunlearn.methods.fedquit import FedQUIT
from fedunlearn.methods.ga import GA
from fedunlearn.methods.l1_sparse import L1Sparse
from fedunlearn.methods.mode import MoDE
from fedunlearn.methods.neggrad import NegGradPlus
from fedunlearn.methods.randl import RandL
from fedunlearn.methods.salun import SalUn
from fedunlearn.methods.scrub import SCRUB
from fedunlearn.programs import SGD, Exponential, LocalTraining
from fedunlearn.rounds import Round
from fedunlearn.task import Method

OWN_RATE: list[Method] = [
    *(BadT(lr=0.5), FedOSD(lr=0.5), FedOSD(recovery_lr=0.5), FedQUIT(0.5), GA(lr=0.5), L1Sparse(lr=0.5)),
    *(MoDE(degraded_lr=None), MoDE(lr=None), NegGradPlus(lr=0.5), RandL(lr=0.5), SalUn(lr=0.5), SCRUB(lr=0.5)),
]
THE_TRAININGS: list[Method] = [
    *(BadT(), FedOSD(), FedQUIT(), GA(), L1Sparse(), MoDE(lr=None, degraded_lr=None), NegGradPlus(), RandL(), SalUn()),
    SCRUB(),
]


@pytest.mark.parametrize("method", OWN_RATE, ids=str)
def test_a_learning_rate_that_the_optimizer_cannot_take_is_refused_before_anything_runs(method: Method) -> None:
    strange = replace(twin(REQUESTS["client"]).task, training=LocalTraining(torch.optim.SGD.__call__))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no learning rate to be set"):
        method.check(strange)


@pytest.mark.parametrize("method", THE_TRAININGS, ids=str)
def test_without_a_learning_rate_of_its_own_any_optimizer_will_do(method: Method) -> None:
    method.check(replace(twin(REQUESTS["client"]).task, training=LocalTraining(torch.optim.SGD.__call__)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "plain"),
    [(FedQUIT(0.5), FedQUIT()), (L1Sparse(lr=0.5), L1Sparse()), (RandL(2, lr=0.5), RandL(2))],
    ids=lambda method: method.name,
)
def test_a_learning_rate_of_its_own_holds_whatever_the_schedule(method: Method, plain: Method) -> None:
    task = twin(REQUESTS["client"]).task
    scheduled = replace(
        task, training=replace(TRAINING, optimizer=SGD(9.0, MOMENTUM, DECAY), schedule=Exponential(0.1))
    )
    assert all(a.same_bits(b) for a, b in zip(rounds(method, scheduled), rounds(method, task), strict=True))
    assert not rounds(method, task)[0].same_bits(rounds(plain, task)[0])


@pytest.mark.parametrize("method", [BadT(3), GA(3), NegGradPlus(epochs=3), SCRUB()], ids=lambda method: method.name)
def test_resuming_needs_the_last_model_alone(method: Method) -> None:
    task = twin(REQUESTS["class"]).task
    whole = list(method.unlearn(task))
    rest = list(method.unlearn(task, Round(0, whole[0].after)))
    assert [done.number for done in rest] == [1, 2]
    assert all(a.after.same_bits(b.after) for a, b in zip(rest, whole[1:], strict=True))
    assert not whole[0].after.same_bits(task.weights)
    assert list(method.unlearn(task, whole[-1])) == []
