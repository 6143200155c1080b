"""How sure a model is of a class: by hand, against the loss, at the ends of the scale, and where the data are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedunlearn.audits.signals import Confidence, confidence
from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.contract import SmallNet
from fedunlearn.federation import ClientError, Forgotten, Turn
from fedunlearn.requests import ForgetClass
from fedunlearn.weights import Weights

TURN = Turn(0, "evaluate", 0)
INFINITE = float("inf")


def test_by_hand() -> None:
    """Of logits (log 1, log 2, log 5): odds 1 to 7, 2 to 6 and 5 to 3."""
    logits = torch.tensor([[1.0, 2.0, 5.0]] * 3, dtype=torch.float64).log()
    found = confidence(logits, torch.tensor([0, 1, 2]))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([math.log(1 / 7), math.log(2 / 6), math.log(5 / 3)], abs=1e-14)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.data())
def test_it_is_the_loss_on_another_scale(logits: list[float], data: st.DataObject) -> None:
    """With loss l = -log p: log(p / (1 - p)) = -log(exp(l) - 1), exact where p is not near to 1."""
    label = torch.tensor([data.draw(st.integers(0, len(logits) - 1))])
    scores = torch.tensor([logits], dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy(scores, label)
    assert float(confidence(scores, label)) == pytest.approx(float(-torch.log(torch.expm1(loss))), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_is_lost_where_the_model_is_sure(dtype: torch.dtype) -> None:
    """At logits 70 apart p is 1 - 4e-31, which float64 does not tell from 1: of the loss nothing would be left."""
    logits, labels = torch.tensor([[70.0, 0.0], [70.0, 0.0]], dtype=dtype), torch.tensor([0, 1])
    assert confidence(logits, labels).tolist() == [70.0, -70.0]
    assert float(logits.double().softmax(1)[0, 0]) == 1.0
    three = torch.tensor([[70.0, 0.0, 0.0]], dtype=dtype)
    assert float(confidence(three, torch.tensor([0]))) == pytest.approx(70 - math.log(2), rel=1e-15)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([INFINITE, 0.0], 1e6),
        ([-INFINITE, 0.0], -1e6),
        ([INFINITE, INFINITE], 0.0),
        ([-INFINITE, -INFINITE], 0.0),
        ([3e38, -3e38], 1e6),
        ([-INFINITE, INFINITE, INFINITE], -1e6),
    ],
)
def test_infinite_logits_are_as_large_as_numbers_get(logits: list[float], expected: float) -> None:
    assert float(confidence(torch.tensor([logits]), torch.tensor([0]))) == expected


def test_what_is_no_number_is_refused() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])
    with pytest.raises(ValueError, match="diverged, so there is nothing to attack"):
        confidence(logits, torch.tensor([0, 1]))


def test_shifting_all_logits_changes_nothing() -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(8) % 5
    assert confidence(logits + 3.5, labels).tolist() == pytest.approx(confidence(logits, labels).tolist(), abs=1e-12)


def images(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(count)), torch.arange(count) % 3


def test_the_program_is_the_function_on_each_clients_samples() -> None:
    """In their own order, in whatever batches; of the part and of the flagged ones that are asked for."""
    data = {"a": images(13), "b": images(8)}
    clients = [Client.of(name, own, validation=0.25, seed=1) for name, own in data.items()]
    federation = InProcess(SmallNet, clients, workers=1, device="cpu")
    weights = federation.architecture.fresh(3)
    network = federation.architecture.network(weights, torch.device("cpu")).eval()
    for program in (Confidence(), Confidence(batch_size=4), Confidence("validation"), Confidence(of=Forgotten())):
        replies = dict(federation.marking(ForgetClass(1)).run(program, weights, TURN))
        assert replies.keys() == data.keys()
        for client in clients:
            x, y = data[client.id]
            chosen = client.validation if program.part == "validation" else ~client.validation
            if program.of is not None:
                chosen = chosen & (y == 1)
            with torch.no_grad():
                expected = confidence(network(x[chosen]), y[chosen])
            reply = replies[client.id]
            assert reply.values.keys() == {"confidence"}
            assert reply.values["confidence"].tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
            assert reply.samples == len(expected) > 0
            assert reply.weights is None


def test_one_worker_and_two_say_the_same(one_worker: InProcess, two_workers: InProcess) -> None:
    weights = one_worker.architecture.fresh(4)
    one, two = (dict(federation.run(Confidence(), weights, TURN)) for federation in (one_worker, two_workers))
    assert list(one) == list(two) == ["0", "1", "2", "3"]
    for client in one:
        assert torch.equal(one[client].values["confidence"], two[client].values["confidence"])


def test_a_client_without_such_samples_answers_with_none(one_worker: InProcess) -> None:
    weights = one_worker.architecture.fresh(4)
    for _, reply in one_worker.run(Confidence(of=Forgotten()), weights, TURN):
        assert reply.values["confidence"].shape == (0,)
        assert reply.samples == 0


def test_a_model_that_has_diverged_is_refused_where_it_is_read(one_worker: InProcess) -> None:
    weights = one_worker.architecture.fresh(4)
    spoilt = Weights({name: tensor * float("nan") for name, tensor in weights.parameters.items()}, weights.buffers)
    with pytest.raises(ClientError, match=r"client 0.*diverged"):
        list(one_worker.run(Confidence(), spoilt, TURN))
