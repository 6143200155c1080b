"""Local training and scoring, against numbers by hand and against plain loops."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fedunlearn.architecture import Architecture
from fedunlearn.client import Client, View, execute
from fedunlearn.federation import ClientError, Forgotten, Reply, Turn
from fedunlearn.programs import SGD, Adam, Constant, Cosine, Evaluate, Exponential, LocalTraining
from fedunlearn.requests import ForgetClass
from fedunlearn.weights import Weights

CPU = torch.device("cpu")


def softmax_regression() -> nn.Module:
    return nn.Linear(2, 2)


def run(
    program: LocalTraining | Evaluate,
    client: Client,
    weights: Weights,
    number: int = 0,
    view: View | None = None,
) -> Reply:
    return execute(
        program,
        weights,
        Turn(0, "train", number),
        view or View(),
        client,
        Architecture(softmax_regression),
        CPU,
    )


def toy(n: int = 10, validation: float = 0.0) -> Client:
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return Client.of("a", (x, (x[:, 0] > 0).long()), validation=validation)


def zeros() -> Weights:
    return Weights({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})


def test_one_step_by_hand() -> None:
    """From zero weights p = (1/2, 1/2), so the gradient of class 1 at x = (1, 2) is (-1/2) x; times -0.1."""
    client = Client.of("a", (torch.tensor([[1.0, 2.0]]), torch.tensor([1])), validation=0)
    reply = run(LocalTraining(SGD(0.1, 0.0, 0.0)), client, zeros())
    assert reply.weights is not None
    assert torch.allclose(reply.weights.parameters["weight"], torch.tensor([[-0.05, -0.1], [0.05, 0.1]]))
    assert torch.allclose(reply.weights.parameters["bias"], torch.tensor([-0.05, 0.05]))
    assert reply.samples == 1
    assert reply.metrics["loss"] == pytest.approx(math.log(2))


def test_an_epoch_equals_a_plain_loop_over_the_same_batches() -> None:
    client, start = toy(), Architecture(softmax_regression).fresh(0)
    program = LocalTraining(SGD(0.1, 0.9, 0.01), Exponential(0.5), epochs=2, batch_size=4, clip=0.2)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(context):  # type: ignore[no-untyped-def]
        seen.extend((b.x, b.y) for epoch in range(2) for b in context.batches(epoch, 4))
        return Reply()

    run(spy, client, start, number=3)  # type: ignore[arg-type]
    net = softmax_regression()
    start.into(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1 * 0.5**3, momentum=0.9, weight_decay=0.01)
    for x, y in seen:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.2)
        optimizer.step()
    reply = run(program, client, start, number=3)
    assert reply.weights is not None
    assert reply.weights.same_bits(Weights.of(net))


@pytest.mark.parametrize(
    ("training", "passes"),
    [
        (LocalTraining(batch_size=4), 10),
        (LocalTraining(batch_size=4, epochs=0.5), 8),  # ceil(0.5 * 3) = 2 batches
        (LocalTraining(batch_size=4, epochs=2.5), 28),  # two epochs, then two batches
        (LocalTraining(batch_size=4, batches=1), 4),
        (LocalTraining(batch_size=4, batches=4), 14),
        (LocalTraining(batch_size=4, epochs=0), 0),
        (LocalTraining(batch_size=1, epochs=1.1), 11),  # 1.1 * 10 is 11.000000000000002
    ],
)
def test_epochs_may_be_fractions_or_batches(training: LocalTraining, passes: int) -> None:
    reply = run(training, toy(), zeros())
    assert (reply.work.forward, reply.work.backward) == (passes, passes)


def test_of_trains_on_what_is_chosen_alone() -> None:
    view = View(request=ForgetClass(1))
    reply = run(LocalTraining(of=Forgotten()), toy(), zeros(), view=view)
    ones = int((toy().labels == 1).sum())
    assert reply.samples == reply.work.forward == ones


def test_schedules() -> None:
    assert Constant()(7) == 1
    assert Exponential(0.9)(2) == pytest.approx(0.81)
    cosine = Cosine(10, floor=0.1)
    assert [round(cosine(n), 6) for n in (0, 5, 10, 99)] == [1, 0.55, 0.1, 0.1]


def test_adam_is_torchs() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = Adam(0.01, (0.8, 0.9), 0.1)([parameter], 0.5)
    assert isinstance(optimizer, torch.optim.Adam)
    assert {k: optimizer.defaults[k] for k in ("lr", "betas", "weight_decay")} == {
        "lr": 0.005,
        "betas": (0.8, 0.9),
        "weight_decay": 0.1,
    }


def test_amp_computes_in_bfloat16_and_keeps_the_weights_dtype() -> None:
    exact, rough = (run(LocalTraining(amp=amp), toy(), zeros()).weights for amp in (None, "bfloat16"))  # type: ignore[arg-type]
    assert exact is not None
    assert rough is not None
    assert rough.parameters["weight"].dtype == torch.float32
    assert not rough.same_bits(exact)
    assert torch.allclose(rough.vector(), exact.vector(), atol=1e-2)


def test_divergence_is_an_error_that_says_what_to_do() -> None:
    broken = zeros() * float("nan")
    with pytest.raises(
        ClientError, match="client a, train round 0: the training loss became nan: lower the learning rate"
    ):
        run(LocalTraining(), toy(), broken)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        LocalTraining(epochs=-1)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        LocalTraining(batch_size=0)
    with pytest.raises(ValueError, match="not in 'float16'"):
        LocalTraining(amp="float16")  # type: ignore[arg-type]


def test_evaluate_against_a_plain_forward_pass() -> None:
    client, weights = toy(23, validation=0.2), Architecture(softmax_regression).fresh(4)
    net = softmax_regression()
    weights.into(net)
    x, y = client.samples.inputs(client.indices, None), client.labels
    with torch.no_grad():
        scores = net(x).double()
    losses, correct = nn.functional.cross_entropy(scores, y, reduction="none"), scores.argmax(1) == y
    for part, chosen in (
        ("train", ~client.validation),
        ("validation", client.validation),
        ("all", torch.ones(23, dtype=torch.bool)),
    ):
        before = copy.deepcopy(weights)
        reply = run(Evaluate(part, batch_size=5, per_sample=True), client, weights)  # type: ignore[arg-type]
        assert torch.allclose(reply.values["loss"], losses[chosen], atol=1e-6)
        assert torch.equal(reply.values["correct"], correct[chosen])
        assert reply.values["loss"].dtype == torch.float64
        assert reply.metrics["accuracy"] == pytest.approx(float(correct[chosen].double().mean()))
        assert reply.samples == int(chosen.sum())
        assert weights.same_bits(before)
        assert reply.work.backward == 0
    assert run(Evaluate(), client, weights).values == {}


def test_evaluate_without_samples_has_no_metrics() -> None:
    reply = run(Evaluate(of=Forgotten(), per_sample=True), toy(), zeros())
    assert reply.samples == 0
    assert reply.metrics == {}
    assert len(reply.values["loss"]) == 0
