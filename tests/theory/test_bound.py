"""The lower bound on unlearning time: flows and diffusions whose time is known, networks, and Table 3."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from sklearn.datasets import load_digits
from tanh_network import RecordedMemory, draw, sample_gradients, signature, tiny
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedunlearn.evaluation.flops import SampleFlops
from fedunlearn.models.cnn import LayerNormCNN
from fedunlearn.negation import negate
from fedunlearn.randomness import seeded
from fedunlearn.theory.bound import (
    Bound,
    bound_along,
    gap_gradient_norm,
    lipschitz_over_batches,
    loss_gap,
    paper_flops,
    step_flops,
    steps_of,
    unlearning_time,
)
from fedunlearn.theory.losses import central_differences, mean_loss

Floats = NDArray[np.float64]
TIMES = (0.01, 0.1, 1.0, 10.0)
POSITIVE = st.floats(0.05, 5)
RETAINED, FORGOTTEN = draw(60, seed=1), draw(30, seed=2)


# The formula, on flows


@given(POSITIVE, POSITIVE, POSITIVE, st.floats(-5, 5))
def test_section_5_of_a_linear_loss_the_bound_is_the_time(c: float, k: float, t: float, start: float) -> None:
    """L = c theta, delta = k theta: nothing is lost in Cauchy's and Schwarz's inequality."""
    end = start - c * t
    assert unlearning_time(k * start, k * end, k, c * (start - end)) == pytest.approx(t, rel=1e-6)


def quadratic_flow(seed: int, t: float) -> tuple[float, float, float, float]:
    """delta at both ends, its constant and the drop of L = (theta - a)' H (theta - a) / 2 with a linear delta."""
    rng = np.random.default_rng(seed)
    values, basis = rng.uniform(0.1, 3, 6), np.linalg.qr(rng.normal(size=(6, 6)))[0]
    start, weights = rng.normal(size=6), rng.normal(size=6)  # seen from a

    def at(time: float) -> Floats:
        where: Floats = basis @ (np.exp(-values * time) * (basis.T @ start))
        return where

    def loss(where: Floats) -> float:
        return float(values @ (basis.T @ where) ** 2 / 2)

    drop = loss(at(0)) - loss(at(t))
    return float(weights @ at(0)), float(weights @ at(t)), float(np.linalg.norm(weights)), drop


@pytest.mark.parametrize("t", TIMES)
def test_section_5_of_a_quadratic_flow_the_bound_is_below_the_time(t: float) -> None:
    for seed in range(40):
        bound = unlearning_time(*quadratic_flow(seed, t))
        assert 0 < bound <= t


def test_erratum_1_the_numerator_without_delta_is_no_bound() -> None:
    """(7) prints (delta(theta_t) - theta_0)^2. L = theta, delta = 5 theta, from theta = 1 for t = 0.1."""
    start, t = 1.0, 0.1
    end = start - t
    printed = (5 * end - start) ** 2 / (5**2 * (start - end))
    assert printed > 4 * t
    assert unlearning_time(5 * start, 5 * end, 5, start - end) == pytest.approx(t)


def test_erratum_2_without_its_squares_the_bound_is_false() -> None:
    """(18) stays where it is as t goes to 0; 7, 8 and 82 have the squares."""
    t, false = 0.01, 0
    for seed in range(40):
        start, end, lipschitz, drop = quadratic_flow(seed, t)
        false += abs(end - start) / (lipschitz * drop) > t
        assert unlearning_time(start, end, lipschitz, drop) <= t
    assert false > 30


def test_erratum_3_the_loss_sinks_by_the_squared_gradient_and_the_second_integral_is_the_time() -> None:
    """(12) lacks its sign of equality; and with 1 / t or 1 in place of t (16) would not hold."""
    values, start, t, steps = np.array([0.2, 1.5]), np.array([1.0, -2.0]), 2.0, 20_000
    times = (np.arange(steps) + 0.5) * t / steps
    gradients = values * start * np.exp(-np.outer(times, values))
    squares = float((gradients**2).sum() * t / steps)
    end = start * np.exp(-values * t)
    drop = float(values @ (start**2 - end**2) / 2)
    assert squares == pytest.approx(drop, rel=1e-6)
    way = float(np.linalg.norm(end - start))
    assert way <= math.sqrt(drop * t)
    assert way > math.sqrt(drop * 1)
    assert way > math.sqrt(drop / t)


# Noise


