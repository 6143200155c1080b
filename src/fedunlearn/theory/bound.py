"""How long unlearning takes at least: Theorems 1 and 5 of the paper, and the terms that Table 3 was made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from fedunlearn.evaluation.flops import SampleFlops
from fedunlearn.theory.losses import Samples, add_gradient, double_backward, mean_loss, square, zeros
from fedunlearn.theory.noise import Curvature, diagonal_noise, full_noise

__all__ = [
    "Bound",
    "Checkpoint",
    "bound_along",
    "gap_gradient_norm",
    "lipschitz_over_batches",
    "loss_gap",
    "paper_flops",
    "step_flops",
    "steps_of",
    "unlearning_time",
]


def unlearning_time(
    delta_start: float,
    delta_retrained: float,
    lipschitz: float,
    loss_drop: float,
    stochastic: float = 0.0,
    *,
    noise: float = 0.0,
    epsilon: float = 0.0,
) -> float:
    """The least time in which SGD on what stays closes the loss gap delta (`loss_gap`) to a retrained model's.

    Theorem 1 (eq. 2, 7 and 82), with the change of delta as in eq. 83::

        t >= ((1 - epsilon) |delta_retrained - delta_start| / lipschitz - sqrt(noise))_+^2 / (loss_drop + stochastic)

    Departures: (7) has lost a delta in its numerator. (18), the proof's last line, has lost the squares of its
    numerator and of the constant, which 7, 8 and 82 have. And as printed, that is without ``noise``, the bound is
    false for stochastic gradients: the proof drops the martingale part of theta_t - theta_0, whose mean square is
    the integral of Tr S. A Brownian motion without any loss would need infinite time to move. With it,
    sqrt(E |theta_t - theta_0|^2) <= sqrt(t (loss_drop + stochastic)) + sqrt(noise), which is solved for t.

    Args:
        delta_start: delta of the model that unlearning starts from.
        delta_retrained: delta of a model trained on what stays from scratch.
        lipschitz: constant of delta in the parameters, by their Euclidean norm; above 0.
        loss_drop: by how much the loss on what stays can sink, 0 or more (eq. 86).
        stochastic: A, what noise adds to that loss on the way (eq. 9), 0 or more.
        noise: N, the integral of Tr S over the way: its mean squared length by noise alone; 0 gives the bound as it
            is printed.
        epsilon: share of the change of delta that need not be reached, in [0, 1).

    Returns:
        Time in units of learning rate times steps; infinite where a change is asked for and nothing can move.

    Raises:
        ValueError: an argument is out of its range.
    """
    for name, value in {"loss_drop": loss_drop, "stochastic": stochastic, "noise": noise}.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}: give 0 or more")
    if not lipschitz > 0:
        raise ValueError(f"the Lipschitz constant is {lipschitz}: give one above 0")
    if not math.isfinite(delta_retrained - delta_start):
        raise ValueError(f"the loss gap goes from {delta_start} to {delta_retrained}: give finite ones")
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon is {epsilon}: give a share in [0, 1)")
    way = (1 - epsilon) * abs(delta_retrained - delta_start) / lipschitz - math.sqrt(noise)
    if not way > 0:
        return 0.0
    return way**2 / (loss_drop + stochastic) if loss_drop + stochastic else math.inf


def steps_of(time: float, lr: float, momentum: float = 0.0) -> float:
    """Steps of SGD in a time: with momentum m each goes 1 / (1 - m) times as far in the long run.

    Table 3 leaves momentum out.
    """
    return time * (1 - momentum) / lr


def paper_flops(steps: float, clients: int, batch_size: int, forward: float) -> float:
    """Operations of so many steps by the rule that Table 3 was recovered to follow: training is three forward passes.

    Args:
        steps: in each, every client computes one batch.
        clients: that train; Table 3 has the 9 that stay.
        batch_size: of a client; 64 there.
        forward: operations of one sample's forward pass, twice its multiply-adds.
    """
    return steps * clients * batch_size * 3 * forward


def step_flops(steps: float, clients: int, batch_size: int, sample: SampleFlops) -> float:
    """The same with the operations that were counted for one sample, `fedunlearn.evaluation.flops`."""
    return steps * clients * batch_size * (sample.forward + sample.backward)


def loss_gap(model: nn.Module, retained: Samples, forgotten: Samples, *, batch_size: int = 256) -> float:
    """delta of Definition 1: |loss on what stays - loss on what is to be forgotten|, mean cross-entropies.

    Args:
        model: taken in evaluation mode, and left as it was.
        retained, forgotten: inputs ``(n, ...)`` and classes ``(n,)`` each: all, or some thousands.
        batch_size: samples that are computed at once.
    """
    stays, goes = (mean_loss(model, samples, batch_size=batch_size) for samples in (retained, forgotten))
    return abs(stays - goes)


def gap_gradient_norm(model: nn.Module, retained: Samples, forgotten: Samples, *, batch_size: int = 256) -> float:
    """Norm of the gradient of delta; see `loss_gap`.

    The absolute value turns the gradient's sign where what stays has the larger loss, which the norm does not see.
    Both losses go into one buffer, so that two copies of the parameters are held: it, and a chunk's gradient.
    """
    into = zeros(model)
    add_gradient(into, model, forgotten, batch_size=batch_size)
    add_gradient(into, model, retained, -1.0, batch_size=batch_size)
    return math.sqrt(square(into))


def lipschitz_over_batches(
    model: nn.Module, retained: Samples, forgotten: Samples, *, batch_size: int, draws: int = 50, seed: int = 0
) -> float:
    """Eq. 84 read as a maximum over mini-batches at one place: of the norm of the gradient of delta.

    Neither side of the constant is certain: one place says nothing of others, and what a mini-batch's delta has
    beyond that of all samples is noise. (84) can also be read as a maximum over models, "theta^b", which is that
    of their `gap_gradient_norm`.

    Args:
        model: is left as it was.
        retained, forgotten: see `loss_gap`; from each a mini-batch is drawn.
        batch_size: of both.
        draws: pairs of mini-batches.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(samples: Samples) -> Samples:
        x, y = samples
        batch = torch.randperm(len(y), generator=generator)[:batch_size]
        return x[batch.to(x.device)], y[batch.to(y.device)]

    return max(gap_gradient_norm(model, drawn(retained), drawn(forgotten)) for _ in range(draws))


