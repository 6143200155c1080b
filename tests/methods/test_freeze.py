"""A frozen layer in a new network: by hand, against NumPy, and what supplement 13.7 and its consequences promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from joint import DECAY, LR, MOMENTUM, REQUESTS, STEPS, account, same, twin, watched
from numpy_twin_joint import labelled, sgd, weighted
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.contract import small_task
from fedunlearn.evaluation.follow import follow, unlearn
from fedunlearn.experimentfile import load, made
from fedunlearn.federation import Batch, ClientContext, Work
from fedunlearn.layers import LayerError
from fedunlearn.methods.freeze import Freeze, NRFreeze, PFreeze, RFreeze
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.retrain import Retrain
from fedunlearn.models import PlainCNN
from fedunlearn.models.resnet import SmallResNet
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.requests import ForgetClient
from fedunlearn.task import Task
from fedunlearn.weights import Weights

KINDS: list[Freeze] = [NRFreeze(), PFreeze(), RFreeze()]
TRAINING = LocalTraining(SGD(0.1, 0.9, 0.01), batch_size=8)


def net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def task_of(build: Callable[[], nn.Module], shape: tuple[int, ...], training: LocalTraining = TRAINING) -> Task:
    """Three clients with 9 samples of three classes each, the first of which leaves; the model is another draw."""
    rng = torch.Generator().manual_seed(5)
    clients = [
        Client.of(name, (torch.randn(9, *shape, generator=rng), torch.arange(9) % 3), validation=0) for name in "abc"
    ]
    federation = InProcess(build, clients, workers=1, device="cpu")
    architecture = federation.architecture
    return Task.of(federation, architecture.fresh(1), ForgetClient("a"), training, architecture, seed=2)


def one_and_two() -> nn.Module:
    return net(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False))


@pytest.mark.parametrize(("method", "layer"), [(NRFreeze(), -3.0), (PFreeze(), 3.0)])
def test_a_round_by_hand(method: Freeze, layer: float) -> None:
    """One sample x = 2, of class 0, stays: u = 2 layer is its feature, and the head h moves by -0.1 (p - e_0) u."""
    data = {name: (torch.tensor([[2.0]]), torch.tensor([0])) for name in ("goes", "stays")}
    clients = [Client.of(name, held, validation=0) for name, held in data.items()]
    federation = InProcess(one_and_two, clients, workers=1, device="cpu")
    start = Weights({"0.weight": torch.tensor([[3.0]]), "1.weight": torch.tensor([[7.0], [8.0]])})
    training = LocalTraining(SGD(0.1, 0.0, 0.0))
    task = Task.of(federation, start, ForgetClient("goes"), training, federation.architecture)
    h = task.fresh("Freeze").parameters["1.weight"].double().numpy().ravel()
    assert not np.allclose(h, [7, 8])
    u = 2 * layer
    p = np.exp(h * u) / np.exp(h * u).sum()
    after = unlearn(method, task, 1).parameters
    assert after["0.weight"].item() == layer
    assert after["1.weight"].flatten().tolist() == pytest.approx(h - 0.1 * (p - [1, 0]) * u, abs=1e-6)


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize(("method", "sign"), [(NRFreeze(), -1), (PFreeze(), 1)], ids=str)
def test_section_8_rounds_equal_numpys_of_the_bias_alone(method: Freeze, sign: int, kind: str) -> None:
    """Softmax regression, whose weight is frozen: momentum and weight decay move the bias only."""
    world = twin(REQUESTS[kind])
    free = np.arange(15) >= 12
    theta = np.where(free, world.task.fresh("Freeze").vector().numpy(), sign * world.theta)
    for step in follow(method, world.task, 3):
        if step.phase == "recover":
            moves = {
                client: lambda at, own=own: free * (labelled(own)(at) + DECAY * at)
                for client, own in world.retained.items()
            }
            theta = weighted(
                (sgd(theta, moves[client], LR, STEPS, MOMENTUM), len(own)) for client, own in world.retained.items()
            )
        same(step.round.after, theta)


# --- section 8 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("method", KINDS, ids=str)
def test_section_8_the_layer_is_the_given_one_bit_for_bit_after_all_rounds(method: Freeze, double: bool) -> None:
    """Clients of 7, 4 and 6 samples average it; in float64 the mean of equal numbers may be another number."""
    world = twin(REQUESTS["client"]).task if double else small_task(ForgetClient("1"))
    name = "weight" if double else "conv.weight"
    theta, drawn = world.weights.parameters[name], world.fresh("Freeze").parameters[name]
    given = {"NR-Freeze": -theta, "P-Freeze": theta, "R-Freeze": drawn}[method.name]
    steps = list(follow(method, world, 4))
    assert len(steps) == 5
    for step in steps:
        assert torch.equal(step.round.after.parameters[name], given)
    other = "bias" if double else "head.weight"
    assert not torch.equal(steps[0].round.after.parameters[other], steps[-1].round.after.parameters[other])


@dataclass(frozen=True)
class Keeping:
    """Cross-entropy that hands out the network it was computed with."""

    seen: list[nn.Module]

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        self.seen.append(context.model)
        return lambda model, batch: F.cross_entropy(model(batch.x), batch.y)


@pytest.mark.parametrize("include_bias", [False, True])
def test_section_8_the_frozen_layer_has_no_gradient(include_bias: bool) -> None:
    seen: list[nn.Module] = []
    training = replace(TRAINING, loss=Keeping(seen))
    task = task_of(partial(PlainCNN, 3, (1, 6, 6), (2, 3), 3), (1, 6, 6), training)
    unlearn(NRFreeze(include_bias=include_bias), task, 1)
    frozen = {"conv1.weight", "conv1.bias"} if include_bias else {"conv1.weight"}
    assert len(seen) == 2
    for network in seen:
        assert {name for name, parameter in network.named_parameters() if parameter.grad is None} == frozen


def flipped(weights: Weights, *names: str) -> Weights:
    return replace(weights, parameters={n: -t if n in names else t for n, t in weights.parameters.items()})


def losses(method: Freeze, task: Task, start: Weights) -> list[float]:
    """Of each client in each of three rounds."""
    task, visits = watched(task)
    for _ in islice(method.recover(task, start), 3):
        pass
    return [visit.reply.metrics["loss"] for visit in visits]


TANH = {
    "perceptron": (
        lambda: net(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)),
        (4,),
        NRFreeze(),
        ("0.weight",),
        ("2.weight",),
    ),
    "plain-cnn": (
        partial(PlainCNN, 3, (1, 8, 8), (3, 4, 5), 3, "tanh"),
        (1, 8, 8),
        NRFreeze(include_bias=True),
        ("conv1.weight", "conv1.bias"),
        ("conv2.weight",),
    ),
}


@pytest.mark.parametrize("case", TANH)
def test_section_8_in_a_tanh_network_either_sign_has_the_same_losses(case: str) -> None:
    """Where the next layer starts with the other sign: tanh(-u) = -tanh(u), and so for ever."""
    build, shape, method, layer, following = TANH[case]
    task = task_of(build, shape)
    start = next(method.unlearn(task)).after
    mirrored = flipped(start, *layer, *following)
    told = losses(method, task, start)
    assert len(told) == 6
    assert told == losses(method, task, mirrored)
    assert told != pytest.approx(losses(method, task, flipped(start, *layer)), rel=1e-3)  # it is not for free
    one, other = (list(islice(method.recover(task, weights), 3))[-1].after for weights in (start, mirrored))
    assert other.same_bits(flipped(one, *layer, *following))


def test_section_8_in_a_relu_network_they_have_not() -> None:
    build = partial(PlainCNN, 3, (1, 8, 8), (3, 4, 5), 3, "relu")
    task, method = task_of(build, (1, 8, 8)), NRFreeze(include_bias=True)
    start = next(method.unlearn(task)).after
    mirrored = flipped(start, "conv1.weight", "conv1.bias", "conv2.weight")
    assert losses(method, task, start) != pytest.approx(losses(method, task, mirrored), rel=1e-3)


@pytest.mark.parametrize("resnet", [False, True], ids=["small", "resnet"])
def test_section_4_3_behind_a_batchnorm_it_is_p_freeze_with_the_scale_turned(resnet: bool) -> None:
    """BatchNorm of -y is minus that of y, so the sign of its scale makes up for the layer's, decay and momentum too."""
    if resnet:
        task = task_of(partial(SmallResNet, 3, (1, 8, 8), 4, (1, 1)), (1, 8, 8))
    else:
        task = replace(small_task(ForgetClient("1")), training=TRAINING)
    layer, norm = ("conv1.weight", "bn1") if resnet else ("conv.weight", "norm")
    scale, mean = f"{norm}.weight", f"{norm}.running_mean"
    start = next(NRFreeze().unlearn(task)).after
    turned = flipped(start, layer, scale)
    negated, positive = (
        list(islice(method.recover(task, weights), 3))[-1].after
        for method, weights in ((NRFreeze(), start), (PFreeze(), turned))
    )
    assert not torch.equal(positive.parameters[scale], turned.parameters[scale])
    assert positive.buffers[mean].any()
    back = flipped(positive, layer, scale)
    assert replace(back, buffers={**back.buffers, mean: -back.buffers[mean]}).same_bits(negated)


