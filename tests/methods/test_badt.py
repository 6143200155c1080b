"""BadT: by hand, against NumPy, and what the paper promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import log
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from joint import (
    DECAY,
    LR,
    MOMENTUM,
    REQUESTS,
    TRAINING,
    Twin,
    Visit,
    account,
    by_hand,
    holdings,
    rounds,
    same,
    twin,
    watched,
)
from numpy_twin_joint import Array, Held, back, scores, sgd, softmax, weighted
from torch import nn

from fedunlearn.contract import SmallNet, small_task
from fedunlearn.federation import Batch, ClientContext, Predicate, Reply, Work
from fedunlearn.methods.badt import BadT, TwoTeachers, WithSomeRetained, part_of, taught
from fedunlearn.methods.distillation import divergence
from fedunlearn.programs import SGD, Exponential, LocalTraining
from fedunlearn.randomness import stable_seed
from fedunlearn.requests import ForgetClass, ForgetClient, ForgetInstances
from fedunlearn.task import Task
from fedunlearn.weights import Weights

# --- by hand --------------------------------------------------------------------------------------------------------

TEN_STAY: Any = {"a": [((1, 0, 0), 0)] + [((0, 1, 0), 0)] * 10}
ONE_GOES = ForgetInstances({"a": (0,)})


@pytest.mark.parametrize(("reduction", "step"), [("batchmean", 1 / 16), ("mean", 1 / 32)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_step_by_hand(reduction: Any, step: float, temperature: float) -> None:
    """A fresh model is 0 here: at T = 1 the bad teacher says (1/2, 1/2) where the student says (3/4, 1/4).

    So the gradient at the scores' difference is 3/4 - 1/2, for one sample of the four that are read: three of the ten
    that stay, on whom the good teacher and the student are of one mind. At T = 2 the student's weight is doubled, and
    a half of the gradient comes through. torch's own mean divides by the two classes as well.
    """
    task = by_hand(ONE_GOES, TEN_STAY, weights=(log(3) * temperature, 0, 0), lr=temperature)
    (after,) = rounds(BadT(temperature=temperature, reduction=reduction), task)
    assert (after - task.weights).vector().tolist() == pytest.approx([-step, 0, 0], abs=1e-6)


def test_several_clients_are_averaged_by_the_samples_they_read() -> None:
    """ "b" keeps ten and reads three, so a quarter is left of the step of "a", which is 1/4 long."""
    apart: Any = {"a": TEN_STAY["a"][:1], "b": TEN_STAY["a"][1:]}
    task = by_hand(ForgetClient("a"), apart, weights=(log(3), 0, 0), lr=1.0)
    assert (rounds(BadT(), task)[0] - task.weights).vector().tolist() == pytest.approx([-1 / 16, 0, 0], abs=1e-6)


# --- the twin -------------------------------------------------------------------------------------------------------


def numpy_badt(world: Twin, visits: Sequence[Visit], method: BadT, rates: Sequence[float]) -> list[Array]:
    """With the samples that each client was seen to read."""
    model, found, t = world.theta, [], method.temperature
    fresh = world.task.architecture.fresh(stable_seed(world.task.seed, "incompetent")).vector().numpy()
    for number, lr in enumerate(rates):
        replies = []
        for visit in visits:
            if visit.turn.number == number and visit.read:  # or there is nothing that it should
                (batch,) = visit.read
                x, flag = batch.x.numpy(), batch.forget.numpy()[:, None].astype(float)
                q = flag * softmax(scores(fresh, x) / t) + (1 - flag) * softmax(scores(world.theta, x) / t)
                np.testing.assert_allclose(q.sum(1), 1)

                def gradient(theta: Array, x: Array = x, q: Array = q) -> Array:
                    return back(x, (softmax(scores(theta, x) / t) - q) / t)

                replies.append((sgd(model, gradient, lr, 1, MOMENTUM, DECAY), len(x)))
        model = weighted(replies)
        found.append(model)
    return found


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("method", [BadT(3), BadT(3, 0.5, 1.0, 3.0), BadT(2, retain_fraction=0.0)], ids=str)
def test_epochs_equal_numpys_with_the_competent_teacher_where_it_was(request_: Predicate, method: BadT) -> None:
    world = twin(request_)
    task, visits = watched(world.task)
    found = rounds(method, task)
    for after, expected in zip(
        found, numpy_badt(world, visits, method, [method.lr or LR] * method.epochs), strict=True
    ):
        same(after, expected)


def test_it_follows_the_trainings_schedule_unless_it_has_a_learning_rate_of_its_own() -> None:
    world = twin(REQUESTS["class"])
    scheduled = replace(world.task, training=replace(TRAINING, schedule=Exponential(0.5)))
    for method, rates in ((BadT(2), [LR, LR / 2]), (BadT(2, lr=LR), [LR, LR])):
        task, visits = watched(scheduled)
        same(rounds(method, task)[-1], numpy_badt(world, visits, method, rates)[-1])


def test_torchs_mean_is_a_learning_rate_smaller_by_the_number_of_classes_to_sgd() -> None:
    plain = replace(twin(REQUESTS["class"]).task, training=replace(TRAINING, optimizer=SGD(0.1, 0.9, 0.0)))
    same(rounds(BadT(2, 0.3, reduction="mean"), plain)[-1], rounds(BadT(2, 0.1), plain)[-1].vector().numpy())


# --- the teachers ---------------------------------------------------------------------------------------------------


@dataclass
class Watching:
    """A loss at work on all of a client's samples, with an eye on its teachers; the student is not trained."""

    loss: TwoTeachers
    teachers: list[nn.Module] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    def __call__(self, context: ClientContext) -> Reply:
        def noted(made: Any) -> Any:
            def make(*args: Any) -> nn.Module:
                self.teachers.append(made(*args))
                return self.teachers[-1]

            return make

        watched = cast(Any, context)
        watched.frozen, before = noted(context.frozen), context.fresh
        watched.fresh = noted(lambda seed: before(seed))
        cost = self.loss(context)
        student = context.model.eval()
        for batch in context.batches(0, 8):
            value = cost(student, batch)
            value.backward()  # type: ignore[no-untyped-call]
            self.costs.append(value.item())
        return Reply()


