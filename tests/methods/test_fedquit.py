"""FedQUIT: by hand, against NumPy, and what the paper promises."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from joint import (
    DECAY,
    LR,
    MOMENTUM,
    REQUESTS,
    STEPS,
    Twin,
    account,
    answering,
    by_hand,
    rounds,
    same,
    twin,
    vector,
    watched,
)
from numpy_twin_joint import Array, cross_entropy, one_hot, scores, sgd, softmax, weighted
from torch import Tensor, nn

from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.contract import small_task
from fedunlearn.federation import ClientContext, Predicate, Reply, Work
from fedunlearn.methods.fedquit import FedQUIT, VirtualTeacher, without
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient
from fedunlearn.rounds import Round
from fedunlearn.task import Task
from fedunlearn.weights import Weights


def three_scores() -> nn.Module:
    return nn.Linear(1, 3, bias=False)


@pytest.mark.parametrize(
    ("label", "step"),
    [
        (0, (-0.05, 0.025, 0.025)),  # p = (1/2, 1/4, 1/4) -> (0, 1/2, 1/2); minus 0.1 times their difference
        (1, (0.0125, -0.025, 0.0125)),  # -> (1/2 + 1/8, 0, 1/4 + 1/8)
    ],
)
def test_a_round_by_hand(label: int, step: tuple[float, float, float]) -> None:
    leaves = Client.of("a", (torch.tensor([[1.0]]), torch.tensor([label])), validation=0)
    stays = Client.of("b", (torch.tensor([[5.0]]), torch.tensor([2])), validation=0)
    federation = InProcess(three_scores, [leaves, stays], workers=1, device="cpu")
    weights = Weights({"weight": torch.tensor([[log(2)], [0.0], [0.0]])})
    training = LocalTraining(SGD(0.1, 0.0, 0.0))
    task = Task.of(federation, weights, ForgetClient("a"), training, federation.architecture)
    (after,) = rounds(FedQUIT(), task)
    assert (after - weights).vector().tolist() == pytest.approx(step, abs=1e-7)


def numpy_fedquit(world: Twin, lr: float) -> Array:
    replies = []
    for held in world.forgotten.values():
        p = softmax(scores(world.theta, held.x))  # of the model that was sent, whatever the student has become
        truth = one_hot(held.y, 3).astype(bool)
        target = p + p[truth][:, None] / 2
        target[truth] = 0
        replies.append((sgd(world.theta, cross_entropy(held.x, target), lr, STEPS, MOMENTUM, DECAY), len(held)))
    return weighted(replies)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("lr", [None, 0.5])
def test_three_steps_equal_numpys_with_the_teacher_where_it_was(request_: Predicate, lr: float | None) -> None:
    world = twin(request_)
    (after,) = rounds(FedQUIT(lr), world.task)
    same(after, numpy_fedquit(world, lr or LR))


# --- the virtual teacher --------------------------------------------------------------------------------------------


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rows of probabilities, with a true class each."""
    n, classes = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    z = draw(st.lists(st.integers(-40, 40), min_size=n * classes, max_size=n * classes))
    y = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    return torch.tensor(z, dtype=dtype).view(n, classes).softmax(1), torch.tensor(y)


@given(answers())
def test_virtual_rows_sum_to_one(drawn: tuple[Tensor, Tensor]) -> None:
    virtual = without(*drawn)
    assert torch.allclose(virtual.sum(1), torch.ones(len(virtual), dtype=virtual.dtype), atol=1e-6)
    assert (virtual >= 0).all()


@given(answers())
def test_the_true_class_has_exactly_nothing(drawn: tuple[Tensor, Tensor]) -> None:
    virtual = without(*drawn)
    assert (virtual.gather(1, drawn[1][:, None]) == 0).all()