def diffusion(rate: float, sigma: float, start: float, t: float) -> dict[str, float]:
    """Of Ornstein and Uhlenbeck: L = rate theta^2 / 2, delta = theta, whose constant is 1."""
    spread = sigma**2 * -math.expm1(-2 * rate * t) / (2 * rate)
    moved = math.sqrt((start * math.expm1(-rate * t)) ** 2 + spread)
    drop = rate * (start**2 - (start * math.exp(-rate * t)) ** 2 - spread) / 2
    return {"moved": moved, "drop": abs(drop), "rise": sigma**2 * rate * t / 2, "noise": sigma**2 * t}


@pytest.mark.parametrize(("rate", "printed"), [(0.5, 1.55), (0.05, 19.5)])
def test_erratum_4_with_noise_the_printed_bound_is_false_and_the_corrected_one_true(
    rate: float, printed: float
) -> None:
    """The proof leaves out the martingale part of theta_t - theta_0. Here t = 1."""
    of = diffusion(rate, 1.0, 0.0, 1.0)
    assert unlearning_time(0, of["moved"], 1, of["drop"], of["rise"]) == pytest.approx(printed, rel=0.01)
    assert unlearning_time(0, of["moved"], 1, of["drop"], of["rise"], noise=of["noise"]) == 0


@given(POSITIVE, st.floats(0.01, 2), st.floats(-5, 5), POSITIVE)
def test_erratum_4_the_corrected_bound_holds_for_every_such_diffusion(
    rate: float, sigma: float, start: float, t: float
) -> None:
    of = diffusion(rate, sigma, start, t)
    bound = unlearning_time(0, of["moved"], 1, of["drop"], of["rise"], noise=of["noise"])
    assert bound <= t * (1 + 1e-9)


def test_erratum_4_the_corrected_bound_is_not_empty() -> None:
    of = diffusion(0.5, 0.1, 3.0, 1.0)
    assert unlearning_time(0, of["moved"], 1, of["drop"], of["rise"], noise=of["noise"]) > 0.8


def test_erratum_4_a_brownian_motion_needs_no_infinite_time() -> None:
    """No loss at all: the printed bound has a denominator of 0."""
    moved = math.sqrt(0.3**2 * 2)
    assert unlearning_time(0, moved, 1, 0) == math.inf
    assert unlearning_time(0, moved, 1, 0, noise=0.3**2 * 2 * (1 + 1e-12)) == 0


def test_erratum_4_noise_enters_by_sigma_and_its_transpose() -> None:
    """(9) and (20) square Sigma. With Sigma = [[0, 1], [0, 0]] that is 0, and yet L = theta_1^2 / 2 rises."""
    sigma, hessian = np.array([[0.0, 1.0], [0.0, 0.0]]), np.diag([1.0, 0.0])
    of = diffusion(1.0, 1.0, 0.0, 1e-6)  # theta_1 by itself
    risen = of["drop"] / 1e-6
    assert np.trace(sigma @ sigma.T @ hessian) / 2 == pytest.approx(risen, rel=1e-5)
    assert np.trace(sigma @ sigma @ hessian) == 0


def test_erratum_15_between_checkpoints_the_constant_may_be_larger_and_the_bound_false() -> None:
    """L = theta, from 0 for t = 1, and delta = tanh(20 (theta + 0.5)): flat where one looks, steep between."""
    slopes = {count: max(20 / math.cosh(20 * (0.5 - t)) ** 2 for t in np.linspace(0, 1, count)) for count in (2, 101)}
    start, end = math.tanh(10), math.tanh(-10)
    assert unlearning_time(start, end, slopes[2], 1.0) > 1000
    assert unlearning_time(start, end, slopes[101], 1.0) < 1


@given(POSITIVE, POSITIVE, POSITIVE, st.floats(0, 0.9), st.floats(0, 0.2))
def test_the_bound_by_hand(gap: float, lipschitz: float, drop: float, epsilon: float, noise: float) -> None:
    plain = unlearning_time(gap, 0, lipschitz, drop)
    assert plain == pytest.approx((gap / lipschitz) ** 2 / drop)
    assert unlearning_time(0, gap, lipschitz, drop, epsilon=epsilon) == pytest.approx(plain * (1 - epsilon) ** 2)
    assert unlearning_time(gap, 0, lipschitz, drop / 3, 2 * drop / 3) == pytest.approx(plain)
    assert unlearning_time(gap, 0, lipschitz, drop, noise=noise) <= plain


