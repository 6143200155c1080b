"""RMIA: a membership attack that needs few reference models, none of which has seen the sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["rmia", "shares_beaten"]


def rmia(
    references: NDArray[np.float64],
    member: NDArray[np.bool_],
    audited: NDArray[np.float64],
    population_references: NDArray[np.float64],
    population: NDArray[np.float64],
    *,
    a: float = 0.3,
    gamma: float = 2.0,
) -> NDArray[np.float64]:
    """Share of the population that a sample beats in how much likelier the model makes it than models at large.

    Zarifzadeh, Liu, Shokri, "Low-cost high-power membership inference attacks" (ICML 2024), offline: with
    ratio(x) = p(x | model) / p(x), the score is Pr over z of [ratio(x) / ratio(z) >= gamma]; p(x), which online is a
    mean over models that have seen x and that have not, is estimated from the latter alone as
    ((1 + a) p_out(x) + 1 - a) / 2 (their equations 5 and 10, section 2.2).

    Args:
        references: probabilities that N models give the true class of S samples, ``(N, S)``, in [0, 1].
        member: which of the models has seen which sample, ``(N, S)``; those are not looked at.
        audited: probabilities of the model that is attacked, ``(S,)``.
        population_references, population: the same of Z samples that nobody has seen, ``(N, Z)`` and ``(Z,)``.
        a: how much p_out tells of p_in; 0: nothing, 1: all. Their value for CIFAR-10 is about 0.3.
        gamma: how much is clearly more.

    Returns:
        ``(S,)``, in [0, 1]. 0.5 where all references have seen the sample.

    Raises:
        ValueError: shapes do not fit.
    """
    if references.shape != member.shape or references.shape[1:] != audited.shape or not len(references):
        raise ValueError(f"{references.shape} references, {member.shape} memberships and {audited.shape} do not fit")
    if population_references.shape != (len(references), *population.shape) or not len(population):
        raise ValueError(f"{population_references.shape} references and a population of {population.shape} do not fit")
    outside = np.zeros_like(member[:1])
    rows = (np.concatenate([references, audited[None]]), np.concatenate([member, outside]))
    others = np.concatenate([population_references, population[None]])
    scores = shares_beaten(*rows, others, np.arange(len(member) + 1) < len(member), a=a, gamma=gamma)
    last: NDArray[np.float64] = scores[-1]
    return last


def shares_beaten(
    chances: NDArray[np.float64],
    member: NDArray[np.bool_],
    population: NDArray[np.float64],
    reference: NDArray[np.bool_],
    *,
    a: float = 0.3,
    gamma: float = 2.0,
) -> NDArray[np.float64]:
    """`rmia` of each model in turn, the references but itself serving.

    Args:
        chances: probabilities of the true class, ``(N, S)``.
        member: which of the models has seen which sample, ``(N, S)``; of models that are no references it is not read.
        population: probabilities of the true class of samples that nobody has seen, ``(N, Z)``.
        reference: which of the models serve, ``(N,)``.
        a, gamma: see `rmia`.

    Returns:
        ``(N, S)``.
    """
    unseen = ~member & reference[:, None]
    ratio = chances / _anywhere(chances, unseen, a)
    everywhere = np.broadcast_to(reference[:, None], population.shape)
    others = np.sort(population / _anywhere(population, everywhere, a), 1)
    beaten = [np.searchsorted(z, x / gamma, side="right") for z, x in zip(others, ratio, strict=True)]
    return np.where(unseen.sum(0) > unseen, np.stack(beaten) / population.shape[1], 0.5)


def _anywhere(chances: NDArray[np.float64], chosen: NDArray[np.bool_], a: float) -> NDArray[np.float64]:
    """p(x) from p_out(x), the mean over the other chosen models; 0 only where both are."""
    total, count = (chances * chosen).sum(0), chosen.sum(0)
    outside = (total - chances * chosen) / np.maximum(count - chosen, 1)
    anywhere: NDArray[np.float64] = np.maximum(((1 + a) * outside + (1 - a)) / 2, np.finfo(np.float64).tiny)
    return anywhere
