"""FedOSD: by hand, against NumPy, and what the paper promises."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from math import log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from joint import (
    DECAY,
    LR,
    MOMENTUM,
    REQUESTS,
    STEPS,
    TRAINING,
    Twin,
    account,
    answering,
    by_hand,
    rounds,
    same,
    trained,
    twin,
    vector,
    watched,
)
from numpy_twin_joint import Array, Gradient, Held, back, one_hot, scores, sgd, softmax
from torch import Tensor

from fedunlearn.contract import small_task
from fedunlearn.evaluation.follow import follow
from fedunlearn.federation import Predicate, Work
from fedunlearn.methods import fedosd
from fedunlearn.methods.fedosd import FedOSD, orthogonal, unlearning_cross_entropy, without_component
from fedunlearn.programs import SGD, Exponential
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient
from fedunlearn.rounds import Round, fedavg
from fedunlearn.task import Task
from fedunlearn.weights import Weights

LEAVES = {"a": [((1, 1, 1), 0)], "b": [((0, 2, 0), 1)] * 3, "c": [((0, 0, 1), 0)]}


def test_a_round_of_unlearning_by_hand() -> None:
    """p = (1/2, 1/2), and the loss's gradient at a's score is p / (2 - p) (p - 1) = -1/6 with its sign turned round.

    So a's update is -0.1 / 6 (1, 1, 1). Those of b and c lie along the second and the third axis: only the first is
    left, at the length of all three.
    """
    (after,) = rounds(FedOSD(rounds=1), by_hand(ForgetClient("a"), LEAVES))
    assert vector(after) == [round(-0.1 / 6 * sqrt(3), 6), 0, 0]


def test_a_round_of_recovery_by_hand() -> None:
    """theta* = (1, 0, 0), and theta = 0. b's update (-0.15, -0.2, 0) loses its first entry and keeps its length 0.25.

    c's is (0, 0, 0.05). The mean is over clients: that b has three samples does not matter.
    """
    samples = {**LEAVES, "b": [((3, 4, 0), 1)] * 3}
    task = by_hand(ForgetClient("a"), samples, weights=(1, 0, 0))
    done = next(FedOSD().recover(task, task.weights * 0.0))
    assert (done.number, vector(done.after)) == (0, [0, -0.125, 0.025])


def unlearning(held: Held) -> Gradient:
    """Of -log(1 - p_y / 2): p_y / (2 - p_y) (one-hot - p) at the scores."""

    def gradient(theta: Array) -> Array:
        p, truth = softmax(scores(theta, held.x)), one_hot(held.y, 3)
        share = (p * truth).sum(1, keepdims=True)
        return back(held.x, share / (2 - share) * (truth - p))

    return gradient


def numpy_fedosd(world: Twin, method: FedOSD, recovery: int) -> list[Array]:
    theta, found, lr = world.theta, [], method.lr or LR
    for _ in range(method.rounds):
        g_u = np.mean(
            [theta - sgd(theta, unlearning(h), lr, STEPS, MOMENTUM, DECAY) for h in world.forgotten.values()], axis=0
        )
        rows = np.stack([theta - trained(theta, h, lr) for h in world.retained.values()])
        basis, _ = np.linalg.qr(rows.T)  # (P, R), another way than the pseudo-inverse
        d = g_u - basis @ (basis.T @ g_u)
        theta = theta - d * np.linalg.norm(g_u) / np.linalg.norm(d)
        found.append(theta)
    for _ in range(recovery):
        away = theta - world.theta
        moves = []
        for held in world.retained.values():
            g = theta - trained(theta, held, method.recovery_lr or LR)
            flat = g - (g @ away) / (away @ away) * away
            moves.append(flat * np.linalg.norm(g) / np.linalg.norm(flat))
        theta = theta - np.mean(moves, axis=0)
        found.append(theta)
    return found


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("method", [FedOSD(rounds=2), FedOSD(rounds=2, lr=0.03, recovery_lr=0.2)], ids=["", "rates"])
def test_two_rounds_of_each_phase_equal_numpys(method: FedOSD, request_: Predicate) -> None:
    world = twin(request_)
    steps = list(follow(method, world.task, 2))
    assert [(s.phase, s.round.number) for s in steps] == [(p, n) for p in ("unlearn", "recover") for n in (0, 1)]
    for step, expected in zip(steps, numpy_fedosd(world, method, 2), strict=True):
        same(step.round.after, expected)


# --- the direction --------------------------------------------------------------------------------------------------


@st.composite
def conflicts(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A direction (P,) and R < P rows, of very different lengths, float32 as clients send them."""
    count = draw(st.integers(1, 4))
    size = draw(st.integers(count + 1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    lengths = draw(st.lists(st.integers(-12, 3), min_size=count, max_size=count))
    rows = rng.normal(size=(count, size)) * 10.0 ** np.array(lengths)[:, None]
    direction = rng.normal(size=size) * 10.0 ** draw(st.integers(-6, 3))
    return torch.from_numpy(direction).float(), torch.from_numpy(rows).float()


def cosines(direction: Tensor, rows: Tensor) -> Tensor:
    return (rows.double() @ direction.double()) / rows.double().norm(dim=1) / direction.double().norm()


@given(conflicts())
def test_no_client_that_stays_feels_the_step(drawn: tuple[Tensor, Tensor]) -> None:
    """|cos(d, g_k)| < 1e-5 for all k, however small one client's update is beside another's."""
    direction, rows = drawn
    found = orthogonal(direction, rows)
    assert found is not None
    assert cosines(found, rows).abs().max() < 1e-5


@given(conflicts())
def test_the_step_does_not_go_against_those_who_leave_and_has_their_length(drawn: tuple[Tensor, Tensor]) -> None:
    direction, rows = drawn
    found = orthogonal(direction, rows)
    assert found is not None
    assert found @ direction.double() >= 0
    assert float(found.norm()) == pytest.approx(float(direction.double().norm()), rel=1e-12)


@given(conflicts())
def test_of_all_such_steps_it_is_the_closest(drawn: tuple[Tensor, Tensor]) -> None:
    """It is the direction itself without its part in the rows' span: what it differs by lies in that span."""
    direction, rows = drawn
    found = orthogonal(direction, rows)
    assert found is not None
    basis = torch.linalg.qr((rows.double() / rows.double().norm(dim=1, keepdim=True)).T).Q
    rest = direction.double() - basis @ (basis.T @ direction.double())
    assert torch.allclose(found / found.norm(), rest / rest.norm(), atol=1e-6)


def test_rows_that_are_all_but_parallel_need_a_gram_matrix_in_float64() -> None:
    """They differ by 1e-4 of their length: in float32 their Gram matrix would be singular."""
    rows = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1.0001]])
    found = orthogonal(torch.tensor([1.0, 2, 3, 4]), rows)
    assert found is not None
    assert found.dtype == torch.float64
    assert cosines(found, rows).abs().max() < 1e-8
    assert abs(float(found[3])) < 1e-6  # their difference is the last axis


