"""NotNot: two layers in a row are negated, of which the second turns back what the first has turned (ours)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from fedunlearn.layers import pairs, plan
from fedunlearn.methods.negation import other_layer
from fedunlearn.needs import Needs
from fedunlearn.negation import negate
from fedunlearn.rounds import Round
from fedunlearn.task import Method, Task

__all__ = ["NotNot", "other_pair"]


@dataclass(frozen=True)
class NotNot(Method):
    """Algorithm 1 with a pair of layers: the server multiplies both by -1; those who stay fine-tune.

    Behind a rectifier a negated layer is heard as psi(-y) where it was heard as psi(y). Of a normal y about zero,
    relu(y) and relu(-y) have the correlation -1 / (pi - 1) = -0.47: a weaker copy with its sign turned, and a rest that
    is new. The second negation turns that copy's sign back. So recovery begins with a part of what the network
    computed, where NoT's begins with the opposite (docs/theory.md, "Why a pair recovers sooner"). It recovers sooner,
    and can forget less (docs/performance.md). It is as free as NoT: no bytes, no passes, no history, neither the data
    to be forgotten nor who held it.

    Attributes:
        layers: the two, by name; None: the first of `fedunlearn.layers.pairs`. Where an earlier request has negated
            layers, None is a pair that it left alone, or one other layer, as NoT has it (`other_pair`).
        include_bias: whether a layer's bias is negated with its weight.
    """

    layers: str | Sequence[str] | None = None
    include_bias: bool = False
    needs = Needs()

    def check(self, task: Task) -> None:
        """There must be such layers."""
        plan(task.architecture.template, self._layers(task), include_bias=self.include_bias)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Negate both; a BatchNorm's running mean follows."""
        if resume is None:
            network = task.architecture.template
            yield Round(0, negate(task.weights, self._layers(task), like=network, include_bias=self.include_bias))

    def _layers(self, task: Task) -> str | Sequence[str]:
        if self.layers is not None:
            return self.layers
        return other_pair(task.architecture.template, task.weights.negations)


def other_pair(network: nn.Module, negations: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """What to negate after earlier negations: the first pair of which no layer was negated, else one `other_layer`.

    A layer that is negated again has the original's sign back, and its pair with it what was forgotten.

    Raises:
        LayerError: the network has no pair.
    """
    negated = {part.partition("[")[0] for parts in negations for part in parts}
    untouched = (pair for pair in pairs(network) if negated.isdisjoint(pair))
    return next(untouched, None) or (other_layer(network, negations),)
