"""Losses, gradients and curvatures: against autograd's full Hessian, and what they leave behind and hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tanh_network import RecordedMemory, draw, flat_hessian, signature, tiny
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from fedunlearn.theory.losses import (
    add_gradient,
    central_differences,
    double_backward,
    gradient,
    mean_loss,
    moved,
    square,
    zeros,
)

CURVATURES = [double_backward, central_differences]


def direction(model: nn.Module, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(one.shape, generator=generator).to(one) for one in moved(model).values()]


def test_the_mean_loss_is_that_of_the_whole_in_evaluation_mode_however_it_is_cut() -> None:
    model, (x, y) = tiny(), draw(37)
    noisy = nn.Sequential(nn.Dropout(0.9), model)
    expected = cross_entropy(model(x), y).item()
    for size in (1, 5, 36, 100):
        assert mean_loss(noisy, (x, y), batch_size=size) == pytest.approx(expected, rel=1e-12)


def test_gradients_add_up_to_autograds() -> None:
    model, (x, y) = tiny(), draw(37)
    expected = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    into = [one + 1 for one in zeros(model)]
    add_gradient(into, model, (x, y), -2.0, batch_size=5)
    for total, at_once, theirs in zip(into, gradient(model, (x, y)), expected, strict=True):
        torch.testing.assert_close(total, 1 - 2 * theirs)
        torch.testing.assert_close(at_once, theirs)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("size", [7, 100])
def test_section_5_both_curvatures_are_the_full_hessians(curvature: Callable[..., float], size: int) -> None:
    """In float64 central differences are right to seven digits."""
    model, samples = tiny(), draw(37)
    hessian = flat_hessian(model, samples)
    for seed in range(5):
        z = direction(model, seed)
        flat = torch.cat([one.reshape(-1) for one in z])
        exact = float(flat @ hessian @ flat)
        assert curvature(model, samples, z, batch_size=size) == pytest.approx(exact, rel=1e-7, abs=1e-8)


def test_section_5_central_differences_are_right_to_three_digits_in_float32() -> None:
    model, (x, y) = tiny(), draw(64)
    for seed in range(5):
        exact = double_backward(model, (x, y), direction(model, seed))
        single = tiny().float()
        found = central_differences(single, (x.float(), y), direction(single, seed))
        assert found == pytest.approx(exact, rel=2e-3)


def test_at_kinks_central_differences_fail_and_double_backward_is_the_hessian_beside_them() -> None:
    """Section 5 of the specification finds an error of 1e-9, which holds for smooth networks alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    x, y = draw(1000)
    single = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    single.load_state_dict(model.state_dict())
    far = []
    for seed in range(3):
        exact = double_backward(model, (x, y), direction(model, seed))
        smooth = double_backward(single, (x.float(), y), direction(single, seed))
        assert smooth == pytest.approx(exact, rel=1e-3)
        far.append(abs(central_differences(single, (x.float(), y), direction(single, seed)) - exact) / abs(exact))
    assert max(far) > 0.05


class Attention(nn.Module):
    """Fused attention, which has no second derivative on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.embed(x[:, None, :, None]).chunk(3, -1)  # four tokens of eight numbers, one head
        return self.head(gelu(scaled_dot_product_attention(q, k, v)).mean((1, 2)))


def test_section_5_attention_has_a_second_derivative_as_matrix_products() -> None:
    """Fused, on CPUs, it has none."""
    torch.manual_seed(0)
    model, samples = Attention().double(), draw(20)
    exact = double_backward(model, samples, direction(model))
    assert central_differences(model, samples, direction(model)) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_along_nothing_nothing_curves(curvature: Callable[..., float]) -> None:
    assert curvature(tiny(), draw(5), zeros(tiny())) == 0


class Shared(nn.Module):
    """A parameter of two names, one that is frozen, one without a part in the loss, and one added to another."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.one.bias.requires_grad_(False)
        self.unused, self.more = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(4))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.two(torch.tanh(self.one(x))) + (self.two.bias + self.more))


@pytest.mark.parametrize("curvature", CURVATURES)
def test_shared_frozen_and_unused_parameters(curvature: Callable[..., float]) -> None:
    torch.manual_seed(0)
    model, (x, y) = Shared().double(), draw(11)
    assert list(moved(model)) == ["unused", "more", "one.weight", "two.bias", "norm.weight", "norm.bias"]
    hessian = flat_hessian(model, (x, y))
    z = direction(model)
    flat = torch.cat([one.reshape(-1) for one in z])
    assert curvature(model, (x, y), z) == pytest.approx(float(flat @ hessian @ flat), rel=1e-6)


@pytest.mark.parametrize(
    "use",
    [
        mean_loss,
        gradient,
        lambda model, samples: add_gradient(zeros(model), model, samples),
        lambda model, samples: double_backward(model, samples, direction(model)),
        lambda model, samples: central_differences(model, samples, direction(model)),
    ],
)
def test_a_model_is_left_as_it_was(use: Callable[..., object]) -> None:
    torch.manual_seed(0)
    model, samples = Shared().double(), draw(11)
    model.norm.eval()
    model.more.grad = torch.full((4,), 7.0, dtype=torch.float64)
    before = signature(model)
    with torch.no_grad():
        use(model, samples)
    assert signature(model) == before


def test_the_mode_comes_back_after_an_error_too() -> None:
    model = tiny()
    with pytest.raises(RuntimeError):
        mean_loss(model, (torch.zeros(2, 9).double(), torch.zeros(2, dtype=torch.long)))
    assert model.training


def test_what_cannot_be_computed_is_said() -> None:
    model, (x, y) = tiny(), draw(5)
    with pytest.raises(ValueError, match=r"5 inputs with 4 classes"):
        mean_loss(model, (x, y[:4]))
    with pytest.raises(ValueError, match=r"one or more"):
        gradient(model, (x[:0], y[:0]))
    with pytest.raises(ValueError, match=r"the loss of the model is nan"):
        mean_loss(model, (x * torch.nan, y))
    with pytest.raises(ValueError, match=r"call model.float"):
        central_differences(tiny().half(), (x.half(), y), zeros(tiny().half()))
    with pytest.raises(ValueError, match=r"requires_grad_"):
        zeros(model.requires_grad_(False))


def test_squares_are_summed_in_float64() -> None:
    """In float32 a sum of 2^25 ones by itself would stop at 2^24; here pieces of a tensor of several are summed."""
    ones = torch.full((3, 100_001), 0.1)
    assert square([ones, ones]) == pytest.approx(6 * 100_001 * float(torch.tensor(0.1)) ** 2, rel=1e-12)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_a_curvature_holds_two_copies_of_the_parameters_beside_the_model(curvature: Callable[..., float]) -> None:
    """Those of the direction and of one gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(500, 500) for _ in range(8)), nn.Linear(500, 3))
    samples = torch.randn(2, 500), torch.tensor([0, 1])
    size = sum(one.nbytes for one in model.parameters())
    with RecordedMemory() as memory:
        curvature(model, samples, direction(model))
    assert memory.peak < 2.3 * size
