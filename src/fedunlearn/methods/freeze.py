"""NR-Freeze: the direct test of layer-wise optimality. Khalil et al., CVPR 2025, supplement 13.7 and Table 8."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from fedunlearn.federation import Turn
from fedunlearn.layers import FIRST, LayerError, Part, Plan, Selection, select
from fedunlearn.needs import Needs
from fedunlearn.negation import negate
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["Freeze", "NRFreeze", "PFreeze", "RFreeze"]


@dataclass(frozen=True)
class Freeze(Method):
    """A layer that is given and stays as it is, in a network that is new otherwise and trained like Retrain's.

    A layer is optimal if, with it frozen, all others drawn anew can be trained to an optimum (Definition 2). So they
    are, BatchNorm's parameters and statistics too, on what stays, for as many rounds as the first training had. It is a
    test of the theory, no way to unlearn: it costs what Retrain costs, and a trained layer has seen what was to be
    forgotten, whatever the scores say.

    The draw of the other layers is one for all three kinds, so that these differ by the frozen layer alone, and another
    than Retrain's. Passes are counted as if nothing were frozen: the operations of the frozen tensors' gradients, which
    nobody computes, are in the bill: for the first layer 7 % of the small CNN's, 2 % of ResNet-18's.

    Attributes:
        layers: what is frozen; the first layer that the input flows through, unless said otherwise.
        include_bias: whether a layer's bias is frozen with its weight. The paper's listing (section 11) takes single
            parameter tensors, so the weight alone; a layer of its theory is both.
    """

    layers: Selection = FIRST
    include_bias: bool = False
    needs = Needs()
    from_scratch = True

    def check(self, task: Task) -> None:
        """Whole tensors are frozen, and others must be left."""
        parts = self._parts(task)
        if rows := [part for part in parts if part.rows is not None]:
            raise LayerError(f"{rows[0]} is a part of a tensor, and only whole ones can be frozen: name {rows[0].name}")
        if len(parts) == len(task.weights.parameters):
            raise LayerError("nothing would be left to train: freeze fewer layers")

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Forget everything but the layer."""
        if resume is not None:
            return
        fresh, parts = task.fresh("Freeze"), self._parts(task)
        given = self.given(task, fresh, parts)
        frozen = {part.name: given.parameters[part.name] for part in parts}
        yield Round(0, replace(fresh, parameters={**fresh.parameters, **frozen}, negations=given.negations))

    def recover(self, task: Task, weights: Weights, start: int = 0) -> Iterator[Round]:
        """Ordinary rounds, in which no bit of the layer changes."""
        names = tuple(part.name for part in self._parts(task))
        frozen = {name: weights.parameters[name] for name in names}
        training = replace(task.training, frozen=names)
        for number in count(start):
            mean = aggregate(task.retained, weights, training, Turn(task.seed, "recover", number))
            # The mean of equal float32 tensors is that tensor; that of float64 ones may be off by its last bit.
            weights = replace(mean, parameters={**mean.parameters, **frozen})
            yield Round(number, weights)

    @abstractmethod
    def given(self, task: Task, fresh: Weights, parts: Sequence[Part]) -> Weights:
        """A model that holds the layer which is frozen."""

    def _parts(self, task: Task) -> tuple[Part, ...]:
        return select(task.architecture.template, self.layers, include_bias=self.include_bias)


@dataclass(frozen=True)
class NRFreeze(Freeze):
    """Negate a trained layer and freeze it, draw all others anew and train them (supplement 13.7, equation 88).

    If negation preserves layer-wise optimality (Theorem 4), it ends where Retrain ends. That alone says little, for a
    random layer may do as well: `RFreeze` tells whether the layer matters, `PFreeze` what it is worth with its own
    sign. Where a BatchNorm reads the layer, its scale is trained anew, and the optima of both signs are the same,
    whatever the activation: for ResNet-18 the test can fail by the start of training alone.
    """

    name = "NR-Freeze"

    def given(self, task: Task, fresh: Weights, parts: Sequence[Part]) -> Weights:
        """The trained model, the layer negated."""
        return negate(task.weights, Plan(tuple(parts)))


@dataclass(frozen=True)
class PFreeze(Freeze):
    """The same with the trained layer's own sign (ours): optimal by definition, if the trained model is."""

    name = "P-Freeze"

    def given(self, task: Task, fresh: Weights, parts: Sequence[Part]) -> Weights:
        """The trained model."""
        return task.weights


@dataclass(frozen=True)
class RFreeze(Freeze):
    """The same with the layer as it was drawn (ours): what an untrained layer is good for."""

    name = "R-Freeze"

    def given(self, task: Task, fresh: Weights, parts: Sequence[Part]) -> Weights:
        """The new network itself."""
        return fresh
