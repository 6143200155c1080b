"""Likelihood-ratio attacks on membership: LiRA, and on unlearned models U-LiRA."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["OWN_VARIANCE", "likelihood_ratios", "lira"]

OWN_VARIANCE = 64
"""From so many reference models on each sample has a variance of its own; below, all samples share one."""

_LEAST_VARIANCE = 1e-12  # a sample that every model is equally sure of tells nothing, and must not divide by zero


def lira(
    references: NDArray[np.float64], member: NDArray[np.bool_], audited: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How much likelier it is that a sample was in training than that it was not: log N_in - log N_out.

    Carlini, Chien, Nasr, Song, Terzis, Tramer, "Membership inference attacks from first principles" (S&P 2022),
    Algorithm 1: of each sample two normal distributions, of the signals of reference models that have seen it and of
    those that have not. Where the references are unlearned, and "seen" means trained on and then unlearned, this is
    U-LiRA (Hayes, Shumailov, Triantafillou, Khalifa, Papernot, arXiv 2403.01218). Departures:

    - U-LiRA's second hypothesis is a retrained model. Here it is a model that the same method made without the sample:
      else all that unlearned models have in common (too few rounds of recovery, say) would pass for membership. How
      far models are from retrained ones is another question (`fedunlearn.audits.distance`).
    - A shared variance is that of the samples' deviations from their own means; the published code takes it over all
      values, so that differences between samples count as noise.
    - A mean over n models is uncertain by 1/n of the variance, which is added: samples have been in different
      numbers of models.
    - Signals may be vectors, such as that of the model before and that of the model after, with a covariance.

    Args:
        references: signals, ``(N, S)`` or ``(N, S, d)``: of N models, S samples.
        member: which of the models has seen which sample, ``(N, S)``.
        audited: signals of the model that is attacked, ``(S,)`` or ``(S, d)``.

    Returns:
        ``(S,)``: above 0, membership is likelier. 0 where no reference has seen the sample, or all have.

    Raises:
        ValueError: shapes do not fit, or there are fewer than two references.
    """
    if references.shape[:2] != member.shape or references.shape[1:] != audited.shape:
        raise ValueError(f"{references.shape} references, {member.shape} memberships and {audited.shape} do not fit")
    if len(references) < 2:
        raise ValueError("a likelihood ratio needs two reference models or more")
    outside = np.zeros_like(member[:1])
    every = np.concatenate([references, audited[None]]), np.concatenate([member, outside])
    last: NDArray[np.float64] = likelihood_ratios(*every, np.arange(len(member) + 1) < len(member))[-1]
    return last


def likelihood_ratios(
    signals: NDArray[np.float64], member: NDArray[np.bool_], reference: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """`lira` of each model in turn, the references but itself serving.

    Args:
        signals: ``(N, S)`` or ``(N, S, d)``.
        member: which of the models has seen which sample, ``(N, S)``; of models that are no references it is not read.
        reference: which of the models serve, ``(N,)``.

    Returns:
        ``(N, S)``.
    """
    points = signals.reshape(*member.shape, -1)
    seen, unseen = member & reference[:, None], ~member & reference[:, None]
    shared = bool(reference.sum() < OWN_VARIANCE)
    ratio = _densities(points, seen, shared) - _densities(points, unseen, shared)
    return np.where(_others(seen).astype(bool) & _others(unseen).astype(bool), ratio, 0.0)


def _others(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many other models than itself are chosen, ``(N, S)``."""
    count: NDArray[np.int64] = chosen.sum(0) - chosen
    return count


def _densities(points: NDArray[np.float64], chosen: NDArray[np.bool_], shared: bool) -> NDArray[np.float64]:
    """Log-density of each model's points, under the normal distributions of the other chosen models', ``(N, S)``."""
    counts, all_counts = np.maximum(_others(chosen), 1), np.maximum(chosen.sum(0), 1)
    mean = (points * chosen[..., None]).sum(0) / all_counts[:, None]
    deviation = (points - mean) * chosen[..., None]
    # What a point takes out of a mean, and out of a scatter, when it is left out (Welford's update, backwards).
    means = mean - deviation / counts[..., None]
    share = (all_counts / counts)[..., None, None] * np.einsum("nsi,nsj->nsij", deviation, deviation)
    scatter = np.einsum("nsi,nsj->sij", deviation, deviation) - share
    if shared:
        freedom = np.maximum(_others(chosen) - 1, 0).sum(1)
        scatter, freedom = scatter.sum(1, keepdims=True), np.maximum(freedom, 1)[:, None]
    else:
        freedom = np.maximum(counts - 1, 1)
    width = points.shape[-1]
    covariance = scatter / freedom[..., None, None] + _LEAST_VARIANCE * np.eye(width)
    widened = 1 + 1 / counts
    away = points - means
    distance = np.einsum("nsi,nsij,nsj->ns", away, np.broadcast_to(np.linalg.inv(covariance), share.shape), away)
    logarithm = np.linalg.slogdet(covariance)[1] + width * np.log(2 * np.pi * widened)
    density: NDArray[np.float64] = -0.5 * (distance / widened + logarithm)
    return density