# --- the start ------------------------------------------------------------------------------------------------------


def test_section_8_all_but_the_layer_is_new_batchnorms_parameters_and_statistics_too() -> None:
    task = small_task(ForgetClient("1"))
    assert task.weights.buffers["norm.running_mean"].any()
    fresh = task.fresh("Freeze")
    for method in KINDS:
        start = next(method.unlearn(task)).after
        others = {name: tensor for name, tensor in start.parameters.items() if name != "conv.weight"}
        assert len(others) == len(fresh.parameters) - 1
        assert all(torch.equal(tensor, fresh.parameters[name]) for name, tensor in others.items())
        assert torch.equal(others["norm.weight"], torch.ones(4))
        assert replace(start, parameters={}).same_bits(replace(fresh, parameters={}))


def test_its_draw_is_neither_retrains_nor_the_first_trainings() -> None:
    task = small_task(ForgetClient("1"))
    start = next(RFreeze().unlearn(task)).after
    for other in (next(Retrain().unlearn(task)).after, task.weights):
        assert not torch.equal(start.parameters["head.weight"], other.parameters["head.weight"])
        assert not torch.equal(start.parameters["conv.weight"], other.parameters["conv.weight"])


def test_the_bias_is_frozen_where_it_is_asked_for() -> None:
    task = task_of(lambda: net(nn.Linear(4, 2), nn.Linear(2, 3)), (4,))
    bias = unlearn(NRFreeze(include_bias=True), task, 2).parameters["0.bias"]
    assert torch.equal(bias, -task.weights.parameters["0.bias"])
    assert not torch.equal(bias, unlearn(NRFreeze(), task, 2).parameters["0.bias"])


