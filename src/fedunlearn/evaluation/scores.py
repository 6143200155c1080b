"""The paper's four measures of a model, and the distance of two methods in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from fedunlearn.evaluation.membership import mia, mia_efficacy
from fedunlearn.federation import Federation, Part, Turn
from fedunlearn.programs import Diverged, Evaluate
from fedunlearn.randomness import generator
from fedunlearn.weights import Weights

__all__ = ["LOSS_EDGES", "MEASURES", "ForgetSet", "Gap", "Losses", "Scores", "average_gap", "score", "validate"]

MEASURES = ("retain", "forget", "test", "mia")
"""What the average gap is the mean over, in the order of the paper's tables."""

LOSS_EDGES: tuple[float, ...] = tuple(10 ** (exponent / 6) for exponent in range(-36, 13))
"""Between the bins of `Losses`: from 1e-6 to 100, six to a factor of ten."""


@dataclass(frozen=True)
class Losses:
    """Histograms of the cross-entropy per sample, 48 counts each, between `LOSS_EDGES`.

    What lies below the first edge or above the last is counted in the first bin or in the last.

    Attributes:
        retain, forget: of training samples that stay, and of those that were to be forgotten.
        test: of test samples.
    """

    retain: tuple[int, ...]
    forget: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True)
class ForgetSet:
    """How a model does on the samples of one of several requests, in percent.

    Attributes:
        forget: accuracy on them.
        mia: accuracy of the membership attack, they against test samples.
    """

    forget: float
    mia: float


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
        losses: histograms of the losses; asked for together with `mia_efficacy`.
        validation: accuracy on the validation samples that stay, which those who stay can measure. None where
            nobody was asked, or nobody keeps any.
        sets: where requests were answered one after another: of each by itself, the first one first; `forget` and
            `mia` are of all together.
        attack: success rate of a backdoor: share of the test samples of other classes that are taken for the backdoor's
            label once they bear its trigger. None where there is no backdoor.
    """

    retain: float
    forget: float
    test: float
    mia: float
    mia_efficacy: float | None = None
    losses: Losses | None = None
    validation: float | None = None
    sets: tuple[ForgetSet, ...] = ()
    attack: float | None = None

    def of(self, number: int) -> Scores:
        """The same model, held against one of the requests alone."""
        return replace(self, forget=self.sets[number].forget, mia=self.sets[number].mia, sets=())


@dataclass(frozen=True)
class Gap:
    """Average gap to Retrain, in percentage points, in its two readings over seeds.

    Attributes:
        of_means: mean over measures of |mean over seeds - Retrain's mean|: the paper's tables, the headline.
        mean: mean over seeds of each seed's own gap to the Retrain model of that seed; never smaller.
    """

    of_means: float
    mean: float


def score(
    weights: Weights,
    everyone: Federation,
    test: Federation,
    seed: int,
    *,
    final: bool = True,
    validation: float | None = None,
    sets: Sequence[Federation] = (),
    attack: Federation | None = None,
) -> Scores:
    """Score a model: one pass over all clients' training samples, one over the test set.

    Args:
        weights: of the model.
        everyone: all clients, marked by the request (those who have left too, in a simulation).
        test: the test samples.
        seed: of the attacks' subsampling; the same for all methods that are compared.
        final: whether to score `mia_efficacy` and count the losses too.
        validation: what `validate` found, to stand among the rest.
        sets: of each of several requests, the samples that it meant.
        attack: test samples with a backdoor's trigger and label; None: there is no backdoor.

    Raises:
        Diverged: a loss is not finite.
        ValueError: too few samples for the attacks.
    """
    turn = Turn(seed, "evaluate", 0)  # nothing is drawn at the clients
    ours = _values(everyone, Evaluate("train", per_sample=True), weights, turn)
    others = _values(test, Evaluate("all", per_sample=True), weights, turn)
    forget = ours["forget"]
    if not bool(torch.isfinite(torch.cat([ours["loss"], others["loss"]])).all()):
        raise Diverged("the model's losses are not finite: it has diverged")
    return Scores(
        retain=_percent(ours["correct"][~forget]),
        forget=_percent(ours["correct"][forget]),
        test=_percent(others["correct"]),
        mia=mia(ours["loss"][forget], others["loss"], seed).accuracy,
        mia_efficacy=_efficacy(ours["loss"], forget, others["loss"], seed) if final else None,
        losses=Losses(*map(_counts, (ours["loss"][~forget], ours["loss"][forget], others["loss"]))) if final else None,
        validation=validation,
        sets=tuple(_set(meant, others["loss"], weights, turn) for meant in sets),
        attack=None if attack is None else _accuracy(attack, "all", weights, seed),
    )


def validate(retained: Federation, weights: Weights, seed: int) -> float | None:
    """Accuracy, in percent, on the validation samples of ``retained``: what a server can ask for in earnest.

    Each client answers with two numbers. None: nobody keeps validation samples.
    """
    return _accuracy(retained, "validation", weights, seed)


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


def _set(meant: Federation, test_losses: Tensor, weights: Weights, turn: Turn) -> ForgetSet:
    values = _values(meant, Evaluate("train", per_sample=True), weights, turn)
    return ForgetSet(_percent(values["correct"]), mia(values["loss"], test_losses, turn.seed).accuracy)


def _accuracy(federation: Federation, part: Part, weights: Weights, seed: int) -> float | None:
    right, samples = 0.0, 0
    for _, reply in federation.run(Evaluate(part), weights, Turn(seed, "evaluate", 0)):
        right += reply.metrics.get("accuracy", 0.0) * reply.samples
        samples += reply.samples
    return 100 * right / samples if samples else None


def _values(federation: Federation, program: Evaluate, weights: Weights, turn: Turn) -> dict[str, Tensor]:
    replies = [reply.values for _, reply in federation.run(program, weights, turn)]
    return {name: torch.cat([values[name] for values in replies]) for name in ("loss", "correct", "forget")}


def _efficacy(losses: Tensor, forget: Tensor, test_losses: Tensor, seed: int) -> float:
    stays = losses[~forget]
    mixed = stays[torch.randperm(len(stays), generator=generator(seed, "mia efficacy"))]  # or one client's come first
    return mia_efficacy(*(torch.exp(-values) for values in (mixed, test_losses, losses[forget])))


def _counts(losses: Tensor) -> tuple[int, ...]:
    edges = torch.tensor(LOSS_EDGES, dtype=torch.float64)
    inside = losses.double().clamp(LOSS_EDGES[0], LOSS_EDGES[-1])
    return tuple(torch.histogram(inside, edges).hist.long().tolist())


def _percent(correct: Tensor) -> float:
    return 100 * float(correct.double().mean())
