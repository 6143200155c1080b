"""Layer-wise optimality: whether Theorem 7 covers a negation, and how far a layer is from optimal ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from fedunlearn.layers import Selection
from fedunlearn.layers import layers as layers_of
from fedunlearn.names import bias_of
from fedunlearn.theory.graph import graph_of
from fedunlearn.theory.poset import LayerPoset
from fedunlearn.theory.reflection import Activation, Reflection, reflection
from fedunlearn.theory.symmetry import sign_symmetry
from fedunlearn.weights import Weights, unwrap

__all__ = ["Conditions", "LayerConditions", "LwoLipschitz", "conditions", "lwo_lipschitz_lower", "lwo_norm"]

_PAIRS = 3  # comparable ones that are told one by one
_ZERO = 1e-12  # of a layer's norm: what of its distance to an optimal one is rounding


@dataclass(frozen=True)
class LayerConditions:
    """What Theorem 7 asks of one negated layer, and whether its sign is free at all.

    Attributes:
        layer: its name.
        maximal: no layer comes after it.
        activations: that its sign meets before a layer takes it up, or where it is stuck.
        takers: the layers and normalisations that take its sign up.
        stuck: a sentence for each place beyond which no change of parameters is known that restores the function.
        symmetry: the other tensors, and running means, of a sign symmetry that holds on the example; empty: none known,
            or none looked for since the layer is covered.
        covered: Theorem 7's conditions on this layer hold, all branches looked at.
        preserved: its negation keeps layer-wise optimality: True, or None where that is not known. Nothing that is
            looked at could show the opposite.
        reason: a sentence.
    """

    layer: str
    maximal: bool
    activations: tuple[Activation, ...]
    takers: tuple[str, ...]
    stuck: tuple[str, ...]
    symmetry: tuple[str, ...]
    covered: bool
    preserved: bool | None
    reason: str


@dataclass(frozen=True)
class Conditions:
    """Theorem 7's conditions on a set of negated layers.

    Attributes:
        layers: one by one, in the order in which they run.
        antichain: no two are comparable.
        comparable: the pairs that are, the earlier one first.
        maximal: the layers that no layer comes after.
        covered_by_theorem: all of the theorem's conditions hold.
        preserved: the negation is LWO-Lipschitz by Definition 8, which adds up the layers' norms one by one: True, or
            None where that is not known.
        reasons: a sentence for each condition of the theorem that fails, and for what holds in spite of it.
    """

    layers: tuple[LayerConditions, ...]
    antichain: bool
    comparable: tuple[tuple[str, str], ...]
    maximal: tuple[str, ...]
    covered_by_theorem: bool
    preserved: bool | None
    reasons: tuple[str, ...]


def conditions(model: nn.Module, layers: Selection, example: Tensor | tuple[object, ...]) -> Conditions:
    """Hold a set of layers against Theorem 7 (supplement 12.4), condition by condition.

    The theorem: negation, of weight and bias, is LWO-Lipschitz if the layers are an antichain without a maximal element
    and each is activated by a sigmoid-like, odd or even function. Its proof changes "the subsequent layer"; what it
    needs is that every path from the layer leads, through activations with such a relation and through operations that
    let a sign pass, to a trainable affine layer, before any sum with something else, maximum or softmax. That is looked
    at here, on the graph.

    A layer whose sign is free for another reason (a normalisation reads it, `sign_symmetry`) keeps its optimality
    exactly, though the theorem says nothing of it. And the antichain is not needed for Definition 8 as it stands: the
    norms are taken layer by layer, each with its own optimal model. It is needed to turn all the layers of one optimal
    model at once.

    Args:
        model: the network; it is left as it is.
        layers: what is negated: `fedunlearn.layers.FIRST`, or names of layers, of their weights, globs.
        example: an input with a batch dimension, or all positional arguments.

    Raises:
        ValueError: the selection does not fit, or the network cannot be followed.
    """
    model = unwrap(model)
    graph = graph_of(model, example)
    poset = LayerPoset(graph, tuple(layers_of(model)))
    chosen = poset.select(layers)
    maximal = tuple(layer for layer in chosen if layer in poset.maximal)
    found = []
    for layer in chosen:
        followed = reflection(model, graph, layer)
        known = followed.restored and not followed.products and all(end.kind == "affine" for end in followed.ends)
        symmetry = () if known else sign_symmetry(model, layer, example) or ()
        found.append(_layer_conditions(followed, layer in maximal, symmetry))
    comparable = tuple(
        (a, b) if poset.less(a, b) else (b, a)
        for a, b in combinations(chosen, 2)
        if poset.less(a, b) or poset.less(b, a)
    )
    covered = not comparable and not maximal and all(one.covered for one in found)
    preserved = True if all(one.preserved for one in found) else None
    reasons = tuple(_reasons(found, comparable, maximal, covered, preserved))
    return Conditions(tuple(found), not comparable, comparable, maximal, covered, preserved, reasons)


def lwo_norm(theta: Tensor, optima: Sequence[Tensor], *, sign_is_free: bool = False) -> float:
    """The layer-wise optimality norm (Definition 7, equation (71)) to a finite set of optimal models.

    It is min ||theta - alpha theta*|| over alpha >= 0 and theta* in the set; the best alpha is max(0, <theta, theta*> /
    ||theta*||^2). Since the set of all optimal models is larger than any that one has, this is an upper estimate.

    The proof of Theorem 7 leaves alpha out: it picks theta* with ||theta - theta*|| close to the norm, which need not
    exist (theta = 2 theta* has the norm 0). With alpha theta* for theta* in each of its lines it is right.

    Args:
        theta: the layer's parameters, weight and bias, in one tensor of any shape.
        optima: the same layer's in optimal models, one at least.
        sign_is_free: whether -theta* belongs to an optimal model wherever theta* does (`Conditions.preserved`).

    Raises:
        ValueError: ``optima`` is empty, or shapes differ.
    """
    if not optima:
        raise ValueError("the norm is a distance to optimal models: give one at least")
    vector = theta.detach().double().flatten()
    return min(_distance(vector, optimum, sign_is_free) for optimum in optima)


@dataclass(frozen=True)
class LwoLipschitz:
    """What a sample of models says of Definition 8; both numbers can only grow with the sample.

    Attributes:
        layers: their names.
        norms: for each, equation (72) on the sample: the largest norm of a transformed model among those that were
            optimal in this layer. 0 is what an LWO-Lipschitz transformation has.
        constants: for each, the smallest A with ||sigma(theta)|| <= A ||theta|| on the sample; infinite where a model
            that was optimal in the layer no longer is; 0 where all stay, or become, optimal.
        norm: the sum of ``norms``, equation (73).
    """

    layers: tuple[str, ...]
    norms: tuple[float, ...]
    constants: tuple[float, ...]
    norm: float


def lwo_lipschitz_lower(
    transform: Callable[[Weights], Weights],
    models: Sequence[Weights],
    optima: Sequence[Weights],
    layers: Sequence[str],
    *,
    free_signs: Collection[str] = (),
) -> LwoLipschitz:
    """A lower estimate of a transformation's layer-wise optimality norm (equations (72), (73)), by sampling models.

    (72) takes the supremum over all parameters of ||sigma(theta)|| - A ||theta||, and then the best A. It is written
    with theta where it wants the parameters of a model and with N^theta where it wants the model; both are the distance
    of (71). Since A may be as large as one likes, only models with ||theta|| = 0 count in the end, so the optimal ones
    are always among those that are transformed here. From a sample nothing follows for all others, and the optima are
    not all there are: a number above 0 is no proof either, unless the set of optima is complete.

    Args:
        transform: sigma, of a whole model: `fedunlearn.negation.negate`, say.
        models: where it is tried, beside the optima.
        optima: optimal models, one at least.
        layers: names of weights; a bias beside one belongs to its layer.
        free_signs: those of ``layers`` of which -theta* is optimal wherever theta* is.

    Raises:
        ValueError: ``optima`` is empty, or a name is no parameter of the models.
    """
    if not optima:
        raise ValueError("the norm is a distance to optimal models: give one at least")
    pairs = [(before, transform(before)) for before in (*optima, *models)]
    norms, constants = [], []
    for layer in layers:
        targets = [_vector(optimum, layer) for optimum in optima]
        best = 0.0
        steepest = 0.0
        for before, after in pairs:
            old, new = _vector(before, layer), _vector(after, layer)
            n, s = (lwo_norm(theta, targets, sign_is_free=layer in free_signs) for theta in (old, new))
            n, s = (0.0 if d <= _ZERO * float(theta.norm()) else d for d, theta in ((n, old), (s, new)))
            if n == 0:
                best = max(best, s)
            if s:
                steepest = max(steepest, s / n if n else math.inf)
        norms.append(best)
        constants.append(steepest)
    return LwoLipschitz(tuple(layers), tuple(norms), tuple(constants), math.fsum(norms))


def _layer_conditions(followed: Reflection, maximal: bool, symmetry: tuple[str, ...]) -> LayerConditions:
    affine = all(end.kind == "affine" for end in followed.ends)
    covered = followed.restored and affine and not followed.products and not maximal
    preserved = True if followed.restored or symmetry else None
    return LayerConditions(
        followed.layer,
        maximal,
        followed.activations,
        tuple(end.name for end in followed.ends),
        followed.stuck,
        symmetry,
        covered,
        preserved,
        _reason(followed, symmetry, covered),
    )


def _reason(followed: Reflection, symmetry: tuple[str, ...], covered: bool) -> str:
    takers = _list([end.name for end in followed.ends])
    if covered:
        kinds = [f"{a.op} is {a.parity.kind}" for a in followed.activations if a.parity] or ["no activation is between"]
        if not takers:
            return f"{_list(kinds)}, so the network does not see the sign"
        zero = any(a.parity is not None and not a.parity.at_zero for a in followed.activations)
        return f"{_list(kinds)}, and {takers} can take the sign up" + (" (where no input is exactly 0)" if zero else "")
    if followed.restored:
        norms = [end.name for end in followed.ends if end.kind == "normalisation"]
        if norms:
            return f"{_list(norms)} reads it: with the normalisation's weight negated too, the function is the same"
        free = f"{takers} can take the sign up" if takers else "the network does not see the sign"
        return f"the theorem speaks of activations, not of {_list(followed.products)}; but {free}"
    stuck = _list(followed.stuck)
    if symmetry:
        return f"{stuck}; but with {len(symmetry)} other tensors negated too the function is the same"
    return stuck


def _reasons(
    found: Sequence[LayerConditions],
    comparable: Sequence[tuple[str, str]],
    maximal: Sequence[str],
    covered: bool,
    preserved: bool | None,
) -> Iterator[str]:
    for a, b in comparable[:_PAIRS]:
        yield f"no antichain: {a} comes before {b}"
    if len(comparable) > _PAIRS:
        yield f"no antichain: {len(comparable) - _PAIRS} more pairs are comparable"
    for layer in maximal:
        yield f"{layer} is maximal: no layer after it could take its sign up"
    for one in found:
        if not one.covered and not one.maximal:
            yield f"{one.layer}: {one.reason}"
    if preserved and not covered:
        at_once = ", though they may not all be turned at once" if comparable else ""
        yield f"layer-wise optimality is preserved all the same: each layer's sign is free{at_once}"


def _distance(theta: Tensor, optimum: Tensor, sign_is_free: bool) -> float:
    star = optimum.detach().double().flatten().to(theta.device)
    if star.shape != theta.shape:
        raise ValueError(f"a layer of {theta.numel()} parameters has no distance to one of {star.numel()}")
    square = float(star @ star)
    along = float(theta @ star)
    alpha = (abs(along) if sign_is_free else max(0.0, along)) / square if square else 0.0
    return float((theta - math.copysign(alpha, along) * star).norm())


def _vector(weights: Weights, layer: str) -> Tensor:
    names = [name for name in (layer, bias_of(layer) or layer) if name in weights.parameters]
    if layer not in names:
        raise ValueError(f"{layer} is no parameter of the models: name weights as their state dict does")
    return torch.cat([weights.parameters[name].double().flatten() for name in names])


def _list(parts: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(parts))
