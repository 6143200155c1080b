"""Local training and scoring, against numbers by hand and against plain loops."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import engine
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedunlearn.architecture import Architecture
from fedunlearn.client import Client, View, execute
from fedunlearn.data.images import Flipped
from fedunlearn.federation import ClientContext, ClientError, Forgotten, Reply, Retained, Turn
from fedunlearn.programs import SGD, Adam, Constant, Cosine, Evaluate, Exponential, LocalTraining, endless
from fedunlearn.requests import ForgetClass
from fedunlearn.samples import TensorSamples
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


@pytest.mark.parametrize("name", sorted(engine.JOBS))
def test_what_is_quick_has_the_bits_of_what_is_plain(name: str) -> None:
    """Of a loop with a deep copy, torch's own optimizer, its own seeding and no counting, with dropout and flips."""
    job = engine.JOBS[name]
    images = torch.randint(256, (3 * job.batch, *engine.SHAPE), generator=torch.Generator().manual_seed(0))
    samples = TensorSamples(images.byte(), torch.arange(len(images)) % 10, mean=0.3, std=0.4, geometry=Flipped())
    client, turn = Client.of("a", samples, validation=0), Turn(5, "train", 2)
    architecture = Architecture(lambda: nn.Sequential(nn.Dropout(0.1), job.net()))
    start, seen = architecture.fresh(0), []

    def spy(context: ClientContext) -> Reply:
        seen.extend(context.batches(0, job.batch))
        return Reply()

    def reply(program: Callable[[ClientContext], Reply]) -> Reply:
        return execute(program, start, turn, View(), client, architecture, CPU)

    reply(spy)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng([]):
        torch.manual_seed(turn.seed_for("a", "global"))
        net = copy.deepcopy(architecture.template).train()
        start.into(net)
        optimizer = job.theirs(net.parameters())
        for batch in seen:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch.x), batch.y).backward()
            optimizer.step()
    torch.set_num_threads(threads)
    trained = reply(LocalTraining(job.optimizer, batch_size=job.batch)).weights
    assert len(seen) == 3
    assert trained is not None
    assert trained.same_bits(Weights.of(net))
    assert not trained.same_bits(start)