def test_what_is_out_of_range_is_said() -> None:
    for wrong in ((1, 0, 0, 1), (1, 0, math.nan, 1), (1, 0, -1, 1)):
        with pytest.raises(ValueError, match=r"Lipschitz constant is .*: give one above 0"):
            unlearning_time(*wrong)
    with pytest.raises(ValueError, match=r"loss_drop is -0.1: give 0 or more"):
        unlearning_time(1, 0, 1, -0.1)
    with pytest.raises(ValueError, match=r"noise is nan"):
        unlearning_time(1, 0, 1, 1, noise=math.nan)
    with pytest.raises(ValueError, match=r"from nan to 1: give finite ones"):
        unlearning_time(math.nan, 1, 1, 1)
    with pytest.raises(ValueError, match=r"epsilon is 1: give a share"):
        unlearning_time(1, 0, 1, 1, epsilon=1)
    assert unlearning_time(1, 1, 1, 0) == 0


# Costs


def test_section_5_table_3_round_trip() -> None:
    """ResNet-18: t = 4.77 are 4770 steps of 9 clients, 64 samples each, 1.81856e9 multiply-adds: 3.00e16."""
    steps = steps_of(4.77, 0.001)
    flops = paper_flops(steps, 9, 64, 2 * 1.81856e9)
    assert f"{flops:.2e}" == "3.00e+16"
    assert flops / (9 * 64 * 6 * 1.81856e9) * 0.001 == pytest.approx(4.77)


def test_section_5_with_momentum_each_step_goes_ten_times_as_far() -> None:
    assert steps_of(4.77, 0.001, 0.9) == pytest.approx(477)


def test_counted_operations_are_a_little_less_than_three_forward_passes() -> None:
    """ResNet-18 of ten classes; the first convolution has no gradient for the image."""
    counted = SampleFlops(3_627_132_928, 10_645_370_880 - 3_627_132_928)
    assert step_flops(10, 9, 64, counted) == 10 * 9 * 64 * 10_645_370_880
    ratio = step_flops(10, 9, 64, counted) / paper_flops(10, 9, 64, counted.forward)
    assert ratio == pytest.approx(2.9349 / 3, rel=1e-4)


# Models


def autograd_gap(model: nn.Module) -> Tensor:
    losses = [cross_entropy(model(x), y) for x, y in (RETAINED, FORGOTTEN)]
    return (losses[0] - losses[1]).abs()


def test_section_5_the_gap_is_definition_1s_and_its_gradient_autograds() -> None:
    for seed in range(4):
        model = tiny(seed)
        gap = autograd_gap(model)
        gradient = torch.cat([one.reshape(-1) for one in torch.autograd.grad(gap, list(model.parameters()))])
        for size in (7, 100):
            assert loss_gap(model, RETAINED, FORGOTTEN, batch_size=size) == pytest.approx(gap.item(), rel=1e-12)
            norm = gap_gradient_norm(model, RETAINED, FORGOTTEN, batch_size=size)
            assert norm == pytest.approx(gradient.norm().item(), rel=1e-10)
            assert norm == pytest.approx(gap_gradient_norm(model, FORGOTTEN, RETAINED), rel=1e-10)


def test_the_gradient_of_the_gap_takes_two_copies_of_the_parameters_and_a_whole_bound_three() -> None:
    """Two million parameters; what else is counted are parts of a layer's size, a sixteenth."""
    torch.manual_seed(0)
    models = [nn.Sequential(*(nn.Linear(360, 360) for _ in range(16)), nn.Linear(360, 3)) for _ in range(2)]
    samples = torch.randn(6, 360), torch.arange(6) % 3
    size = sum(one.nbytes for one in models[0].parameters())
    with RecordedMemory() as memory:
        gap_gradient_norm(models[0], samples, samples, batch_size=2)
    assert size < memory.peak < 2.2 * size
    first, end = models if mean_loss(models[0], samples) > mean_loss(models[1], samples) else models[::-1]
    with RecordedMemory() as memory:
        bound_along([(0, first), (1, end)], end, end, samples, samples, lr=0.1, batch_size=2, draws=2)
    assert memory.peak < 3.2 * size


def test_over_mini_batches_the_largest_is_at_least_that_of_all_and_with_all_it_is() -> None:
    model = tiny()
    whole = gap_gradient_norm(model, RETAINED, FORGOTTEN)
    found = lipschitz_over_batches(model, RETAINED, FORGOTTEN, batch_size=5, draws=20)
    assert found > whole
    assert found == lipschitz_over_batches(model, RETAINED, FORGOTTEN, batch_size=5, draws=20)
    assert lipschitz_over_batches(model, RETAINED, FORGOTTEN, batch_size=60, draws=2) == pytest.approx(whole)


