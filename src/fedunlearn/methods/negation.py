"""NoT: Federated Unlearning via Weight Negation. Khalil, Brunswic, Lamghari, Li, Beitollahi, Chen. CVPR 2025."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import nn

from fedunlearn.federation import Traffic
from fedunlearn.kinds import LAYER_KINDS
from fedunlearn.layers import FIRST, LayerError, Selection, layers, plan
from fedunlearn.methods.recalibration import recalibrated, recalibration
from fedunlearn.needs import Needs, Size
from fedunlearn.negation import negate
from fedunlearn.programs import Cosine
from fedunlearn.rounds import Round, fedavg
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["Annealing", "NoT", "other_layer"]


@dataclass(frozen=True)
class Annealing:
    """A recovery whose learning rate starts high and falls by half a cosine (supplement 14.2: 0.1, 1e-5, 10 epochs).

    Attributes:
        lr: at first.
        last: after ``rounds``, and from then on.
        rounds: of the fall.
    """

    lr: Annotated[float, Gt(0)] = 0.1
    last: Annotated[float, Ge(0)] = 1e-5
    rounds: Annotated[int, Ge(1)] = 10


@dataclass(frozen=True)
class NoT(Method):
    """Algorithm 1: the server multiplies one well-chosen layer by -1; those who stay fine-tune.

    Free: no bytes, no passes, no history, neither the data to be forgotten nor the client that held it.

    Attributes:
        layers: what to negate; the first layer that the input flows through, unless said otherwise.
        include_bias: whether a layer's bias is negated with its weight. The paper's listing (section 11) takes
            single parameter tensors, so the weight alone.
        batchnorm: what becomes of the running mean behind a negated layer. "negate_mean" lets it follow, so that
            evaluation agrees with training; "leave" is the paper's listing; "recalibrate" estimates all running
            statistics anew from what stays, in one round that sends models and needs those clients.
        again: what to negate where an earlier request has negated a layer already, whose sign recovery hardly turns:
            the "same" layers once more, which brings the original's sign back; an "other" layer (`other_layer`); or
            "none", which leaves the request to fine-tuning.
        annealing: the learning rate of recovery; None: the training's.
    """

    layers: Selection = FIRST
    include_bias: bool = False
    batchnorm: Literal["negate_mean", "leave", "recalibrate"] = "negate_mean"
    again: Literal["same", "other", "none"] = "other"
    annealing: Annealing | None = None

    @property
    def needs(self) -> Needs:
        """Nothing, but for "recalibrate"."""
        return Needs(retain_online=self.batchnorm == "recalibrate")

    def cost(self, size: Size) -> Traffic:
        """Nothing; "recalibrate": a round without gradients."""
        return recalibration(size) if self.batchnorm == "recalibrate" else Traffic()

    def check(self, task: Task) -> None:
        """The layers must be there, and an annealed learning rate must go with the optimizer."""
        plan(task.architecture.template, self.layers, include_bias=self.include_bias)
        if self.annealing is not None:
            task.recovering.at(self.annealing.lr)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Negate (line 9 of Algorithm 1)."""
        if task.weights.negations and self.again == "none":
            return
        if resume is None:
            resume = Round(0, self._negated(task))
            yield resume
        if self.batchnorm == "recalibrate" and resume.number == 0:
            yield recalibrated(task, resume)

    def recover(self, task: Task, weights: Weights, start: int = 0) -> Iterator[Round]:
        """Ordinary rounds, at an annealed learning rate if one is given."""
        if self.annealing is None:
            return super().recover(task, weights, start)
        cosine = Cosine(self.annealing.rounds, self.annealing.last / self.annealing.lr)
        training = replace(task.recovering.at(self.annealing.lr), schedule=cosine)
        return fedavg(task.retained, weights, training, task.seed, "recover", start)

    def _negated(self, task: Task) -> Weights:
        network, before = task.architecture.template, task.weights.negations
        return negate(
            task.weights,
            other_layer(network, before) if before and self.again == "other" else self.layers,
            like=network,
            include_bias=self.include_bias,
            batchnorm="leave" if self.batchnorm == "recalibrate" else self.batchnorm,
        )


def other_layer(network: nn.Module, negations: Sequence[Sequence[str]]) -> str:
    """The layer to negate after earlier negations: the one negated least often, of these the first.

    The last layer is never meant: no layer after it could adapt (Theorem 4 wants no maximal element).

    Raises:
        LayerError: the network has only one layer.
    """
    *others, _ = [row.name for row in layers(network) if row.kind in LAYER_KINDS]
    if not others:
        raise LayerError("the network has one layer alone, which has been negated: say again='same'")
    times = Counter(part.partition("[")[0] for parts in negations for part in parts)
    return min(others, key=times.__getitem__)
