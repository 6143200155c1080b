"""NotNot by hand, and which pair of layers it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.evaluation.follow import follow
from fedunlearn.layers import LayerError
from fedunlearn.methods.notnot import NotNot, other_pair
from fedunlearn.methods.retrain import Retrain
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.requests import ForgetClient
from fedunlearn.task import Task
from fedunlearn.weights import Weights


class Chain(nn.Module):
    """Scores v relu(b relu(a x)) of one number x."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
        self.v = nn.Linear(1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.v(torch.relu(self.b(torch.relu(self.a(x)))))
        return scores


def chain_task(recovery: LocalTraining | None = None) -> Task:
    """Client "a" goes; "b" stays with x = -1 of class 1."""
    goes = Client.of("a", (torch.tensor([[1.0]]), torch.tensor([0])), validation=0)
    stays = Client.of("b", (torch.tensor([[-1.0]]), torch.tensor([1])), validation=0)
    federation = InProcess(Chain, [goes, stays], workers=1, device="cpu")
    weights = Weights(
        {
            "a.weight": torch.tensor([[1.0]]),
            "b.weight": torch.tensor([[-2.0]]),
            "b.bias": torch.tensor([0.5]),
            "v.weight": torch.zeros(2, 1),
        }
    )
    training = LocalTraining(SGD(0.1, 0.0, 0.0))
    architecture = federation.architecture
    return Task.of(federation, weights, ForgetClient("a"), training, architecture, recovery=recovery)


def test_both_layers_are_negated_and_those_who_stay_fine_tune() -> None:
    """a = -1, b = 2: relu(a x) = 1, relu(2 + 0.5) = 2.5, p = (1/2, 1/2): v -= 0.1 (1/2, -1/2) 2.5."""
    negated, trained = follow(NotNot(), chain_task(), 1)
    assert {name: tensor.tolist() for name, tensor in negated.round.after.parameters.items()} == {
        "a.weight": [[-1.0]],
        "b.weight": [[2.0]],
        "b.bias": [0.5],
        "v.weight": [[0.0], [0.0]],
    }
    assert negated.round.after.negations == (("a.weight", "b.weight"),)
    assert trained.round.after.parameters["v.weight"].flatten().tolist() == pytest.approx([-0.125, 0.125])
    assert trained.round.after.negations == negated.round.after.negations


def test_a_biased_negation_turns_the_biases_too() -> None:
    (negated,) = follow(NotNot(include_bias=True), chain_task(), 0)
    assert negated.round.after.parameters["b.bias"].item() == -0.5


def test_recovery_can_have_local_work_of_its_own() -> None:
    """The same two steps: two rounds of one epoch, or one round of two. Retrain's rounds are the first training's."""
    ordinary = [step.round.after for step in follow(NotNot(), chain_task(), 2)][-1]
    recovery = LocalTraining(SGD(0.1, 0.0, 0.0), epochs=2)
    longer = [step.round.after for step in follow(NotNot(), chain_task(recovery), 1)][-1]
    assert longer.same_bits(ordinary)
    anew, as_before = ([step.round.after for step in follow(Retrain(), chain_task(r), 1)] for r in (recovery, None))
    assert anew[-1].same_bits(as_before[-1])


class Twice(nn.Sequential):
    """Two pairs that overlap."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2), nn.GELU(), nn.Dropout(), nn.Linear(2, 2), nn.ReLU(),
            nn.Linear(2, 2),
        )  # fmt: skip


def test_a_further_request_negates_what_was_left_alone() -> None:
    network = Twice()
    assert other_pair(network, []) == ("0.weight", "2.weight")
    assert other_pair(network, [("0.weight[0:1]",)]) == ("2.weight", "5.weight")
    assert other_pair(network, [("0.weight", "2.weight")]) == ("5.weight",)  # no pair is left: NoT's other layer


def test_a_second_request_does_not_give_the_original_back() -> None:
    """One pair alone, and a recovery that changes nothing."""
    task = chain_task(LocalTraining(SGD(0.0, 0.0, 0.0)))
    once = [step.round.after for step in follow(NotNot(), task, 1)][-1]
    again = [step.round.after for step in follow(NotNot(), replace(task, weights=once), 1)][-1]
    assert once.negations == (("a.weight", "b.weight"),)
    assert again.negations[1:] == (("a.weight",),)
    assert again.parameters["b.weight"].item() == -task.weights.parameters["b.weight"].item()


def test_a_network_without_a_pair_is_told_before_anything_runs() -> None:
    federation = InProcess(
        lambda: nn.Linear(1, 2), [Client.of("a", (torch.ones(2, 1), torch.tensor([0, 1])))], workers=1
    )
    training, weights = LocalTraining(), federation.architecture.fresh(0)
    task = Task.of(federation, weights, ForgetClient("a"), training, federation.architecture)
    with pytest.raises(LayerError, match=r"has no two layers in a row .* name two layers \(layers="):
        NotNot().check(task)