def test_training_imports_torchs_compiler_neither_here_nor_in_workers() -> None:
    """It takes over a second and 150 MB, in every process."""
    code = """
import sys, torch
there = "torch._dynamo" in sys.modules
from fedunlearn import SGD, Client, InProcess, LocalTraining
from fedunlearn.federation import Reply, Turn
from fedunlearn.programs import Adam

def imported(context):
    for optimizer in (SGD(), Adam()):
        LocalTraining(optimizer)(context)
    return Reply(metrics={"imported": "torch._dynamo" in sys.modules})

clients = [Client.of(name, (torch.zeros(4, 2), torch.arange(4) % 2)) for name in "ab"]
for workers in (1, 2):
    federation = InProcess(lambda: torch.nn.Linear(2, 2), clients, workers=workers, device="cpu")
    replies = federation.run(imported, federation.architecture.fresh(0), Turn(0, "train", 0))
    assert [reply.metrics["imported"] for _, reply in replies] == [there, there], workers
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "optimizer", [SGD(0.1, 0.9, 0.01), Adam(0.1, weight_decay=0.01)], ids=lambda one: type(one).__name__
)
def test_a_frozen_parameter_keeps_its_bits_whatever_decay_and_momentum_and_the_rest_trains_without_it(
    optimizer: SGD | Adam,
) -> None:
    client, start = toy(), Architecture(softmax_regression).fresh(0)
    reply = run(LocalTraining(optimizer, epochs=2, batch_size=20, clip=0.2, frozen=("weight",)), client, start)
    assert reply.weights is not None
    assert torch.equal(reply.weights.parameters["weight"], start.parameters["weight"])
    net = softmax_regression()
    start.into(net)
    alone = optimizer([net.bias], 1.0)  # type: ignore[list-item]
    x, y = client.samples.inputs(client.indices, None, CPU), client.labels
    for _ in range(2):
        alone.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        nn.utils.clip_grad_norm_([net.bias], 0.2)  # type: ignore[list-item]
        alone.step()
    assert torch.allclose(reply.weights.parameters["bias"], net.bias, atol=1e-6)  # type: ignore[arg-type]
    assert not torch.equal(reply.weights.parameters["bias"], start.parameters["bias"])
    assert (reply.work.forward, reply.work.backward) == (20, 20)


def test_a_parameter_that_is_not_there_cannot_be_frozen() -> None:
    with pytest.raises(ClientError, match="no parameter 'wieght' to freeze: take one of weight, bias"):
        run(LocalTraining(frozen=("bias", "wieght")), toy(), zeros())


def test_tied_weights_are_frozen_under_any_of_their_names() -> None:
    def tied() -> nn.Module:
        one, two = nn.Linear(2, 2), nn.Linear(2, 2)
        two.weight = one.weight
        return nn.Sequential(one, two)

    architecture = Architecture(tied)
    start = architecture.fresh(0)
    for name in ("0.weight", "1.weight"):
        training = LocalTraining(SGD(0.1), frozen=(name,))
        reply = execute(training, start, Turn(0, "train", 0), View(), toy(), architecture, CPU)
        assert reply.weights is not None
        same = {n: torch.equal(t, start.parameters[n]) for n, t in reply.weights.parameters.items()}
        assert same == {"0.weight": True, "0.bias": False, "1.bias": False}


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


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(0, 13),
    batch_size=st.integers(1, 6),
    length=st.one_of(
        st.floats(0, 3, width=16).map(lambda epochs: {"epochs": epochs}),
        st.integers(0, 9).map(lambda batches: {"batches": batches}),
    ),
)
def test_passes_are_those_that_training_takes(samples: int, batch_size: int, length: dict[str, float]) -> None:
    training = LocalTraining(batch_size=batch_size, **length)  # type: ignore[arg-type]
    work = run(training, toy(samples), zeros()).work
    assert training.passes(samples) == work.forward == work.backward


def test_passes_by_hand() -> None:
    """Of ten samples in batches of four, of nine, whose last one alone is merged into the batch before, and of none."""
    assert [LocalTraining(batch_size=4, batches=n).passes(10) for n in range(5)] == [0, 4, 8, 10, 14]
    assert [LocalTraining(batch_size=4, batches=n).passes(9) for n in range(4)] == [0, 4, 9, 13]
    assert LocalTraining(epochs=7).passes(0) == 0


def test_at_sets_the_learning_rate_of_every_round_and_nothing_else() -> None:
    training = LocalTraining(Adam(0.3, (0.8, 0.9), 0.1), Exponential(0.5), 2.0, 3, 4, of=Forgotten(), clip=1.0)
    expected = LocalTraining(Adam(0.02, (0.8, 0.9), 0.1), Constant(), 2.0, 3, 4, of=Forgotten(), clip=1.0)
    assert training.at(0.02) == expected
    assert training.at(None) is training
    assert training.optimizer == Adam(0.3, (0.8, 0.9), 0.1)


def test_at_a_learning_rate_round_seven_is_as_long_a_step_as_round_zero() -> None:
    """By hand, as above: (-1/2) x times -0.1."""
    client = Client.of("a", (torch.tensor([[1.0, 2.0]]), torch.tensor([1])), validation=0)
    training = LocalTraining(SGD(9.0, 0.0, 0.0), Exponential(0.5)).at(0.1)
    for number in (0, 7):
        weights = run(training, client, zeros(), number).weights
        assert weights is not None
        assert torch.allclose(weights.parameters["weight"], torch.tensor([[-0.05, -0.1], [0.05, 0.1]]))


@dataclass(frozen=True)
class WithoutRate:
    def __call__(self, parameters: Iterable[nn.Parameter], factor: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, factor)


def test_at_wants_an_optimizer_whose_learning_rate_can_be_set() -> None:
    plain: Callable[..., torch.optim.Optimizer] = WithoutRate().__call__
    for optimizer in (WithoutRate(), plain):
        with pytest.raises(ValueError, match="has no learning rate to be set: give it a field lr"):
            LocalTraining(optimizer).at(0.1)
        LocalTraining(optimizer).at(None)


@dataclass
class Reads:
    """The first batches of an endless reading, and at least as many, epoch by epoch."""

    batches: int
    of: Retained | Forgotten | None = None

    def __call__(self, context: ClientContext) -> Reply:
        self.endless = [b.x.tolist() for b in islice(endless(context, 4, self.of), self.batches)]
        epochs = (context.batches(epoch, 4, of=self.of) for epoch in range(self.batches))
        self.epochs = [[b.x.tolist() for b in epoch] for epoch in epochs]
        return Reply()


@pytest.mark.parametrize("of", [None, Retained(), Forgotten()])
def test_endless_reads_epoch_after_epoch_in_the_order_of_each(of: Retained | Forgotten | None) -> None:
    reads = Reads(8, of)
    run(reads, toy(), zeros(), view=View(request=ForgetClass(1)))  # type: ignore[arg-type]
    assert len(reads.endless) == 8
    assert reads.endless == [batch for epoch in reads.epochs for batch in epoch][:8]
    first, second = (sorted(x for batch in epoch for x in batch) for epoch in reads.epochs[:2])
    assert first == second
    assert reads.epochs[0] != reads.epochs[1]


def test_endless_ends_where_there_is_no_sample() -> None:
    reads = Reads(1, Forgotten())
    run(reads, toy(), zeros())  # type: ignore[arg-type]
    assert reads.endless == []


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


@pytest.mark.parametrize("optimizer", [SGD(0.1), Adam(0.1)], ids=lambda one: type(one).__name__)
def test_optimizers_step_outside_autograd_and_see_no_other_gradient(optimizer: SGD | Adam) -> None:
    moving, still = (nn.Parameter(torch.ones(2)) for _ in range(2))
    made = optimizer([moving, still], 1.0)
    moving.sum().backward()
    made.step()
    assert moving.requires_grad
    assert moving.grad_fn is None
    assert torch.equal(still, torch.ones(2))
    made.zero_grad()
    assert moving.grad is None
    with pytest.raises(ValueError, match="Invalid learning rate"):
        optimizer([moving], -1.0)


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
    x, y = client.samples.inputs(client.indices, None, CPU), client.labels
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
