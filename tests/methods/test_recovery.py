"""Retrain, FT and NoT, which are FedAvg on what stays from different starts: against NumPy, and their invariants."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from joint import (
    LR,
    REQUESTS,
    TRAINING,
    account,
    answering,
    by_hand,
    federation_of,
    holdings,
    same,
    trained,
    twin,
    vector,
    watched,
)

from fedunlearn.contract import small_task
from fedunlearn.evaluation.follow import follow, unlearn
from fedunlearn.federation import Predicate, Work
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.retrain import Retrain
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.requests import ForgetClass, ForgetClient
from fedunlearn.rounds import fedavg
from fedunlearn.task import Method, Task

METHODS: list[Method] = [Retrain(), FineTune(), NoT()]


def start(method: Method, task: Task) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    theta = task.weights.vector().numpy()
    if isinstance(method, NoT):
        return np.concatenate([-theta[:12], theta[12:]])  # the weight alone, not the bias
    return task.fresh("Retrain").vector().numpy() if isinstance(method, Retrain) else theta


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_three_rounds_equal_numpys_fedavg_of_what_stays(method: Method, request_: Predicate) -> None:
    world = twin(request_)
    theta = start(method, world.task)
    for step in follow(method, world.task, 3):
        if step.phase == "recover":
            theta = world.fedavg(theta)
        same(step.round.after, theta)


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_is_to_be_forgotten_is_never_read_and_all_that_stays_is_in_every_round(method: Method, kind: str) -> None:
    world = twin(REQUESTS[kind])
    task, visits = watched(world.task)
    list(follow(method, task, 3))
    expected = [(n, k, {tuple(x) for x in h.x.tolist()}) for n in range(3) for k, h in world.retained.items()]
    assert [(visit.turn.number, visit.client, visit.x) for visit in visits] == expected


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_each_client_that_stays_contributes_its_share_of_samples_in_every_round(method: Method) -> None:
    """Clients of 1, 3 and 4 samples answer with unit vectors, so the mean is the shares themselves: they sum to 1."""
    samples = {"a": [((1, 2, 3), 0)], "b": [((1, 0, 1), 1)] * 3, "c": [((0, 1, 1), 0)] * 4, "z": [((9, 9, 9), 0)] * 9}
    task = answering(
        by_hand(ForgetClient("z"), samples, weights=(5, 5, 5)),
        {"a": (1, 0, 0), "b": (0, 1, 0), "c": (0, 0, 1), "z": (9, 9, 9)},
    )
    for done in islice(method.recover(task, task.weights), 3):
        assert vector(done.after) == [0.125, 0.375, 0.5]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_t_rounds_send_2_t_r_models_and_the_unlearning_step_none(method: Method) -> None:
    rounds, samples, epochs = 4, 7 + 4 + 6, 3
    task, ledger = account(twin(REQUESTS["client"]).task)
    list(follow(method, task, rounds))
    assert set(ledger.phases) == {"recover"}
    spent = ledger.phases["recover"]
    assert spent.down + spent.up == rounds * 2 * 3 * 15 * 8
    assert spent.work == Work(rounds * epochs * samples, rounds * epochs * samples)


# --- Retrain --------------------------------------------------------------------------------------------------------


def test_retrain_starts_by_a_seed_that_is_the_tasks_and_again_the_same() -> None:
    task = twin(REQUESTS["client"]).task
    one, again = (next(Retrain().unlearn(task)).after for _ in range(2))
    other = next(Retrain().unlearn(replace(task, seed=3))).after
    assert one.same_bits(again)
    assert not torch.equal(one.vector(), other.vector())


def test_retrain_depends_on_nothing_of_the_model_or_of_what_is_forgotten() -> None:
    held = holdings()
    plain = twin(REQUESTS["client"], held).task
    other = twin(REQUESTS["client"], {**held, "a": replace(held["a"], x=held["a"].x * 7 - 1)}).task
    other = replace(other, weights=other.weights * 3.0)
    assert unlearn(Retrain(), plain, 2).same_bits(unlearn(Retrain(), other, 2))


# --- FT -------------------------------------------------------------------------------------------------------------


def test_fine_tuning_is_fedavg_resumed_in_a_federation_that_never_had_the_target() -> None:
    task, held = twin(REQUESTS["client"]).task, holdings()
    without = federation_of({client: own for client, own in held.items() if client != "a"})
    expected = fedavg(without, task.weights, TRAINING, task.seed, "recover")
    steps = list(follow(FineTune(), task, 3))
    assert len(steps) == 3
    assert all(step.round.after.same_bits(done.after) for step, done in zip(steps, expected, strict=False))


@pytest.mark.parametrize("request_", [ForgetClient("1"), ForgetClass(2)], ids=["client", "class"])
def test_fine_tuning_at_learning_rate_zero_changes_no_bit_of_a_parameter(request_: Predicate) -> None:
    """Running statistics are not the learning rate's business; with a network without any, no bit at all changes."""
    task = replace(small_task(request_), training=LocalTraining(SGD(0.0, 0.9, 0.01), batch_size=8))
    after = unlearn(FineTune(), task, 2)
    assert replace(after, buffers={}).same_bits(replace(task.weights, buffers={}))
    plain = replace(twin(REQUESTS["class"]).task, training=LocalTraining(SGD(0.0)))
    assert unlearn(FineTune(), plain, 2).same_bits(plain.weights)


# --- NoT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [NoT(), NoT(batchnorm="leave"), NoT(layers="head", include_bias=True)], ids=str)
def test_not_twice_on_the_same_layer_is_nothing_bit_for_bit(method: NoT) -> None:
    task, method = small_task(ForgetClient("1")), replace(method, again="same")
    once = next(method.unlearn(task)).after
    assert not once.same_bits(task.weights)
    assert next(method.unlearn(replace(task, weights=once))).after.same_bits(task.weights)


def test_not_touches_the_first_layers_weight_alone_and_keeps_every_norm() -> None:
    task = small_task(ForgetClient("1"))
    after = next(NoT(batchnorm="leave").unlearn(task)).after
    for name, tensor in task.weights.parameters.items():
        changed = after.parameters[name]
        assert torch.equal(changed, -tensor if name == "conv.weight" else tensor)
        assert float(changed.norm()) == float(tensor.norm())
    assert replace(after, parameters={}).same_bits(replace(task.weights, parameters={}))
    with_mean = next(NoT().unlearn(task)).after
    for name, buffer in task.weights.buffers.items():
        assert torch.equal(with_mean.buffers[name], -buffer if name == "norm.running_mean" else buffer)


def test_not_leaves_the_bias_of_the_layer_unless_asked() -> None:
    task = twin(REQUESTS["client"]).task
    weight, bias = task.weights.parameters["weight"], task.weights.parameters["bias"]
    plain, both = (next(NoT(include_bias=asked).unlearn(task)).after.parameters for asked in (False, True))
    assert torch.equal(plain["weight"], -weight)
    assert torch.equal(plain["bias"], bias)
    assert torch.equal(both["bias"], -bias)


def test_recovery_trains_at_the_trainings_rate_whatever_the_method() -> None:
    world = twin(REQUESTS["client"])
    done = next(NoT().recover(world.task, world.task.weights))
    same(done.after, world.fedavg(world.theta))
    assert world.task.training.optimizer.lr == LR  # type: ignore[attr-defined]
    assert not np.allclose(done.after.vector().numpy(), trained(world.theta, world.retained["b"]))
