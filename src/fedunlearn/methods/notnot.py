"""NotNot: two layers in a row are negated, of which the second turns back what the first has turned (ours)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from fedunlearn.layers import pairs, plan
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
    computed, where NoT's begins with the opposite, and with little of what it remembered (docs/theory.md, "Why a pair
    recovers sooner"). It is as free as NoT: no bytes, no passes, no history, neither the data to be forgotten nor who
    held it.

    Attributes:
        layers: the two, by name; None: the first of `fedunlearn.layers.pairs`. Where an earlier request has negated
            layers, None is the pair of which least has been (`other_pair`), for negating the same once more would bring
            the original's signs back.
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


def other_pair(network: nn.Module, negations: Sequence[Sequence[str]]) -> tuple[str, str]:
    """The pair to negate after earlier negations: the one whose layers were negated least often, of these the first.

    Raises:
        LayerError: there is none.
    """
    times = Counter(part.partition("[")[0] for parts in negations for part in parts)
    return min(pairs(network), key=lambda pair: sum(times[name] for name in pair))