def test_over_mini_batches_of_one_it_is_the_brute_forces() -> None:
    """So many draws that all pairs of two and three samples come."""
    model, (a, b) = tiny(), (draw(2, 5), draw(3, 6))
    ones, others = sample_gradients(model, a), sample_gradients(model, b)
    expected = max(float((one - other).norm()) for one in ones for other in others)
    assert lipschitz_over_batches(model, a, b, batch_size=1, draws=60) == pytest.approx(expected)


def descent(model: nn.Module, lr: float, steps: int, every: int) -> Iterator[tuple[float, nn.Module]]:
    """Gradient descent on all that stays, by small steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for step in range(steps + 1):
        if step % every == 0:
            yield step * lr, copy.deepcopy(model)
        optimizer.zero_grad()
        cross_entropy(model(RETAINED[0]), RETAINED[1]).backward()
        optimizer.step()


def measured(path: list[tuple[float, nn.Module]]) -> Bound:
    end = path[-1][1]
    return bound_along(path, end, end, RETAINED, FORGOTTEN, lr=0.01, batch_size=60, draws=2)


@pytest.mark.parametrize("steps", [40, 200, 1000])
def test_along_gradient_descent_the_bound_is_below_the_time(steps: int) -> None:
    for seed in range(2):
        path = list(descent(tiny(seed), 0.01, steps, steps // 8))
        found = measured(path)
        assert found.noise == found.stochastic == found.stochastic_diagonal == 0
        assert 0 < found.printed == found.corrected < path[-1][0]
        assert found.corrected_steps == pytest.approx(found.corrected / 0.01)


def test_at_once_the_bound_is_the_time_times_the_squared_cosine_of_both_gradients() -> None:
    """As t goes to 0, delta changes by t times the product of the gradients, and the loss by t times one's square."""
    model = tiny(3)
    flat = [
        torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss, list(model.parameters()))])
        for loss in (autograd_gap(model), cross_entropy(model(RETAINED[0]), RETAINED[1]))
    ]
    cosine = float(torch.cosine_similarity(flat[0], flat[1], dim=0))
    path = list(descent(model, 1e-5, 2, 1))
    found = measured(path)
    assert found.corrected / path[-1][0] == pytest.approx(cosine**2, rel=1e-3)
    assert 0.001 < cosine**2 < 1


def test_every_term_is_what_its_name_says() -> None:
    path = list(descent(tiny(), 0.01, 60, 20))
    retrained, best = tiny(1), list(descent(tiny(), 0.01, 200, 200))[-1][1]
    found = bound_along(
        path, retrained, best, RETAINED, FORGOTTEN, lr=0.02, batch_size=8, draws=6, epsilon=0.05, seed=4
    )
    first = path[0][1]
    assert [one.time for one in found.checkpoints] == [0, 0.2, 0.4, pytest.approx(0.6)]
    for (_, model), one in zip(path, found.checkpoints, strict=True):
        assert one.loss_retained == mean_loss(model, RETAINED)
        assert one.loss_forgotten == mean_loss(model, FORGOTTEN)
        assert one.gap == loss_gap(model, RETAINED, FORGOTTEN)
        assert one.gradient == gap_gradient_norm(model, RETAINED, FORGOTTEN)
        assert one.rise_error > 0
    assert found.gap_start == loss_gap(first, RETAINED, FORGOTTEN)
    assert found.gap_retrained == loss_gap(retrained, RETAINED, FORGOTTEN)
    assert found.lipschitz == max(one.gradient for one in found.checkpoints)
    assert found.lipschitz_batches == lipschitz_over_batches(first, RETAINED, FORGOTTEN, batch_size=8, draws=6, seed=4)
    assert found.loss_drop == mean_loss(first, RETAINED) - mean_loss(best, RETAINED)
    times = [one.time for one in found.checkpoints]
    for total, values in (
        (found.noise, [one.noise for one in found.checkpoints]),
        (found.stochastic, [abs(one.rise) for one in found.checkpoints]),
        (found.stochastic_diagonal, [abs(one.rise_diagonal) for one in found.checkpoints]),
    ):
        assert total == pytest.approx(trapezoid(values, times))
        assert total > 0
    terms = found.gap_start, found.gap_retrained, found.lipschitz, found.loss_drop
    assert found.printed == unlearning_time(*terms, found.stochastic_diagonal, epsilon=0.05)
    assert found.corrected == unlearning_time(*terms, found.stochastic, noise=found.noise, epsilon=0.05)
    assert found.printed_steps == found.printed / 0.02
    assert json.loads(json.dumps(dataclasses.asdict(found)))["checkpoints"][1]["time"] == 0.2


