"""The noise of mini-batch gradients, and by how much it raises the loss: the term A of Theorem 5."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fedunlearn.theory.losses import Samples, add_gradient, double_backward, gradient, square, zeros

__all__ = ["Curvature", "Noise", "diagonal_noise", "full_noise"]

_HESSIAN = 64  # samples whose loss is taken for that of all in one draw: an unbiased estimate, fresh each time


class Curvature(Protocol):
    """`double_backward` or `central_differences` of `fedunlearn.theory.losses`."""

    def __call__(self, model: nn.Module, samples: Samples, direction: list[Tensor], /) -> float:
        """z' H z; z may be overwritten."""


@dataclass(frozen=True)
class Noise:
    """What S = lr Cov(g) comes to at one place, g being the gradient of a mini-batch.

    SGD is written as the diffusion d theta = -grad L dt + Sigma dW, in which a step takes the time lr; then
    Sigma Sigma' = S (Mandt, Hoffman, Blei, JMLR 18(134), 2017).

    Attributes:
        trace: Tr S, the mean squared way by noise alone in a unit of time; 0 or more.
        rise: 1/2 Tr(S H), the loss that noise adds in a unit of time; H is the Hessian of the loss of all samples.
        error: standard error of ``rise`` from the draws; that of S from few mini-batches is not in it.
    """

    trace: float
    rise: float
    error: float


def diagonal_noise(
    model: nn.Module,
    samples: Samples,
    *,
    lr: float,
    batch_size: int,
    draws: int = 50,
    curvature: Curvature = double_backward,
    seed: int = 0,
) -> Noise:
    """The noise if S were diagonal, as section 13.1 of the supplement assumes of S and of H.

    Variances of mini-batch gradients by Welford's update, then Hutchinson's estimate: for z = sqrt(s) times random
    signs the mean of z' H z is the sum of s_i H_ii. Where gradients of different parameters go together, which they
    do in networks, this can be several times too small: see `full_noise`. At most three copies of the parameters
    are held besides the model.

    Args:
        model: is left as it was.
        samples: those who stay; mini-batches are drawn from them without replacement.
        lr: learning rate; with momentum m, lr / (1 - m).
        batch_size: samples that one step averages over: in FedAvg those of all clients' batches together.
        draws: mini-batches, and as many products with the Hessian; two or more.
        curvature: how z' H z is computed.
        seed: of mini-batches and signs.

    Raises:
        ValueError: fewer than two draws; no samples.
    """
    if _noiseless(samples, batch_size, draws):
        return Noise(0.0, 0.0, 0.0)
    spread = _variances(model, samples, batch_size, draws, seed)
    for s in spread:
        s.mul_(lr).sqrt_()
    trace, generator, rises = square(spread), torch.Generator().manual_seed(seed), []
    for batch in _batches(len(samples[1]), _HESSIAN, draws, seed + 1):
        for s in spread:  # signs of earlier draws stay: times fresh ones they are fresh
            s.mul_(torch.randint(0, 2, s.shape, generator=generator, dtype=s.dtype).mul_(2).sub_(1).to(s.device))
        direction = [s.clone() for s in spread]
        rises.append(curvature(model, _taken(samples, batch), direction) / 2)
    return Noise(trace, statistics.fmean(rises), statistics.stdev(rises) / draws**0.5)


def full_noise(
    model: nn.Module,
    samples: Samples,
    *,
    lr: float,
    batch_size: int,
    draws: int = 50,
    curvature: Curvature = double_backward,
    seed: int = 0,
) -> Noise:
    """The noise with all covariances, at the price of the diagonal one.

    The deviations xi of mini-batch gradients from their mean have the covariance themselves, so that
    1/2 lr sum(xi' H xi) / (b - 1) over b draws needs no assumption on S or H. Memory, arguments and errors as of
    `diagonal_noise`.
    """
    if _noiseless(samples, batch_size, draws):
        return Noise(0.0, 0.0, 0.0)
    mean = zeros(model)
    for batch in _batches(len(samples[1]), batch_size, draws, seed):
        add_gradient(mean, model, _taken(samples, batch), 1 / draws)
    freed = draws / (draws - 1)  # the mean was taken from the same draws
    squares, rises = [], []
    own = _batches(len(samples[1]), batch_size, draws, seed)
    against = _batches(len(samples[1]), _HESSIAN, draws, seed + 1)
    for batch, other in zip(own, against, strict=True):
        direction = _deviation(model, _taken(samples, batch), mean)
        squares.append(lr * freed * square(direction))
        rises.append(lr * freed * curvature(model, _taken(samples, other), direction) / 2)
        del direction  # before there is the next
    return Noise(statistics.fmean(squares), statistics.fmean(rises), statistics.stdev(rises) / draws**0.5)


def _noiseless(samples: Samples, batch_size: int, draws: int) -> bool:
    """Whether a mini-batch is all that there is."""
    if draws < 2:
        raise ValueError(f"a covariance needs two mini-batches or more, not {draws}")
    return batch_size >= len(samples[1])


def _variances(model: nn.Module, samples: Samples, batch_size: int, draws: int, seed: int) -> list[Tensor]:
    """Of each parameter's gradient over mini-batches, by Welford's update."""
    mean, spread = zeros(model), zeros(model)
    for number, batch in enumerate(_batches(len(samples[1]), batch_size, draws, seed), 1):
        for m, s, g in zip(mean, spread, gradient(model, _taken(samples, batch)), strict=True):
            away = g - m
            m.add_(away, alpha=1 / number)
            s.addcmul_(away, away, value=(number - 1) / number)
    for s in spread:
        s.div_(draws - 1)
    return spread


def _deviation(model: nn.Module, batch: Samples, mean: list[Tensor]) -> list[Tensor]:
    return [g - m for g, m in zip(gradient(model, batch), mean, strict=True)]


def _batches(count: int, size: int, draws: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield torch.randperm(count, generator=generator)[:size]


def _taken(samples: Samples, indices: Tensor) -> Samples:
    x, y = samples
    return x[indices.to(x.device)], y[indices.to(y.device)]