def test_rows_may_depend_on_one_another_and_be_nothing() -> None:
    rows = torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 0, 0]])
    found = orthogonal(torch.tensor([3.0, 4, 0]), rows)
    assert found is not None
    assert found.tolist() == pytest.approx([0, 5, 0], abs=1e-12)


def test_without_anybody_who_stays_the_direction_is_what_it_was() -> None:
    found = orthogonal(torch.tensor([3.0, 4, 0]), torch.zeros(0, 3))
    assert found is not None
    assert found.tolist() == [3, 4, 0]


@given(conflicts())
def test_nothing_is_left_of_a_direction_that_those_who_stay_span(drawn: tuple[Tensor, Tensor]) -> None:
    _, rows = drawn
    even = rows.double() / rows.double().norm(dim=1, keepdim=True)
    assert orthogonal(even.sum(0), even) is None
    assert orthogonal(torch.zeros(rows.shape[1]), rows) is None


def test_a_slice_at_a_time_is_as_good_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    direction, rows = torch.randn(7, generator=rng), torch.randn(3, 7, generator=rng)
    whole = orthogonal(direction, rows)
    monkeypatch.setattr(fedosd, "_COLUMNS", 2)
    sliced = orthogonal(direction, rows)
    assert whole is not None
    assert sliced is not None
    assert torch.allclose(whole, sliced, atol=1e-13)