def competent_of(task: Task) -> Weights:
    return replace(task.fresh("other"), buffers=task.weights.buffers)


def test_both_teachers_are_frozen_in_evaluation_mode_and_bit_equal_afterwards() -> None:
    task = small_task(ForgetClass(2))
    competent = competent_of(task)
    watching = Watching(TwoTeachers(competent, 7, 1.0, "batchmean"))
    list(task.everyone.run(watching, task.weights, task.turn(), ["1"]))
    made: dict[str, nn.Module] = {}
    for teacher in watching.teachers:
        made["competent" if Weights.of(teacher).same_bits(competent) else "incompetent"] = teacher
    assert Weights.of(made["incompetent"]).same_bits(task.architecture.fresh(7))
    assert set(made) == {"competent", "incompetent"}
    for teacher in watching.teachers:
        assert not any(module.training for module in teacher.modules())
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(cost > 0 for cost in watching.costs)


def test_the_loss_is_the_divergence_from_each_samples_own_teacher() -> None:
    task = small_task(ForgetClass(2))
    competent, fresh = SmallNet().eval(), SmallNet().eval()
    task.weights.into(competent)
    task.architecture.fresh(7).into(fresh)
    x = torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    batch = Batch(x, torch.zeros(6, dtype=torch.long), torch.tensor([True, False, False, True, True, False]))
    found = taught(competent, fresh, batch, competent(x))
    flag = batch.forget[:, None].float()
    q = flag * fresh(x).softmax(1) + (1 - flag) * competent(x).softmax(1)
    assert torch.allclose(q.sum(1), torch.ones(6))
    assert torch.allclose(found.softmax(1), q, atol=1e-6)


def test_with_nothing_to_forget_the_loss_is_zero_and_nothing_changes() -> None:
    """Student and teacher are one and the same, in evaluation mode at least."""
    task = small_task(ForgetClient("nobody"))
    watching = Watching(TwoTeachers(None, 7, 1.0, "batchmean"))
    list(task.everyone.run(watching, task.weights, task.turn(), ["1"]))
    assert watching.costs == pytest.approx([0.0] * len(watching.costs), abs=1e-6)
    linear = twin(ForgetClient("nobody")).task
    still = replace(linear, training=replace(TRAINING, optimizer=SGD(1.0, 0.9, 0.0)))
    for after in rounds(BadT(2), still):
        assert (after - linear.weights).norm() < 1e-14


def test_the_incompetent_teacher_is_one_fresh_draw_and_the_competent_one_is_sent_once_it_is_not_the_model() -> None:
    """Seen in the bytes: the model, and from the second epoch on theta* beside it; a seed for the other teacher."""
    task, ledger = account(twin(REQUESTS["client"]).task)
    spent = [0]
    for _ in BadT(3).unlearn(task):
        spent.append(ledger.phases["unlearn"].both_ways)
    assert [b - a for a, b in pairwise(spent)] == [4 * 2 * 120, 4 * 3 * 120, 4 * 3 * 120]


