"""Relearning: its numbers by hand, its steps against a plain loop, and that what is left is learnt sooner."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedunlearn.audits.relearning import Relearned, relearn
from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.federation import ClientContext, ClientError, Reply, Turn
from fedunlearn.programs import SGD, Evaluate, Exponential, LocalTraining
from fedunlearn.rounds import train
from fedunlearn.weights import Weights

TRAINING = LocalTraining(SGD(lr=0.1, momentum=0.9, weight_decay=0.01), batch_size=5, clip=1.0)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))


def holders(*sizes: int, seed: int = 0) -> InProcess:
    """Samples whose classes are noise: they can only be learnt by heart."""
    rng = torch.Generator().manual_seed(seed)
    clients = []
    for number, size in enumerate(sizes):
        data = torch.randn(size, 6, generator=rng), torch.randint(2, (size,), generator=rng)
        clients.append(Client.of(str(number), data, validation=0))
    return InProcess(network, clients, workers=1, device="cpu")


def test_steps_and_area_by_hand() -> None:
    found = Relearned((0, 4, 8, 16), (2.0, 1.0, 0.4, 0.5), (0.0, 0.5, 1.0, 1.0))
    assert [found.steps_to(loss) for loss in (3.0, 2.0, 1.9, 1.0, 0.45, 0.4, 0.3)] == [0, 0, 4, 4, 8, 8, None]
    assert found.area == (4 * 0.25 + 4 * 0.75 + 8 * 1.0) / 16
    assert Relearned((0, 1), (1.0, 1.0), (0.3, 0.3)).area == pytest.approx(0.3)


def test_a_sole_holder_takes_plain_steps_of_sgd() -> None:
    """On the batches of each turn; the optimizer is a new one after every measurement, the learning rate the same."""
    samples = holders(13)
    start = samples.architecture.fresh(1)
    scheduled = replace(TRAINING, schedule=Exponential(0.1), epochs=3.0)
    found = relearn(samples, start, scheduled, seed=5, steps=8, every=4)
    model = network()
    start.into(model)
    x, y = everything(samples, start)
    losses, accuracies = [], []
    for turn in range(3):
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(model(x).double(), y)))
            accuracies.append(float((model(x).argmax(1) == y).float().mean()))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
        for batch_x, batch_y in batches(samples, start, turn) if turn < 2 else ():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch_x), batch_y).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert found.steps == (0, 4, 8)
    assert found.losses == pytest.approx(losses, rel=1e-6)
    assert found.accuracies == pytest.approx(accuracies)
    assert losses[0] > losses[1] > losses[2]


def batches(samples: InProcess, weights: Weights, turn: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four that a turn's training sees: of 13 samples three an epoch, the fourth from the next."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(context: ClientContext) -> Reply:
        seen.extend((batch.x, batch.y) for epoch in range(2) for batch in context.batches(epoch, 5))
        return Reply()

    list(samples.run(spy, weights, Turn(5, "train", turn)))
    yield from seen[:4]


def everything(samples: InProcess, weights: Weights) -> tuple[Tensor, Tensor]:
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(context: ClientContext) -> Reply:
        seen.extend((batch.x, batch.y) for batch in context.batches(0, 100, train=False))
        return Reply()

    list(samples.run(spy, weights, Turn(5, "evaluate", 0)))
    x, y = zip(*seen, strict=True)
    return torch.cat(x), torch.cat(y)


def test_the_first_measurement_is_the_models_own_over_all_samples() -> None:
    """Of holders with 9 and 31 samples, by their samples."""
    samples = holders(9, 31)
    start = samples.architecture.fresh(1)
    replies = [reply.metrics for _, reply in samples.run(Evaluate(), start, Turn(0, "evaluate", 0))]
    found = relearn(samples, start, TRAINING, seed=0, steps=2, every=2)
    for values, name in ((found.losses, "loss"), (found.accuracies, "accuracy")):
        assert values[0] == pytest.approx((9 * replies[0][name] + 31 * replies[1][name]) / 40)
    assert replies[0]["loss"] != replies[1]["loss"]


def test_the_seed_decides_the_order_of_batches_and_nothing_else() -> None:
    samples = holders(12, 8)
    start = samples.architecture.fresh(1)
    one, again, other = (relearn(samples, start, TRAINING, seed=seed, steps=6, every=3) for seed in (1, 1, 2))
    assert one == again
    assert one.losses[0] == other.losses[0]
    assert one.losses[1:] != other.losses[1:]


def test_who_was_trained_on_the_samples_has_them_sooner_than_who_was_not() -> None:
    samples, others = holders(20, seed=1), holders(20, seed=2)
    fresh = samples.architecture.fresh(1)
    trained, elsewhere = (train(one, fresh, TRAINING, rounds=40) for one in (samples, others))
    knows, does_not = (relearn(samples, start, TRAINING, seed=0, steps=40, every=2) for start in (trained, elsewhere))
    assert knows.losses[0] < 0.7 * does_not.losses[0]
    assert knows.area > does_not.area
    goal = 1.1 * knows.losses[0]
    assert knows.steps_to(goal) == 0
    assert (does_not.steps_to(goal) or math.inf) > 0


@pytest.mark.parametrize(("steps", "every"), [(10, 4), (0, 4), (4, 0), (-4, 4), (2, 4), (4, -2)])
def test_steps_that_cannot_be_measured_are_refused(steps: int, every: int) -> None:
    samples = holders(8)
    with pytest.raises(ValueError, match="give a multiple"):
        relearn(samples, samples.architecture.fresh(0), TRAINING, seed=0, steps=steps, every=every)


def test_training_that_diverges_is_told() -> None:
    samples = holders(8)
    wild = LocalTraining(SGD(lr=3e38, momentum=0.0, weight_decay=0.0), batch_size=4)
    with pytest.raises(ClientError, match="training loss became"):
        relearn(samples, samples.architecture.fresh(0), wild, seed=0, steps=20, every=20)