def test_the_rounds_displacement_is_felt_by_nobody_and_as_long_as_the_update_of_those_who_leave() -> None:
    task, visits = watched(twin(REQUESTS["client"]).task)
    before = task.weights
    for done in FedOSD(rounds=3).unlearn(task):
        step = (done.after - before).vector()
        replies = {v.client: v.reply.weights for v in visits if v.turn.number == done.number}
        updates = {client: (weights - before).vector() for client, weights in replies.items() if weights is not None}
        leaving = updates.pop("a")
        assert cosines(step, torch.stack(list(updates.values()))).abs().max() < 1e-10
        assert step @ leaving > 0
        assert float(step.norm()) == pytest.approx(float(leaving.norm()), rel=1e-9)
        before = done.after


def test_more_clients_than_parameters_stop_it() -> None:
    """b, c and d span R^3: no round is done, nobody is asked a second time, recovery starts from the model itself."""
    task, visits = watched(by_hand(ForgetClient("a"), {**LEAVES, "d": [((3, 1, 1), 0)]}))
    assert rounds(FedOSD(rounds=5), task) == []
    assert [(visit.turn.number, visit.client) for visit in visits] == [(0, client) for client in "abcd"]
    steps = list(follow(FedOSD(rounds=5), task, 1))
    assert [s.phase for s in steps] == ["recover"]
    assert visits[-1].sent.same_bits(task.weights)


def test_a_total_conflict_stops_it_in_the_round_where_it_arises() -> None:
    """b's x lies along a's, so both gradients do: all that is left of the direction is rounding."""
    samples = {"a": [((0.3, 0.7, -0.2), 0)], "b": [((0.21, 0.49, -0.14), 1)]}
    for weights in ((0, 0, 0), (0.3, -0.2, 0.1), (1.3, 2.2, -0.7)):
        assert rounds(FedOSD(rounds=5), by_hand(ForgetClient("a"), samples, weights)) == []


def test_what_is_no_longer_than_rounding_is_nothing() -> None:
    direction, rows = torch.tensor([1.0, 1e-3]), torch.tensor([[1.0, 0.0]])
    assert orthogonal(direction, rows, noise=1.1e-3) is None
    found = orthogonal(direction, rows, noise=0.9e-3)
    assert found is not None
    assert found.tolist() == pytest.approx([0, sqrt(1 + 1e-6)], abs=1e-9)


# --- the loss -------------------------------------------------------------------------------------------------------


@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    n, classes = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    z = draw(st.lists(st.floats(-200, 200, width=32), min_size=n * classes, max_size=n * classes))
    y = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    return torch.tensor(z, dtype=dtype).view(n, classes).requires_grad_(), torch.tensor(y)


@given(scored())
def test_the_unlearning_loss_lies_between_nothing_and_log_two_and_its_gradient_is_finite(
    drawn: tuple[Tensor, Tensor],
) -> None:
    z, y = drawn
    cost = unlearning_cross_entropy(z, y)
    assert 0 <= cost.item() <= log(2) + 1e-6
    cost.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    p = z.detach().double().softmax(1).gather(1, y[:, None])
    assert z.grad.norm() <= sqrt(2) * p.norm() / len(y) + 1e-6  # p / (2 - p) |one-hot - p|


def test_the_unlearning_loss_is_nothing_without_the_true_class_and_log_two_with_it_alone() -> None:
    sure = torch.tensor([[200.0, 0.0]])
    assert unlearning_cross_entropy(sure, torch.tensor([1])).item() == 0
    assert unlearning_cross_entropy(sure, torch.tensor([0])).item() == pytest.approx(log(2), rel=1e-7)
    quarter = torch.tensor([[0.0, log(3)]], dtype=torch.float64)
    assert unlearning_cross_entropy(quarter, torch.tensor([0])).item() == pytest.approx(-log(1 - 1 / 8), rel=1e-12)


def test_its_gradient_vanishes_with_the_share_of_the_true_class_and_so_does_not_run_away() -> None:
    for distance in (5.0, 10.0, 20.0, 40.0):
        z = torch.tensor([[0.0, distance]], dtype=torch.float64, requires_grad=True)
        unlearning_cross_entropy(z, torch.tensor([0])).backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        p = 1 / (1 + np.exp(distance))
        expected = [p / (2 - p) * (1 - p), -p / (2 - p) * (1 - p)]
        assert z.grad[0].tolist() == pytest.approx(expected, rel=1e-9)
        assert z.grad.norm() < np.exp(-distance)


