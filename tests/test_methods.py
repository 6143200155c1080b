"""Each method by hand, on a model of three numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.contract import small_task
from fedunlearn.evaluation.follow import Step, follow, unlearn
from fedunlearn.layers import LayerError
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.negation import Annealing, NoT, other_layer
from fedunlearn.methods.retrain import Retrain
from fedunlearn.needs import Needs, NeedsError
from fedunlearn.negation import negate
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.requests import ForgetClass, ForgetClient
from fedunlearn.rounds import aggregate, train
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights


class Line(nn.Module):
    """Scores (w x, v): softmax regression in two numbers, w behind one more layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False)
        self.second = nn.Linear(1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.second(self.first(x))
        return scores


def two_clients() -> InProcess:
    one = Client.of("a", (torch.tensor([[1.0]]), torch.tensor([0])), validation=0)
    three = Client.of("b", (torch.tensor([[2.0]] * 3), torch.tensor([1, 1, 1])), validation=0)
    return InProcess(Line, [one, three], workers=1, device="cpu")


def task(request: ForgetClient) -> Task:
    federation = two_clients()
    weights = Weights({"first.weight": torch.tensor([[2.0]]), "second.weight": torch.zeros(2, 1)})
    training = LocalTraining(SGD(0.1, 0.0, 0.0))
    return Task.of(federation, weights, request, training, federation.architecture)


def values(step: Step) -> list[float]:
    return [round(v, 6) for v in step.round.after.vector().tolist()]


def test_not_negates_the_first_layer_then_fine_tunes() -> None:
    """After negation w = -2. The client that stays has x = 2 of class 1 and p = (1/2, 1/2), so the scores'
    gradient is (1/2, -1/2): second.weight -= 0.1 (1/2, -1/2) (-2 * 2) = (0.2, -0.2); first's gradient is 0."""
    steps = list(follow(NoT(), task(ForgetClient("a")), 1))
    assert [(s.phase, s.round.number) for s in steps] == [("unlearn", 0), ("recover", 0)]
    assert values(steps[0]) == [-2, 0, 0]
    assert values(steps[1]) == [-2, 0.2, -0.2]
    assert steps[1].round.after.negations == (("first.weight",),)


def test_not_with_a_named_layer() -> None:
    (step,) = follow(NoT(layers="second"), task(ForgetClient("a")), 0)
    assert step.round.after.parameters["first.weight"].item() == 2


class Three(nn.Module):
    """Three layers, normalisations between them, and a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)
        self.second, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.second(self.norm(self.first(x))))
        return scores


def test_a_further_request_negates_the_layer_negated_least_often_but_the_last() -> None:
    client = Client.of("a", (torch.rand(4, 2), torch.tensor([0, 1, 0, 1])), validation=0)
    federation = InProcess(Three, [client], workers=1, device="cpu")
    weights = federation.architecture.fresh(0)

    def answered(before: Weights, method: NoT) -> Weights:
        task = Task.of(federation, before, ForgetClass(0), LocalTraining(), federation.architecture)
        return [done.after for done in method.unlearn(task)][-1]

    for _ in range(4):
        weights = answered(weights, NoT())
    assert weights.negations == (("first.weight",), ("second.weight",), ("first.weight",), ("second.weight",))
    assert answered(weights, NoT(again="same")).negations[-1] == ("first.weight",)
    assert answered(weights, NoT(["second", "first"], again="same")).negations[-1] == ("first.weight", "second.weight")
    slices = replace(weights, negations=(("first.weight[0:1]",),))
    assert answered(slices, NoT()).negations[-1] == ("second.weight",)
    task = Task.of(federation, weights, ForgetClass(0), LocalTraining(), federation.architecture)
    assert list(NoT(again="none").unlearn(task)) == []
    assert len(list(NoT(again="none").unlearn(replace(task, weights=replace(weights, negations=()))))) == 1


def test_a_network_of_one_layer_has_no_other_to_negate() -> None:
    with pytest.raises(LayerError, match="has one layer alone, which has been negated: say again='same'"):
        other_layer(nn.Linear(1, 1), [("weight",)])


def test_recovery_at_an_annealed_learning_rate() -> None:
    """From the same state: a round at 0.2, at 0.02 + 0.18 / 2 = 0.11 half-way down the cosine, then at 0.02."""
    begun = task(ForgetClient("a"))
    method = NoT(annealing=Annealing(lr=0.2, last=0.02, rounds=2))
    expected, weights = [0.2, 0.11, 0.02, 0.02], begun.weights
    for number, (lr, done) in enumerate(zip(expected, method.recover(begun, begun.weights), strict=False)):
        training = LocalTraining(SGD(lr, 0.0, 0.0))
        weights = aggregate(begun.retained, weights, training, begun.turn(number, phase="recover"))
        assert (done.after - weights).norm() < 1e-6
    with pytest.raises(ValueError, match="has no learning rate to be set"):
        method.check(replace(begun, training=LocalTraining(torch.optim.SGD.__call__)))  # type: ignore[arg-type]


def test_fine_tuning_only_goes_on() -> None:
    """As above with w = 2: second.weight -= 0.1 (1/2, -1/2) (2 * 2)."""
    (step,) = follow(FineTune(), task(ForgetClient("a")), 1)
    assert values(step) == [2, -0.2, 0.2]


def test_fine_tuning_is_fedavg_resumed_without_the_target() -> None:
    both = task(ForgetClient("nobody"))
    alone = task(ForgetClient("a"))
    expected = next(FineTune().recover(alone, alone.weights)).after
    (step,) = follow(FineTune(), alone, 1)
    assert step.round.after.same_bits(expected)
    assert not next(FineTune().recover(both, both.weights)).after.same_bits(expected)


def test_fine_tuning_at_learning_rate_zero_changes_no_bit() -> None:
    federation = two_clients()
    weights = federation.architecture.fresh(3)
    still = Task.of(federation, weights, ForgetClient("a"), LocalTraining(SGD(0.0)), federation.architecture)
    assert unlearn(FineTune(), still, 3).same_bits(weights)


def test_retrain_starts_anew_and_shares_no_tensor_with_the_model() -> None:
    small = small_task(ForgetClient("1"))
    start = next(follow(Retrain(), small, 0)).round.after
    constant = {"norm.weight", "norm.bias"}
    for name, tensor in start.parameters.items():
        assert name in constant or not torch.equal(tensor, small.weights.parameters[name])
    assert not start.same_bits(small.architecture.fresh(1))  # nor does it start where the model started


def test_recalibration_estimates_the_statistics_of_what_stays() -> None:
    """The running mean is the clients' mean, weighted by samples, of the negated convolution's output."""
    small = small_task(ForgetClient("1"))
    negated, calibrated = (s.round.after for s in follow(NoT(batchnorm="recalibrate"), small, 0))
    assert all(torch.equal(t, negated.parameters[n]) for n, t in calibrated.parameters.items())
    expected, samples = torch.zeros(4), 0
    for _, reply in small.retained.run(_ConvMeans(small.training.batch_size), negated, small.turn(1)):
        expected += reply.values["mean"] * reply.samples
        samples += reply.samples
    assert torch.allclose(calibrated.buffers["norm.running_mean"], expected / samples, atol=1e-6)
    assert torch.equal(calibrated.buffers["norm.num_batches_tracked"], negated.buffers["norm.num_batches_tracked"])


class _ConvMeans:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, context):  # type: ignore[no-untyped-def]
        from fedunlearn.federation import Reply

        with torch.no_grad():
            means = [context.model.conv(b.x).mean((0, 2, 3)) for b in context.batches(0, self.size)]
        return Reply(samples=context.samples(), values={"mean": torch.stack(means).mean(0)})


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_a_task_knows_who_goes_wholly() -> None:
    small = small_task(ForgetClient("1"))
    assert small.targets == ("1",)
    assert small.forgotten.clients == ("1",)
    assert small.retained.clients == ("0", "2", "3")
    assert small.everyone.clients == ("0", "1", "2", "3")
    by_class = small_task(ForgetClass(0))
    assert by_class.targets == ()
    assert by_class.retained.clients == by_class.forgotten.clients == ("0", "1", "2", "3")


def test_a_target_that_has_left_is_reached_by_nobody_and_still_known_by_name() -> None:
    small = small_task(ForgetClient("1"))
    federation = two_clients()
    gone = Task.of(federation, small.weights, ForgetClient("a"), small.training, small.architecture, left=("a",))
    assert gone.targets == ("a",)
    assert gone.forgotten.clients == ()
    assert gone.everyone.clients == gone.retained.clients == ("b",)
    assert not gone.empty
    with pytest.raises(ValueError, match="no such client has left: nobody"):
        Task.of(federation, small.weights, ForgetClient("a"), small.training, small.architecture, left=("nobody",))


@pytest.mark.parametrize(
    ("needs", "sentence"),
    [
        (Needs(history="norms"), "a history of kind 'norms': record it while training"),
        (Needs(forget_data="inputs"), "whose holder has left: choose a method that does without"),
        (Needs(target_online=True), "the leaving client, which is gone"),
        (Needs(proxy=True), "give the task a proxy federation"),
    ],
)
def test_needs_are_checked_before_anything_runs(needs: Needs, sentence: str) -> None:
    class Needy(FineTune):
        pass

    Needy.needs = needs
    federation = two_clients()
    gone = Task.of(
        federation,
        Weights.of(Line()),
        ForgetClient("a"),
        LocalTraining(),
        federation.architecture,
        left=("a",),
    )
    with pytest.raises(NeedsError, match=f"FT needs .*{sentence}"):
        next(follow(Needy(), gone, 1))


def test_all_that_is_missing_is_named_at_once() -> None:
    whole = replace(small_task(ForgetClass(0)), history=None, proxy=None)
    needs = Needs(history="sum", whole_clients=True, proxy=True)
    with pytest.raises(
        NeedsError, match=r"record it while training; and proxy data .*; and a request for whole clients"
    ):
        needs.require(whole.circumstances, "FUKD")


def test_recovery_is_endless() -> None:
    small = task(ForgetClient("a"))
    method: Method = NoT()
    assert [r.number for r in islice(method.recover(small, small.weights, start=5), 3)] == [5, 6, 7]


def test_mistakes_in_python_are_told_by_what_to_give() -> None:
    small = task(ForgetClient("a"))
    with pytest.raises(TypeError, match=r"give a method with its hyper-parameters, such as NoT\(\)"):
        unlearn(NoT, small, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rounds of recovery must not be negative"):
        unlearn(NoT(), small, -1)
    with pytest.raises(TypeError, match=r"weights must be fedunlearn\.Weights"):
        Task.of(small.retained, Line(), ForgetClient("a"), small.training, small.architecture)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="architecture must be an Architecture"):
        Task.of(small.retained, small.weights, ForgetClient("a"), small.training, Line)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="train starts from Weights"):
        train(small.retained, Line(), small.training, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer is a recipe"):
        LocalTraining(torch.optim.SGD)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="negate takes a module or Weights, not OrderedDict"):
        negate(Line().state_dict())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="layers are named by strings"):
        negate(Line(), [0])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="a client's id is a string"):
        Client.of(0, (torch.zeros(1, 1), torch.tensor([0])))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="labels are whole numbers"):
        Client.of("0", (torch.zeros(1, 1), torch.tensor([0.7])))
    with pytest.raises(TypeError, match="a tensor alone has no labels"):
        Client.of("0", torch.zeros(3, 2))
