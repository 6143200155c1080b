"""The paper's four measures of a model, and the distance of two methods in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from fedunlearn.evaluation.membership import mia, mia_efficacy
from fedunlearn.federation import Federation, Turn
from fedunlearn.programs import Evaluate
from fedunlearn.randomness import generator
from fedunlearn.weights import Weights

__all__ = ["MEASURES", "Gap", "Scores", "average_gap", "score"]

MEASURES = ("retain", "forget", "test", "mia")
"""What the average gap is the mean over, in the order of the paper's tables."""


@dataclass(frozen=True)
class Scores:
    """How a model does, in percent.

    Attributes:
        retain, forget: accuracy on training samples that stay, and on those that were to be forgotten.
        test: accuracy on the test set.
        mia: accuracy of a membership attack, forget against test samples (`fedunlearn.evaluation.membership.mia`).
            Two-sided: neither 50 nor 0 is the target, the retrained model's value is.
        mia_efficacy: share of forget samples that another attack takes for non-members (`mia_efficacy`). None
            where it was not asked for: it takes longer than a round of training.
    """

    retain: float
    forget: float
    test: float
    mia: float
    mia_efficacy: float | None


@dataclass(frozen=True)
class Gap:
    """Average gap to Retrain, in percentage points, in its two readings over seeds.

    Attributes:
        of_means: mean over measures of |mean over seeds - Retrain's mean|: the paper's tables, the headline.
        mean: mean over seeds of each seed's own gap to the Retrain model of that seed; never smaller.
    """

    of_means: float
    mean: float


def score(weights: Weights, everyone: Federation, test: Federation, seed: int, *, efficacy: bool = True) -> Scores:
    """Score a model: one pass over all clients' training samples, one over the test set.

    Args:
        weights: of the model.
        everyone: all clients, marked by the request (those who have left too, in a simulation).
        test: the test samples.
        seed: of the attacks' subsampling; the same for all methods that are compared.
        efficacy: whether to score `mia_efficacy` too.

    Raises:
        ValueError: too few samples for the attacks.
    """
    turn = Turn(seed, "evaluate", 0)  # nothing is drawn at the clients
    ours = _values(everyone, Evaluate("train", per_sample=True), weights, turn)
    others = _values(test, Evaluate("all", per_sample=True), weights, turn)
    forget = ours["forget"]
    return Scores(
        retain=_percent(ours["correct"][~forget]),
        forget=_percent(ours["correct"][forget]),
        test=_percent(others["correct"]),
        mia=mia(ours["loss"][forget], others["loss"], seed).accuracy,
        mia_efficacy=_efficacy(ours["loss"], forget, others["loss"], seed) if efficacy else None,
    )


def average_gap(method: Sequence[Scores], retrain: Sequence[Scores]) -> Gap:
    """How far a method is from Retrain, over the same seeds in the same order.

    Raises:
        ValueError: there are no seeds, or not the same number.
    """
    if not method:
        raise ValueError("an average gap needs scores of one seed at least")

    def distance(ours: Sequence[Scores], theirs: Sequence[Scores]) -> float:
        return fmean(abs(fmean(getattr(s, m) for s in ours) - fmean(getattr(s, m) for s in theirs)) for m in MEASURES)

    return Gap(distance(method, retrain), fmean(distance([a], [b]) for a, b in zip(method, retrain, strict=True)))


def _values(federation: Federation, program: Evaluate, weights: Weights, turn: Turn) -> dict[str, Tensor]:
    replies = [reply.values for _, reply in federation.run(program, weights, turn)]
    return {name: torch.cat([values[name] for values in replies]) for name in ("loss", "correct", "forget")}


def _efficacy(losses: Tensor, forget: Tensor, test_losses: Tensor, seed: int) -> float:
    stays = losses[~forget]
    mixed = stays[torch.randperm(len(stays), generator=generator(seed, "mia efficacy"))]  # or one client's come first
    return mia_efficacy(*(torch.exp(-values) for values in (mixed, test_losses, losses[forget])))


def _percent(correct: Tensor) -> float:
    return 100 * float(correct.double().mean())
