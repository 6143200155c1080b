"""Which layers to negate in a network: what the theory says of candidates, and what negating them would do."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.audits.certainty import auc
from fedunlearn.audits.probe import probe
from fedunlearn.audits.signals import confidence
from fedunlearn.negation import negate
from fedunlearn.theory.jacobian import gradient_norms
from fedunlearn.theory.losses import Samples
from fedunlearn.theory.optimality import Conditions, conditions
from fedunlearn.theory.poset import LayerPoset
from fedunlearn.weights import unwrap

__all__ = ["Advice", "Candidate", "Prediction", "advise", "candidates"]

VANISHING = 0.1
"""Of its gradient before negation: a layer with less counts as starved."""


@dataclass(frozen=True)
class Prediction:
    """What negating layers would do to a trained model, on samples, without any training.

    Memory and use are read twice, off the network as it is and off a linear probe of what reaches its last layer, and
    the mean is taken: recovery begins from the one, and soon has the other.

    Attributes:
        loss: mean cross-entropy after negation, on what it was trained on.
        changed: share of those samples that it puts into another class than before, in [0, 1].
        memory: how much is left of what tells samples that it was trained on from others: 1 as before, 0 nothing. What
            stays stands for what is to be forgotten.
        useful: how much is left of what it gets right on samples that were in no training, beyond a network newly
            drawn: 1 as before, 0 nothing.
        starved: layers whose gradient has less than a tenth of the norm that it has in a network newly drawn.
    """

    loss: float
    changed: float
    memory: float
    useful: float
    starved: tuple[str, ...]

    @property
    def distance(self) -> float:
        """From no memory and all use, as a Euclidean length; 0 is best, and 1 is not to negate, or to begin anew.

        No sum, by which half of both extremes would be as good as either: recovery wears off a small memory, and needs
        only some of the features.
        """
        return math.hypot(max(self.memory, 0.0), max(1 - self.useful, 0.0))


@dataclass(frozen=True)
class Candidate:
    """A set of layers that might be negated.

    Attributes:
        layers: names, as `fedunlearn.theory.poset.LayerPoset` has them, in the order in which they run.
        conditions: of Theorem 7 on it.
        cauchy_by_paths: whether every path from input to output meets it exactly once, as Theorem 6 needs.
        prediction: None where no data are at hand.
    """

    layers: tuple[str, ...]
    conditions: Conditions
    cauchy_by_paths: bool
    prediction: Prediction | None

    @property
    def name(self) -> str:
        """The layers, as one."""
        return ", ".join(self.layers)

    @property
    def says(self) -> str:
        """What to expect of it, and what the theory has to say to it, in a sentence."""
        return f"{'; '.join((*_expected(self.prediction), *_known(self)))}."

    @property
    def expected(self) -> str:
        """What to expect of it; empty where nothing is predicted."""
        return "; ".join(_expected(self.prediction))


@dataclass(frozen=True)
class Advice:
    """Candidates, the best first.

    Attributes:
        candidates: ranked by `Prediction.distance`; without data, in the order in which they run.
        samples: that predictions rest on: trained on, and in no training.
    """

    candidates: tuple[Candidate, ...]
    samples: tuple[int, int] = (0, 0)


def candidates(poset: LayerPoset) -> tuple[tuple[str, ...], ...]:
    """The layers that are not maximal, one by one, and the pairs of them that come directly after one another."""
    able = [layer for layer in poset.layers if layer not in poset.maximal]
    pairs = [pair for pair in poset.covers if set(pair) <= set(able)]
    return (*((layer,) for layer in able), *pairs)


def advise(
    model: nn.Module,
    example: Tensor,
    *,
    sets: Sequence[Sequence[str]] = (),
    fresh: nn.Module | None = None,
    trained_on: Samples | None = None,
    unseen: Samples | None = None,
    seed: int = 0,
) -> Advice:
    """Say which layers to negate, and why.

    The paper wants a perturbation that is strong (C1) and resilient (C2). Both can be seen before any recovery: as long
    as a model remembers, it is surer of samples that it was trained on than of others, and as long as it is of use it
    is right about the others. So a set of layers is ranked by its distance from no memory and all use.

    Args:
        model: as trained; left as it was. Its last layer is what the output comes from directly.
        example: an input of two samples or so, to follow the layers with.
        sets: of layers, named as in `LayerPoset.select`; none: `candidates`.
        fresh: the same network, newly drawn; with it and both kinds of samples there are predictions. It too is left
            as it was.
        trained_on: samples that the model was trained on and that stay; 50 at least, of two classes or more.
        unseen: samples that were in no training, such as those held back for validation; 50 at least.
        seed: of the halves.

    Raises:
        LayerError: a set names what is no layer.
        ValueError: there is nothing to choose from; too few samples; a model that is no better than a newly drawn one;
            or, with data, a network without one last linear layer.
    """
    data = (fresh, trained_on, unseen)
    if any(one is None for one in data) != all(one is None for one in data):
        raise ValueError("a prediction needs a fresh network, samples trained on and unseen ones: give all, or none")
    model = unwrap(model)
    poset = LayerPoset.of(model, example)
    chosen = list(dict.fromkeys(map(poset.select, sets))) or list(candidates(poset))
    if not chosen:
        raise ValueError("the network has one layer alone: there is nothing to choose from")
    predictor = None
    if fresh is not None and trained_on is not None and unseen is not None:
        predictor = _Predictor(model, unwrap(fresh), trained_on, unseen, poset, seed)
    found = []
    for layers in chosen:
        judged = conditions(model, layers, example)
        found.append(
            Candidate(layers, judged, poset.is_cauchy_by_paths(layers), predictor(layers) if predictor else None)
        )
    if predictor:
        found.sort(key=lambda one: one.prediction.distance if one.prediction else 0.0)
    counts = (len(trained_on[1]), len(unseen[1])) if predictor and trained_on and unseen else (0, 0)
    return Advice(tuple(found), counts)


@dataclass(frozen=True)
class _Signs:
    """Of memory: how often the model is surer of what it was trained on than of others. Of use: accuracy on others."""

    surer: float
    right: float


class _Predictor:
    """Predictions for one model; what all of them are held against is computed once."""

    def __init__(
        self, model: nn.Module, fresh: nn.Module, trained_on: Samples, unseen: Samples, poset: LayerPoset, seed: int
    ) -> None:
        x, y = trained_on
        if min(len(y), len(unseen[1])) < _FEWEST:
            raise ValueError(
                f"{len(y)} samples that were trained on and {len(unseen[1])} others are too few to predict from: give "
                f"{_FEWEST} of each at least"
            )
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)
        half = len(y) // 2
        model, fresh = (copy.deepcopy(network).eval() for network in (model, fresh))
        self.model, self.x, self.y = model, x, y
        self.fitted, self.held = (x[order[:half]], y[order[:half]]), (x[order[half:]], y[order[half:]])
        if len(set(self.fitted[1].tolist())) < 2:
            raise ValueError(
                "what was trained on is of one class, which a probe cannot tell from another: give samples of several"
            )
        self.unseen = unseen
        self.last = _last_layer(model, poset)
        self.predicted = _outputs(model, x).argmax(1)
        self.before, self.anew = self._signs(model), self._signs(fresh)
        self.gradients = gradient_norms(fresh, x, y)
        if self.before[0].right <= self.anew[0].right:
            raise ValueError("the model is right no more often than a newly drawn one: give it the trained weights")

    def __call__(self, layers: tuple[str, ...]) -> Prediction:
        network = negate(copy.deepcopy(self.model), layers)
        output = _outputs(network, self.x)
        gradients = gradient_norms(network, self.x, self.y)
        starved = [name for name, norm in gradients.items() if norm < VANISHING * self.gradients.get(name, 0.0)]
        signs = list(zip(self._signs(network), self.before, self.anew, strict=True))
        return Prediction(
            loss=float(F.cross_entropy(output.double(), self.y)),
            changed=float((output.argmax(1) != self.predicted).double().mean()),
            memory=_mean_share((now.surer, 0.5, before.surer) for now, before, _ in signs),
            useful=_mean_share((now.right, anew.right, before.right) for now, before, anew in signs),
            starved=tuple(starved),
        )

    def _signs(self, network: nn.Module) -> tuple[_Signs, _Signs]:
        """Of the network as it is, and of a probe of its features."""
        (held, held_classes), (unseen, classes) = self.held, self.unseen
        own, others = _outputs(network, held).double(), _outputs(network, unseen).double()
        surer = auc(confidence(own, held_classes).cpu().numpy(), confidence(others, classes).cpu().numpy())
        known = self._features(network, self.fitted[0]), _numbers(self.fitted[1])
        _, sure = probe(*known, self._features(network, held), _numbers(held_classes))
        right, sure_of_others = probe(*known, self._features(network, unseen), _numbers(classes))
        return (
            _Signs(float(surer), float((others.argmax(1) == classes).double().mean())),
            _Signs(float(auc(sure, sure_of_others)), right),
        )

    def _features(self, network: nn.Module, x: Tensor) -> NDArray[np.float32]:
        seen: list[Tensor] = []
        hook = network.get_submodule(self.last).register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].detach().flatten(1).float().cpu())
        )
        try:
            _outputs(network, x)
        finally:
            hook.remove()
        return np.asarray(torch.cat(seen).numpy())


_FEWEST = 50  # samples of a kind


def _last_layer(model: nn.Module, poset: LayerPoset) -> str:
    modules = dict(model.named_modules())  # among which a layer that is a bare parameter is not
    if len(poset.maximal) != 1 or not isinstance(modules.get(poset.maximal[0]), nn.Linear):
        raise ValueError(
            f"predictions read the input of one last linear layer, but the last are {', '.join(poset.maximal)}: "
            "ask without data"
        )
    return poset.maximal[0]


def _outputs(network: nn.Module, x: Tensor, batch_size: int = 256) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(part) for part in torch.split(x, batch_size)])


def _numbers(classes: Tensor) -> NDArray[np.int64]:
    return np.asarray(classes.cpu().numpy())


def _mean_share(signs: Iterable[tuple[float, float, float]]) -> float:
    """Where values lie between none and the whole, on average of what tells; 0 where these are too close to tell."""
    shares = [(value - none) / (whole - none) for value, none, whole in signs if whole - none > _TELLING]
    return fmean(shares) if shares else 0.0


_TELLING = 0.02  # of pairs, or of samples: with less between none and the whole a share of it is noise


def _expected(found: Prediction | None) -> Iterator[str]:
    if found is None:
        return
    if found.memory > _MUCH:
        yield f"forgets too little: {found.memory:.0%} of what tells whom it was trained on is left"
    elif found.useful < _LITTLE:
        yield f"forgets, but recovers slowly: {max(found.useful, 0):.0%} of what it can do is left"
    else:
        yield f"forgets ({max(found.memory, 0):.0%} of memory is left) and keeps {found.useful:.0%} of what it can"
    if found.starved:
        yield f"little gradient reaches {', '.join(found.starved)}"


def _known(one: Candidate) -> Iterator[str]:
    if one.conditions.covered_by_theorem:
        yield "Theorem 7 covers it"
    elif one.conditions.preserved:
        yield "layer-wise optimality is preserved by a sign symmetry, though Theorem 7 does not cover it"
    else:
        yield "no theorem says that layer-wise optimality is preserved"
    if not one.cauchy_by_paths:
        yield "paths go around it, so Theorem 6 says nothing of it"


_MUCH, _LITTLE = 0.5, 0.25  # of memory, and of use, for the words alone