# --- which samples --------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=60), st.floats(0, 1), st.integers(0, 2**40))
def test_all_that_goes_and_exactly_a_fraction_of_what_stays(flags: list[bool], fraction: float, seed: int) -> None:
    forget = torch.tensor(flags, dtype=torch.bool)
    chosen = WithSomeRetained(fraction, seed)(forget)
    assert chosen.shape == forget.shape
    assert chosen[forget].all()
    assert int(chosen[~forget].sum()) == part_of(flags.count(False), fraction)
    assert torch.equal(chosen, WithSomeRetained(fraction, seed)(forget))
    assert torch.equal(forget, torch.tensor(flags, dtype=torch.bool))


def test_which_of_them_is_chance() -> None:
    counts = sum(WithSomeRetained(0.3, seed)(torch.zeros(10, dtype=torch.bool)).int() for seed in range(2000))
    assert isinstance(counts, torch.Tensor)
    assert (counts - 600).abs().max() < 5 * (2000 * 0.3 * 0.7) ** 0.5


def test_a_fraction_is_rounded_down_whatever_floats_say() -> None:
    assert [part_of(n, 0.3) for n in (0, 3, 4, 10, 20)] == [0, 0, 1, 3, 6]
    assert (part_of(100, 0.29), part_of(7, 0.0), part_of(7, 1.0)) == (29, 0, 7)  # 0.29 * 100 is 28.999999999999996


def test_the_part_of_what_stays_is_drawn_anew_in_each_epoch_and_never_from_validation() -> None:
    task, visits = watched(small_task(ForgetClass(2)))
    rounds(BadT(3, retain_fraction=0.5), task)
    of_one = [visit for visit in visits if visit.client == "1"]
    stays = [{tuple(x.flatten().tolist()) for b in v.read for x in b.x[~b.forget]} for v in of_one]
    goes = [{tuple(x.flatten().tolist()) for b in v.read for x in b.x[b.forget]} for v in of_one]
    assert goes[0] == goes[1] == goes[2] != set()
    assert len({frozenset(part) for part in stays}) == 3
    everything, seen = watched(task)
    list(everything.everyone.run(LocalTraining(epochs=1), task.weights, task.turn(), ["1"]))
    assert all(part < seen[0].x - goes[0] for part in stays)
    assert {len(part) for part in stays} == {part_of(len(seen[0].x - goes[0]), 0.5)}


def test_what_goes_and_what_stays_are_shuffled_into_the_same_batches() -> None:
    task, visits = watched(small_task(ForgetClass(2)))
    rounds(BadT(retain_fraction=1.0), task)
    mixed = [bool(batch.forget.any()) and not bool(batch.forget.all()) for visit in visits for batch in visit.read]
    assert all(mixed)
    firsts = [bool(batch.forget[0]) for visit in visits for batch in visit.read]
    assert len(set(firsts)) == 2


def test_labels_are_never_read() -> None:
    held = holdings()
    wrong = {client: Held(own.x, (own.y + 1) % 3) for client, own in held.items()}
    request = ForgetInstances({"a": (0, 1, 2, 3, 4), "b": (1, 2, 5)})  # a client and a part of another
    plain, shuffled = (rounds(BadT(2), twin(request, own).task) for own in (held, wrong))
    assert all(a.same_bits(b) for a, b in zip(plain, shuffled, strict=True))


# --- price, refusals, resuming --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REQUESTS)
def test_the_price_is_three_passes_of_the_student_and_one_of_a_teacher_for_each_sample_that_is_read(kind: str) -> None:
    world = twin(REQUESTS[kind])
    task, ledger = account(world.task)
    rounds(BadT(2), task)
    goes = sum(map(len, world.forgotten.values()))
    read = goes + sum(3 * len(held) // 10 for held in world.retained.values())
    assert ledger.phases["unlearn"].work == Work(2 * 2 * read, 2 * read)  # a backward pass costs two forward ones


def test_the_model_does_as_the_bad_teacher_on_what_goes_and_as_before_on_what_stays() -> None:
    task = small_task(ForgetClass(2))
    (*_, after) = rounds(BadT(20, lr=0.05, retain_fraction=1.0), task)
    networks = {
        "old": task.weights,
        "new": after,
        "bad": task.architecture.fresh(stable_seed(task.seed, "incompetent")),
    }
    made = {name: SmallNet().eval() for name in networks}
    for name, network in made.items():
        networks[name].into(network)
    seen, visits = watched(task)
    list(seen.everyone.run(LocalTraining(epochs=1), task.weights, task.turn()))
    batches = [batch for visit in visits for batch in visit.read]
    x, forget = torch.cat([b.x for b in batches]), torch.cat([b.forget for b in batches])
    answers = {name: network(x).detach() for name, network in made.items()}

    def apart(one: str, other: str, chosen: torch.Tensor) -> float:
        return float(divergence(answers[one][chosen], answers[other][chosen], 1.0))

    assert apart("bad", "new", forget) < 0.5 * apart("bad", "old", forget)
    assert apart("old", "new", ~forget) < 0.5 * apart("bad", "new", ~forget)