def test_a_model_of_the_path_may_be_better_than_the_best() -> None:
    path = list(descent(tiny(), 0.01, 40, 20))
    found = bound_along(path, path[0][1], path[0][1], RETAINED, FORGOTTEN, lr=0.01, batch_size=60)
    assert found.loss_least == mean_loss(path[-1][1], RETAINED)


def test_the_path_may_be_a_generator_and_curvature_by_differences_gives_the_same() -> None:
    end = tiny(1)
    exact, differences = (
        bound_along(
            descent(tiny(), 0.01, 20, 20), end, end, RETAINED, FORGOTTEN, lr=0.01, batch_size=8, draws=4, **options
        )
        for options in ({}, {"curvature": central_differences})
    )
    assert exact.stochastic == pytest.approx(differences.stochastic, rel=1e-6)
    assert exact.stochastic != differences.stochastic
    assert exact.corrected == pytest.approx(differences.corrected, rel=1e-6)


def test_models_are_left_as_they_were_and_the_same_seed_gives_the_same() -> None:
    path = list(descent(tiny(), 0.01, 20, 20))
    models = [path[0][1], path[1][1], tiny(1), tiny(2)]
    before = [signature(model) for model in models]
    one, again, other = (
        bound_along(path, models[2], models[3], RETAINED, FORGOTTEN, lr=0.01, batch_size=8, draws=4, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one == again != other
    assert [signature(model) for model in models] == before


def test_paths_that_are_none() -> None:
    first, end = (model for _, model in descent(tiny(), 0.01, 20, 20))
    for path, message in {
        ((0, first),): r"a path of 1 models is none",
        (): r"a path of 0 models",
        ((0.1, first), (1, end)): r"a checkpoint at 0.1 is out of order: give times that rise from 0",
        ((0, first), (0, end)): r"a checkpoint at 0 is out of order",
        ((0, end), (1, first)): r"train `best` for longer",
    }.items():
        with pytest.raises(ValueError, match=message):
            bound_along(path, end, first, RETAINED, FORGOTTEN, lr=0.01, batch_size=60)


@pytest.mark.long
def test_negation_is_promised_to_be_faster_than_natural_forgetting_and_is() -> None:
    """Digits, of which a hundred with random labels are to be forgotten; LayerNormCNN. A is not negligible here."""
    generator, digits = torch.Generator().manual_seed(0), load_digits()
    order = torch.randperm(len(digits.target), generator=generator)[:1000]
    x = torch.from_numpy(digits.images).float()[order, None] / 16
    y = torch.from_numpy(digits.target)[order]
    y[:100] = torch.randint(0, 10, (100,), generator=generator)
    goes, stays = (x[:100], y[:100]), (x[100:], y[100:])

    def trained(model: nn.Module, samples: tuple[Tensor, Tensor], at: list[int], seed: int) -> list[nn.Module]:
        draws, optimizer, found = torch.Generator().manual_seed(seed), torch.optim.SGD(model.parameters(), 0.05), []
        for step in range(at[-1] + 1):
            if step in at:
                found.append(copy.deepcopy(model))
            batch = torch.randint(0, len(samples[1]), (64,), generator=draws)
            optimizer.zero_grad()
            cross_entropy(model(samples[0][batch]), samples[1][batch]).backward()
            optimizer.step()
        return found

    def fresh(seed: int) -> nn.Module:
        with seeded(seed):
            return LayerNormCNN(10, (1, 8, 8), (8, 16), 3)

    (original,) = trained(fresh(0), (x, y), [3000], 0)
    retrained, best = trained(fresh(1), stays, [1500, 3000], 1)
    steps = [0, 2, 5, 20, 50, 200, 400]
    bounds = []
    for model in (original, negate(copy.deepcopy(original), ["conv1"])):
        path = zip([0.05 * step for step in steps], trained(copy.deepcopy(model), stays, steps, 2), strict=True)
        bounds.append(bound_along(path, retrained, best, stays, goes, lr=0.05, batch_size=64, draws=10))
    natural, negation = bounds
    assert natural.printed > 50 * negation.printed
    assert natural.checkpoints[-1].gap < natural.gap_retrained / 4
    assert negation.checkpoints[-1].gap > negation.gap_retrained * 0.9
    assert negation.printed < 1
    assert negation.stochastic > 10 * negation.stochastic_diagonal
    assert negation.stochastic > negation.loss_drop
