"""The relations of activations to their mirror images: the table of section 4.4, and a proof in numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.theory.parity import parity, skip

Psi = Callable[[Tensor], Tensor]

SIGMOID_LIKE: dict[str, Psi] = {
    "sigmoid": torch.sigmoid,
    "hard-sigmoid": F.hardsigmoid,
    "step with 1/2 at 0": lambda x: torch.heaviside(x, x.new_tensor(0.5)),
}
ODD: dict[str, Psi] = {"tanh": torch.tanh, "sin": torch.sin, "identity": lambda x: x, "softsign": F.softsign}
EVEN: dict[str, Psi] = {"x^2": torch.square, "|x|": torch.abs, "cos": torch.cos}
NONE: dict[str, tuple[Psi, float]] = {
    "relu": (torch.relu, 1.0),
    "gelu": (F.gelu, 1.0),
    "silu": (F.silu, 1.0),
    "softplus": (F.softplus, 1.0),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.2), 1.2),
}


def smallest_singular_value(psi: Psi) -> float:
    """Of [psi(x), psi(-x), 1], columns of length one, as section 4.4 has it."""
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 3, 1000))
    columns = np.stack([psi(x).numpy(), psi(-x).numpy(), np.ones(1000)], 1)
    return float(np.linalg.svd(columns / np.linalg.norm(columns, axis=0), compute_uv=False)[-1])


@pytest.mark.parametrize("name", SIGMOID_LIKE)
def test_section_4_4_sigmoid_like_are_1_1_1(name: str) -> None:
    found = parity(SIGMOID_LIKE[name])
    assert found is not None
    assert (found.kind, found.a, found.b, found.at_zero) == ("sigmoid-like", 1, 1, True)
    assert found.c == pytest.approx(1, abs=1e-12)
    assert smallest_singular_value(SIGMOID_LIKE[name]) < 1e-6


@pytest.mark.parametrize("name", ODD)
def test_section_4_4_odd_are_1_1_0(name: str) -> None:
    found = parity(ODD[name])
    assert found is not None
    assert (found.kind, found.a, found.b, found.c, found.at_zero) == ("odd", 1, 1, 0, True)
    assert smallest_singular_value(ODD[name]) < 1e-6


@pytest.mark.parametrize("name", EVEN)
def test_section_4_4_even_are_1_minus_1_0(name: str) -> None:
    found = parity(EVEN[name])
    assert found is not None
    assert (found.kind, found.a, found.b, found.c) == ("even", 1, -1, 0)
    assert smallest_singular_value(EVEN[name]) < 1e-6


@pytest.mark.parametrize("name", NONE)
def test_section_4_4_rectifiers_have_no_relation_but_a_straight_odd_part(name: str) -> None:
    psi, slope = NONE[name]
    assert parity(psi) is None
    assert smallest_singular_value(psi) > 1e-3
    assert skip(psi) == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize("psi", [torch.tanh, torch.sigmoid, torch.abs, F.elu, F.mish, torch.exp])
def test_a_bent_odd_part_or_none_is_no_skip(psi: Psi) -> None:
    assert skip(psi) is None


def test_the_skip_of_the_identity_is_twice_itself() -> None:
    assert skip(lambda x: x) == pytest.approx(2)


def test_the_papers_step_obeys_its_relation_everywhere_but_at_zero() -> None:
    found = parity(lambda x: (x > 0).double())
    assert found is not None
    assert (found.kind, found.c, found.at_zero) == ("sigmoid-like", 1, False)
    assert found.formula == "psi(x) + psi(-x) = 1"


def test_a_relation_of_the_middle_alone_is_none() -> None:
    assert parity(lambda x: x.clamp(-50, 60)) is None
    assert parity(lambda x: torch.where(x.abs() < 5, torch.sin(x), torch.cos(x))) is None
    assert parity(lambda x: torch.where(x.abs() < 0.5, torch.relu(x), torch.zeros_like(x))) is None


@pytest.mark.parametrize(
    "psi",
    [
        nn.Hardtanh(-200, 300),
        nn.Hardtanh(-200, 201),
        lambda x: x.clamp(max=6e4),
        lambda x: x.clamp(-9e5, 9.1e5),
        lambda x: x.clamp(min=-6e4).square(),
        lambda x: x.clamp(min=200),
        lambda x: torch.sigmoid(x) + F.relu(x - 5e5),
    ],
)
def test_a_relation_that_ends_far_out_is_none(psi: Psi) -> None:
    assert parity(psi) is None
    assert parity(lambda x: psi(x - 3), 6.0) is None


@pytest.mark.parametrize("name", [*ODD, *EVEN, *SIGMOID_LIKE])
def test_a_relation_in_single_precision_or_about_another_point_holds_far_out(name: str) -> None:
    psi = (ODD | EVEN | SIGMOID_LIKE)[name]
    expected, single, moved = parity(psi), parity(lambda x: psi(x.float())), parity(lambda x: psi(x - 0.3), 0.6)
    assert expected is not None
    assert single is not None
    assert moved is not None
    assert single.kind == moved.kind == expected.kind


def test_a_clamped_straight_odd_part_is_no_skip() -> None:
    assert skip(lambda x: x.clamp(0, 200)) is None
    assert skip(lambda x: F.gelu(x).clamp(max=6e4)) is None


def test_the_size_of_an_activation_does_not_decide() -> None:
    assert parity(lambda x: 1e-9 * torch.relu(x)) is None
    assert parity(lambda x: 1e9 * torch.relu(x)) is None
    tall = parity(lambda x: 1e6 + torch.tanh(x))
    assert tall is not None
    assert tall.c == pytest.approx(2e6)
    rounded = parity(lambda x: torch.tanh(x.float()))
    assert rounded is not None
    assert rounded.kind == "odd"


def test_a_constant_is_even_and_what_is_nowhere_finite_has_no_relation() -> None:
    constant = parity(lambda x: torch.full_like(x, 3.0))
    assert constant is not None
    assert constant.kind == "even"
    assert parity(torch.log) is None  # of x or of -x
    assert skip(torch.log) is None


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.sampled_from([-5.0, 0.0, 0.01, 2.0]), st.booleans())
def test_there_are_no_other_relations_than_these_three(terms: list[float], height: float, even: bool) -> None:
    """Any odd function about any height, and any even one, is found; add both kinds, and there is none."""
    waves = [torch.sin, torch.tanh, lambda x: torch.sin(3 * x), torch.atan]
    bumps = [torch.cos, lambda x: 1 / (1 + x * x), lambda x: torch.cos(2 * x), lambda x: torch.exp(-x * x)]

    def sum_of(parts: list[Psi]) -> Psi:
        return lambda x: sum((t * p(x) for t, p in zip(terms, parts, strict=True)), torch.full_like(x, height))

    found = parity(sum_of(bumps if even else waves))
    assert found is not None
    if max(map(abs, terms)) > 1e-3:
        assert found.kind == ("even" if even else "odd" if height == 0 else "sigmoid-like")
        if found.kind == "sigmoid-like":
            assert found.c == pytest.approx(2 * height, rel=1e-9)
        x = torch.linspace(-3, 3, 50, dtype=torch.float64)
        mixed = sum_of(bumps)(x) + sum_of(waves)(x)
        assert parity(lambda x: sum_of(bumps)(x) + sum_of(waves)(x)) is None or not mixed.std() > 1e-3


def test_a_shifted_argument_has_its_own_relation() -> None:
    """Behind a sigmoid, the argument has become 1 - x."""
    assert parity(torch.tanh, 1.0) is None
    assert parity(torch.square, 1.0) is None
    centred = parity(lambda x: torch.tanh(x - 0.5), 1.0)
    assert centred is not None
    assert centred.kind == "odd"
    moved = parity(lambda x: 2 * x + 3, 1.0)  # 2x + 3 + 2(1 - x) + 3
    assert moved is not None
    assert moved.c == pytest.approx(8)
    assert moved.formula == "psi(x) + psi(1 - x) = 8"


@pytest.mark.parametrize("psi", [nn.LayerNorm(7), lambda x: x.sum(), lambda x: x.reshape(2, -1)])
def test_what_is_not_element_by_element_is_refused(psi: Psi) -> None:
    with pytest.raises(ValueError, match="element by element"):
        parity(psi)


def test_an_activation_in_place_is_no_trouble() -> None:
    assert parity(nn.ReLU(inplace=True)) is None
    tanh = parity(torch.tanh_)
    assert tanh is not None
    assert tanh.kind == "odd"
