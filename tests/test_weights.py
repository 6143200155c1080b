from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedunlearn.contract import SmallNet
from fedunlearn.weights import Average, Weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3, bias=False)
        self.decoder = nn.Linear(3, 3, bias=False)
        self.decoder.weight = self.encoder.weight
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def weights(*values: float, counter: int = 0) -> Weights:
    return Weights({"w": torch.tensor(values)}, {"mean": torch.tensor([values[0]]), "count": torch.tensor(counter)})


def test_of_and_into_are_inverse_and_keep_parameter_objects() -> None:
    one, other = SmallNet(), SmallNet()
    before = list(other.parameters())
    taken = Weights.of(one)
    taken.into(other)
    assert Weights.of(other).same_bits(taken)
    assert all(a is b for a, b in zip(before, other.parameters(), strict=True))
    with torch.no_grad():
        one.head.bias.add_(1)
    assert Weights.of(other).same_bits(taken)  # a copy, not a view


def test_tied_names_stand_once_and_what_is_not_persistent_not_at_all() -> None:
    taken = Weights.of(Tied())
    assert list(taken.parameters) == ["encoder.weight"]
    assert taken.aliases == {"decoder.weight": "encoder.weight"}
    assert taken.buffers == {}


def test_into_refuses_another_architecture_and_copies_nothing() -> None:
    net = nn.Linear(3, 2)
    before = Weights.of(net)
    with pytest.raises(ValueError, match=r"weight has shape \(4, 2\), the module's \(2, 3\)"):
        Weights({"weight": torch.zeros(4, 2), "bias": torch.zeros(2)}).into(net)
    with pytest.raises(ValueError, match=r"lacks \['head'\], has \['bias'\]"):
        Weights({"weight": torch.zeros(2, 3), "head": torch.zeros(2)}).into(net)
    with pytest.raises(ValueError, match=r"weight is torch.float64, the module's torch.float32: convert"):
        before.map(torch.Tensor.double).into(net)
    assert Weights.of(net).same_bits(before)


def test_arithmetic_acts_on_parameters_and_keeps_the_left_buffers() -> None:
    a, b = weights(1.0, 2.0, counter=7), weights(10.0, 20.0, counter=9)
    for result, expected in (
        (a + b, [11.0, 22.0]),
        (a - b, [-9.0, -18.0]),
        (a * 3, [3.0, 6.0]),
        (2 * a, [2.0, 4.0]),
    ):
        assert result.parameters["w"].tolist() == expected
        assert result.buffers["count"] == 7
        assert result.buffers["mean"] == 1.0
    with pytest.raises(ValueError, match="different architectures"):
        a + Weights({"other": torch.zeros(2)})


def test_sizes_and_norm() -> None:
    a = weights(3.0, 4.0)
    assert a.norm() == 5.0
    assert a.vector().tolist() == [3.0, 4.0]
    assert a.parameter_bytes == 2 * 4
    assert a.nbytes == 2 * 4 + 4 + 8  # a float and an int64 counter


def test_same_bits_sees_signed_zeros_and_accepts_nan() -> None:
    assert not Weights({"w": torch.tensor([0.0])}).same_bits(Weights({"w": torch.tensor([-0.0])}))
    nan = Weights({"w": torch.tensor([float("nan")])})
    assert nan.same_bits(copy.deepcopy(nan))
    assert not nan.finite()


def test_average_by_hand() -> None:
    """(1 * 100 + 4 * 300) / 400 = 3.25 and (2 * 100 + 8 * 300) / 400 = 6.5; the counter is the sent model's."""
    mean = Average(like=weights(0.0, 0.0, counter=5))
    mean.add(weights(1.0, 2.0, counter=6), 100)
    mean.add(weights(4.0, 8.0, counter=8), 300)
    result = mean.result()
    assert result.parameters["w"].tolist() == [3.25, 6.5]
    assert result.buffers["mean"].tolist() == [3.25]
    assert result.buffers["count"] == 5
    assert result.buffers["count"].dtype == torch.int64


@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100),
        min_size=1,
    ),
    st.lists(st.integers(1, 100_000), min_size=1, max_size=12),
)
def test_the_average_of_equal_models_is_that_model_bit_for_bit(values: list[float], shares: list[int]) -> None:
    model = Weights({"w": torch.tensor(values, dtype=torch.float32) + 0.0})  # + 0.0: the sum of -0.0 is 0.0
    mean = Average(like=model)
    for share in shares:
        mean.add(model, share)
    assert mean.result().same_bits(model)


def test_complex_parameters_are_averaged_too() -> None:
    one = Weights({"w": torch.tensor([2 + 4j])})
    mean = Average(like=Weights({"w": torch.tensor([0j])}))
    mean.add(one, 1)
    mean.add(one * 3, 1)
    assert mean.result().parameters["w"].tolist() == [4 + 8j]


def test_the_average_of_nobody_is_an_error() -> None:
    mean = Average(like=weights(1.0))
    with pytest.raises(ValueError, match="no client replied"):
        mean.result()
    mean.add(weights(1.0), 0)
    with pytest.raises(ValueError, match="no client replied"):
        mean.result()


def test_a_reply_of_another_shape_is_refused_and_changes_nothing() -> None:
    mean = Average(like=weights(1.0))
    mean.add(weights(1.0), 1)
    with pytest.raises(ValueError, match="other tensors"):
        mean.add(weights(1.0, 2.0), 1)
    assert mean.result().parameters["w"].tolist() == [1.0]