@dataclass(frozen=True)
class Checkpoint:
    """A model on its way.

    Attributes:
        time: since unlearning began, in units of learning rate times steps.
        loss_retained, loss_forgotten: mean cross-entropies.
        gap: delta, the distance of the two.
        gradient: norm of the gradient of delta.
        noise: Tr S, mean squared way by noise alone in a unit of time.
        rise: 1/2 Tr(S H), loss that noise adds in a unit of time, with all covariances; may be negative.
        rise_error: standard error of ``rise``.
        rise_diagonal: ``rise`` if S and H were diagonal, as in section 13.1.
    """

    time: float
    loss_retained: float
    loss_forgotten: float
    gap: float
    gradient: float
    noise: float
    rise: float
    rise_error: float
    rise_diagonal: float


@dataclass(frozen=True)
class Bound:
    """The bound for one way of unlearning, with each of its terms. Times are in units of ``lr`` times steps.

    ``lipschitz`` is a maximum over some places, so at most the supremum that the theorem has. A constant that is too
    small makes the times too long: they are estimates of the bound and certify nothing.

    Attributes:
        checkpoints: in the order of time.
        gap_start, gap_retrained: delta at the first checkpoint, and of a model trained from scratch.
        epsilon: share of the gap's change that was not asked for.
        lipschitz: largest gradient of delta at the checkpoints (eq. 85).
        lipschitz_batches: largest over mini-batches at the first checkpoint (eq. 84).
        loss_start, loss_least: loss on what stays at first, and the smallest that any model here has.
        loss_drop: their difference.
        stochastic: A, the integral of \\|1/2 Tr(S H)\\| up to the last checkpoint, with all covariances.
        stochastic_diagonal: A with S and H diagonal.
        noise: N, the integral of Tr S up to the last checkpoint.
        printed: the bound as in eq. 82 and section 13.1: diagonal A, without N.
        corrected: with all of A, and with N; 0 where noise alone may close the gap.
        lr: learning rate.
        printed_steps, corrected_steps: the same in steps.
    """

    checkpoints: tuple[Checkpoint, ...]
    gap_start: float
    gap_retrained: float
    epsilon: float
    lipschitz: float
    lipschitz_batches: float
    loss_start: float
    loss_least: float
    loss_drop: float
    stochastic: float
    stochastic_diagonal: float
    noise: float
    printed: float
    corrected: float
    lr: float
    printed_steps: float
    corrected_steps: float