# --- recovery -------------------------------------------------------------------------------------------------------


@st.composite
def departures(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    size = draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    update, away = rng.normal(size=(2, size)) * 10.0 ** np.array(draw(st.tuples(*[st.integers(-12, 6)] * 2)))[:, None]
    return torch.from_numpy(update).float(), torch.from_numpy(away).float()


@given(departures())
def test_an_update_in_recovery_is_orthogonal_to_what_was_unlearned_and_keeps_its_length(
    drawn: tuple[Tensor, Tensor],
) -> None:
    update, away = drawn
    assume(cosines(update, away[None]).abs() < 1 - 1e-9)
    found = without_component(update, away)
    assert cosines(found, away[None]).abs() < 1e-7
    assert float(found.norm()) == pytest.approx(float(update.double().norm()), rel=1e-12)
    assert found @ update.double() > 0


def test_forward_motion_is_taken_out_too() -> None:
    for sign in (1.0, -1.0):
        found = without_component(torch.tensor([sign * 3.0, 4.0]), torch.tensor([2.0, 0.0]))
        assert found.tolist() == pytest.approx([0, 5], abs=1e-12)


def test_where_nothing_was_unlearned_an_update_is_what_it_was() -> None:
    assert without_component(torch.tensor([3.0, 4.0]), torch.zeros(2)).tolist() == [3, 4]


def test_an_update_that_goes_all_the_way_back_is_left_out() -> None:
    """Nothing of it is orthogonal, so no length could be kept without a step along what was unlearned."""
    assert without_component(torch.tensor([-3.0, -6.0]), torch.tensor([1.0, 2.0])).tolist() == [0, 0]


def test_the_rounds_of_recovery_do_not_go_along_what_was_unlearned() -> None:
    task = twin(REQUESTS["client"]).task
    steps = list(follow(FedOSD(rounds=2), task, 3))
    befores = [step.round.after for step in steps[1:-1]]
    for before, step in zip(befores, steps[2:], strict=True):
        away, moved = (before - task.weights).vector(), (step.round.after - before).vector()
        assert moved.norm() > 1e-3
        assert abs(moved @ away) < 1e-10 * moved.norm() * away.norm()


def test_without_unlearning_the_first_round_of_recovery_is_the_plain_mean_over_clients() -> None:
    world = twin(REQUESTS["client"])
    done = next(FedOSD(rounds=0).recover(world.task, world.task.weights))
    same(done.after, np.mean([trained(world.theta, held) for held in world.retained.values()], axis=0))


def test_plain_recovery_is_that_of_all_methods_and_has_another_name() -> None:
    task = twin(REQUESTS["client"]).task
    method = FedOSD(rounds=1, recovery="plain", recovery_lr=9.0)
    steps = list(follow(method, task, 3))
    expected = fedavg(task.retained, steps[0].round.after, task.training, task.seed, "recover")
    for step, done in zip(steps[1:], expected, strict=False):
        assert step.round.after.same_bits(done.after)
    assert (method.name, FedOSD().name) == ("FedOSD, plain recovery", "FedOSD")
    projected = list(follow(FedOSD(rounds=1), task, 1))
    assert projected[0].round.after.same_bits(steps[0].round.after)
    assert not projected[1].round.after.same_bits(steps[1].round.after)


# --- means, buffers, who is asked, costs, resuming ------------------------------------------------------------------


def answered(*, leaving: str) -> Task:
    """theta* = 0; a, b, c with 1, 3 and 4 samples answer with the axes."""
    samples = {"a": LEAVES["a"], "b": LEAVES["b"], "c": LEAVES["c"] * 4}
    task = by_hand(AnyOf(tuple(map(ForgetClient, leaving))), samples)
    return answering(task, {"a": (1, 0, 0), "b": (0, 1, 0), "c": (0, 0, 1)})


def test_means_are_over_clients_not_over_samples() -> None:
    (after,) = rounds(FedOSD(rounds=1), answered(leaving="ab"))
    assert vector(after) == [0.5, 0.5, 0]
    task = answered(leaving="a")
    assert vector(next(FedOSD().recover(task, task.weights)).after) == [0, 0.5, 0.5]


@pytest.mark.parametrize("request_", [ForgetClient("1"), ForgetClass(2)], ids=["client", "class"])
def test_buffers_are_the_models_while_unlearning_and_the_mean_of_those_who_stay_in_recovery(
    request_: Predicate,
) -> None:
    task, visits = watched(small_task(request_))
    steps = list(follow(FedOSD(rounds=2), task, 1))
    for step in steps[:2]:
        for name, buffer in task.weights.buffers.items():
            assert torch.equal(step.round.after.buffers[name], buffer)
    replies = [v.reply.weights for v in visits if v.turn.phase == "recover"]
    for name in ("norm.running_mean", "norm.running_var"):
        mean = torch.stack([weights.buffers[name] for weights in replies if weights is not None]).mean(0)
        assert torch.allclose(steps[2].round.after.buffers[name], mean, atol=1e-7)
        assert not torch.allclose(mean, task.weights.buffers[name], atol=1e-4)


@pytest.mark.parametrize("kind", REQUESTS)
def test_those_who_leave_see_what_goes_and_those_who_stay_what_stays_each_once_a_round(kind: str) -> None:
    world = twin(REQUESTS[kind])
    task, visits = watched(world.task)
    steps = list(follow(FedOSD(rounds=2), task, 1))
    goes = [(k, {tuple(x) for x in held.x.tolist()}) for k, held in world.forgotten.items()]
    stays = [(k, {tuple(x) for x in held.x.tolist()}) for k, held in world.retained.items()]
    assert [(v.client, v.x) for v in visits] == (goes + stays) * 2 + stays
    sent = [task.weights, *(step.round.after for step in steps[:2])]
    for visit in visits:
        at = visit.turn.number if visit.turn.phase == "unlearn" else 2
        assert visit.sent.same_bits(sent[at])


def test_a_round_of_unlearning_sends_two_models_to_and_from_everybody() -> None:
    task, ledger = account(twin(REQUESTS["client"]).task)
    rounds(FedOSD(rounds=3), task)
    spent, samples = ledger.phases["unlearn"], 5 + 7 + 4 + 6
    assert spent.down + spent.up == 3 * 2 * 4 * 15 * 8
    assert spent.work == Work(3 * STEPS * samples, 3 * STEPS * samples)


def test_learning_rates_of_its_own_hold_whatever_the_schedule() -> None:
    task = twin(REQUESTS["client"]).task
    training = replace(TRAINING, optimizer=SGD(9.0, MOMENTUM, DECAY), schedule=Exponential(0.1))
    method = FedOSD(rounds=2, lr=LR, recovery_lr=LR)
    steps, again = (list(follow(method, t, 2)) for t in (task, replace(task, training=training)))
    assert all(a.round.after.same_bits(b.round.after) for a, b in zip(steps, again, strict=True))


@pytest.mark.parametrize("recovery", ["projected", "plain"])
def test_resumed_after_any_round_of_either_phase_the_same_bits_follow(recovery: str) -> None:
    task, method = twin(REQUESTS["client"]).task, FedOSD(rounds=3, recovery=recovery)  # type: ignore[arg-type]
    steps = list(follow(method, task, 2))
    for at, step in enumerate(steps):
        rest = list(follow(replace(method), task, 2, step))
        assert [(s.phase, s.round.number) for s in rest] == [(s.phase, s.round.number) for s in steps[at + 1 :]]
        assert all(a.round.after.same_bits(b.round.after) for a, b in zip(rest, steps[at + 1 :], strict=True))


def test_recovery_knows_from_the_task_where_unlearning_began() -> None:
    """Begun anew in its middle, recovery takes out what points along theta - theta*, not along its own start."""
    task = twin(REQUESTS["client"]).task
    start = Weights({name: tensor + 0.1 for name, tensor in task.weights.parameters.items()})
    whole = list(islice(FedOSD().recover(task, start), 3))
    rest = list(islice(FedOSD().recover(task, whole[0].after, start=1), 2))
    assert [done.number for done in rest] == [1, 2]
    assert all(a.after.same_bits(b.after) for a, b in zip(rest, whole[1:], strict=True))
    assert list(FedOSD(rounds=1).unlearn(task, Round(0, start))) == []