@given(answers())
def test_the_order_of_the_other_classes_is_kept_and_each_gains_the_same(drawn: tuple[Tensor, Tensor]) -> None:
    probabilities, labels = drawn
    virtual, classes = without(probabilities, labels), probabilities.shape[1]
    for p, v, y in zip(probabilities, virtual, labels, strict=True):
        others = torch.arange(classes) != y
        by_p = p[others].argsort()
        assert (v[others][by_p].diff() >= 0).all()
        gained = v[others] - p[others]
        assert torch.allclose(gained, (p[y] / (classes - 1)).expand(classes - 1), atol=1e-6)


@dataclass
class Watching:
    """Ordinary training with the virtual teacher, with an eye on the teacher."""

    training: LocalTraining
    teachers: list[nn.Module] = field(default_factory=list)

    def __call__(self, context: ClientContext) -> Reply:
        plain = context.frozen

        def frozen(weights: Weights | None = None) -> nn.Module:
            self.teachers.append(plain(weights))
            return self.teachers[-1]

        context.frozen = frozen  # type: ignore[method-assign]
        return replace(self.training, loss=VirtualTeacher())(context)


def test_the_teacher_is_the_model_that_was_sent_in_eval_mode_and_stays_unchanged() -> None:
    task = small_task(ForgetClient("1"))
    watching = Watching(task.training)
    ((_, reply),) = task.forgotten.run(watching, task.weights, task.turn())
    (teacher,) = watching.teachers
    assert Weights.of(teacher).same_bits(task.weights)
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert reply.weights is not None
    assert not reply.weights.same_bits(task.weights)
    assert (reply.weights - rounds(FedQUIT(), task)[0]).norm() == 0


# --- the round ------------------------------------------------------------------------------------------------------


def test_the_result_replaces_the_model_by_the_mean_over_samples_of_those_who_leave() -> None:
    samples = {"a": [((1, 0, 0), 0)], "b": [((0, 1, 0), 0)] * 3, "c": [((0, 0, 1), 0)] * 4}
    task = by_hand(AnyOf((ForgetClient("a"), ForgetClient("b"))), samples, weights=(7, 7, 7))
    (after,) = rounds(FedQUIT(), answering(task, {"a": (1, 0, 0), "b": (0, 1, 0), "c": (0, 0, 1)}))
    assert vector(after) == [0.25, 0.75, 0]


@pytest.mark.parametrize("kind", REQUESTS)
def test_only_those_who_leave_train_once_and_on_what_goes_alone(kind: str) -> None:
    world = twin(REQUESTS[kind])
    task, visits = watched(world.task)
    rounds(FedQUIT(), task)
    expected = [(k, {tuple(x) for x in held.x.tolist()}) for k, held in world.forgotten.items()]
    assert [(visit.client, visit.x) for visit in visits] == expected


@pytest.mark.parametrize("request_", [ForgetClient("1"), ForgetClass(2)], ids=["client", "class"])
def test_buffers_are_those_of_the_model_no_statistics_of_what_goes(request_: Predicate) -> None:
    task = small_task(request_)
    (after,) = rounds(FedQUIT(), task)
    assert not torch.equal(after.vector(), task.weights.vector())
    for name, buffer in task.weights.buffers.items():
        assert torch.equal(after.buffers[name], buffer)


def test_the_price_is_two_models_and_four_passes_a_sample() -> None:
    task, ledger = account(twin(REQUESTS["client"]).task)
    rounds(FedQUIT(), task)
    spent = ledger.phases["unlearn"]
    assert (spent.down, spent.up) == (15 * 8, 15 * 8)
    assert spent.work == Work(forward=2 * STEPS * 5, backward=STEPS * 5)  # a backward pass costs two forward ones


def test_there_is_one_round_and_nothing_after_it() -> None:
    task = twin(REQUESTS["client"]).task
    assert [done.number for done in FedQUIT().unlearn(task)] == [0]
    assert list(FedQUIT().unlearn(task, Round(0, task.weights))) == []