def bound_along(
    path: Iterable[tuple[float, nn.Module]],
    retrained: nn.Module,
    best: nn.Module,
    retained: Samples,
    forgotten: Samples,
    *,
    lr: float,
    batch_size: int,
    draws: int = 50,
    epsilon: float = 0.0,
    curvature: Curvature = double_backward,
    seed: int = 0,
) -> Bound:
    """Measure every term of the bound along a run, as section 13.1 does, and put them together.

    For FT and for NoT, the ratio of the two is the predicted ratio of their costs (Table 3).

    Of its terms only A was called negligible; `Bound` has all of them, so this can be looked at. The integrals are
    by trapezoids over the checkpoints, which should be dense at the beginning, where losses and gradients change
    most, and end where the model counts as unlearned. At most three copies of the parameters are held besides the
    models. At each checkpoint come one gradient of all samples, ``4 draws`` of mini-batches, and ``2 draws`` products
    z' H z of 64 samples.

    Args:
        path: times and models, from time 0 on; read one after the other, so a generator may load each when its
            turn comes. Times are learning rate times steps.
        retrained: trained on what stays from scratch.
        best: trained on what stays for much longer, twice say: its loss is the least there is (eq. 86), unless a
            model of the path has a smaller one.
        retained, forgotten: see `loss_gap`. Some thousands suffice for an order of magnitude.
        lr: learning rate; with momentum m give lr / (1 - m) here and in the times.
        batch_size: samples that one step averages over: in FedAvg those of all clients' batches together. If it is
            that of ``retained`` or more, there is no noise.
        draws: mini-batches at each checkpoint; two or more.
        epsilon: see `unlearning_time`.
        curvature: `double_backward`, or `central_differences` for networks without second derivatives.
        seed: of mini-batches and signs, the same at each checkpoint.

    Raises:
        ValueError: the path has fewer than two models, or its times do not rise from 0; no model has a smaller loss
            on what stays than the first; a loss is not finite.
    """
    checkpoints: list[Checkpoint] = []
    lipschitz_batches = 0.0
    for time, model in path:
        if time <= checkpoints[-1].time if checkpoints else time != 0:
            raise ValueError(f"a checkpoint at {time} is out of order: give times that rise from 0")
        if not checkpoints:
            lipschitz_batches = lipschitz_over_batches(
                model, retained, forgotten, batch_size=batch_size, draws=draws, seed=seed
            )
        full, diagonal = (
            estimate(model, retained, lr=lr, batch_size=batch_size, draws=draws, curvature=curvature, seed=seed)
            for estimate in (full_noise, diagonal_noise)
        )
        stays, goes = (mean_loss(model, samples) for samples in (retained, forgotten))
        gradient = gap_gradient_norm(model, retained, forgotten)
        checkpoints.append(
            Checkpoint(time, stays, goes, abs(stays - goes), gradient, full.trace, full.rise, full.error, diagonal.rise)
        )
    if len(checkpoints) < 2:
        raise ValueError(f"a path of {len(checkpoints)} models is none: give two or more")
    start = checkpoints[0]
    least = min(mean_loss(best, retained), *(one.loss_retained for one in checkpoints))
    if least == start.loss_retained:
        raise ValueError("no model has a smaller loss on what stays than the first: train `best` for longer")
    gap_retrained = loss_gap(retrained, retained, forgotten)
    lipschitz = max(one.gradient for one in checkpoints)
    drop = start.loss_retained - least
    stochastic = _integral([(one.time, abs(one.rise)) for one in checkpoints])
    diagonal_rises = _integral([(one.time, abs(one.rise_diagonal)) for one in checkpoints])
    noise = _integral([(one.time, one.noise) for one in checkpoints])
    printed = unlearning_time(start.gap, gap_retrained, lipschitz, drop, diagonal_rises, epsilon=epsilon)
    corrected = unlearning_time(start.gap, gap_retrained, lipschitz, drop, stochastic, noise=noise, epsilon=epsilon)
    return Bound(
        checkpoints=tuple(checkpoints),
        gap_start=start.gap,
        gap_retrained=gap_retrained,
        epsilon=epsilon,
        lipschitz=lipschitz,
        lipschitz_batches=lipschitz_batches,
        loss_start=start.loss_retained,
        loss_least=least,
        loss_drop=drop,
        stochastic=stochastic,
        stochastic_diagonal=diagonal_rises,
        noise=noise,
        printed=printed,
        corrected=corrected,
        lr=lr,
        printed_steps=steps_of(printed, lr),
        corrected_steps=steps_of(corrected, lr),
    )


def _integral(points: list[tuple[float, float]]) -> float:
    """By trapezoids."""
    return math.fsum((b - a) * (u + v) / 2 for (a, u), (b, v) in pairwise(points))