def test_what_was_negated_is_remembered_of_the_layer() -> None:
    task = small_task(ForgetClient("1"))
    before = next(NoT().unlearn(task)).after
    first, again = (
        {method.name: next(method.unlearn(asked)).after.negations for method in KINDS}
        for asked in (task, replace(task, weights=before))
    )
    assert first == {"NR-Freeze": (("conv.weight",),), "P-Freeze": (), "R-Freeze": ()}
    assert again == {"NR-Freeze": (("conv.weight",),) * 2, "P-Freeze": (("conv.weight",),), "R-Freeze": ()}


@pytest.mark.parametrize(
    ("layers", "include_bias", "says"),
    [
        ("0[0:1]", False, r"0\.weight\[0:1\] is a part of a tensor, and only whole ones can be frozen: name 0\.weight"),
        ("*", True, "nothing would be left to train: freeze fewer layers"),
        ("conv", False, "no layer 'conv'"),
    ],
)
def test_what_cannot_be_frozen_is_said_before_anything_runs(layers: str, include_bias: bool, says: str) -> None:
    task = task_of(lambda: net(nn.Linear(4, 2), nn.Linear(2, 3)), (4,))
    with pytest.raises(LayerError, match=says):
        next(follow(NRFreeze(layers, include_bias), task, 1))


# --- beside Retrain -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", KINDS, ids=str)
def test_section_8_it_has_the_rounds_and_the_price_of_retrain(method: Freeze) -> None:
    plan = load("cpu/table-8-cnn", ["training.rounds=7", "recovery.rounds=3"])
    assert [plan.rounds(one) for one in (Retrain(), method, NoT())] == [7, 7, 3]
    bills = []
    for one in (Retrain(), replace(method, include_bias=True)):
        task, ledger = account(task_of(partial(PlainCNN, 3, (1, 6, 6), (2, 3), 3), (1, 6, 6)))
        list(follow(one, task, 2))
        bills.append(ledger.phases["recover"])
    assert bills[0] == bills[1]
    assert bills[0].work == Work(2 * 2 * 9, 2 * 2 * 9)  # two rounds of two clients with nine samples


def test_tables_call_them_as_the_paper_does() -> None:
    assert [made(name) for name in ("NR-Freeze", "P-Freeze", "R-Freeze")] == KINDS
    assert load("cpu/table-8-tanh").labels == ("Retrain", "NR-Freeze", "P-Freeze", "R-Freeze")
