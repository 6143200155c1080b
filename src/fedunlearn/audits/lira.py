"""Likelihood-ratio attacks on membership: LiRA, and on unlearned models U-LiRA."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["OWN_VARIANCE", "lira"]

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
    signals, point = references.reshape(*member.shape, -1), audited.reshape(member.shape[1], -1)
    ratio = _density(signals, member, point) - _density(signals, ~member, point)
    return np.where(member.any(0) & (~member).any(0), ratio, 0.0)


def _density(
    signals: NDArray[np.float64], chosen: NDArray[np.bool_], point: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log-density of each sample's point, under the normal distribution of the chosen models' signals."""
    count = np.maximum(chosen.sum(0), 1)[:, None, None]
    mean = (signals * chosen[..., None]).sum(0) / count[..., 0]
    deviation = (signals - mean) * chosen[..., None]
    scatter = np.einsum("nsi,nsj->sij", deviation, deviation)
    if len(signals) < OWN_VARIANCE:
        scatter, freedom = scatter.sum(0), np.maximum((count - 1).sum(), 1)
    else:
        freedom = np.maximum(count - 1, 1)
    width = scatter.shape[-1]
    covariance = (scatter / freedom) * (1 + 1 / count) + _LEAST_VARIANCE * np.eye(width)
    away = (point - mean)[..., None]
    distance = (away * np.linalg.solve(covariance, away)).sum((1, 2))
    density: NDArray[np.float64] = distance + np.linalg.slogdet(covariance)[1] + width * np.log(2 * np.pi)
    return -0.5 * density
