"""NoT: Federated Unlearning via Weight Negation. Khalil, Brunswic, Lamghari, Li, Beitollahi, Chen. CVPR 2025."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedunlearn.federation import Traffic
from fedunlearn.layers import FIRST, Selection, plan
from fedunlearn.methods.recalibration import recalibrated, recalibration
from fedunlearn.needs import Needs, Size
from fedunlearn.negation import negate
from fedunlearn.rounds import Round
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["NoT"]


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
    """

    layers: Selection = FIRST
    include_bias: bool = False
    batchnorm: Literal["negate_mean", "leave", "recalibrate"] = "negate_mean"

    @property
    def needs(self) -> Needs:
        """Nothing, but for "recalibrate"."""
        return Needs(retain_online=self.batchnorm == "recalibrate")

    def cost(self, size: Size) -> Traffic:
        """Nothing; "recalibrate": a round without gradients."""
        return recalibration(size) if self.batchnorm == "recalibrate" else Traffic()

    def check(self, task: Task) -> None:
        """The layers must be there."""
        plan(task.architecture.template, self.layers, include_bias=self.include_bias)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Negate (line 9 of Algorithm 1)."""
        if resume is None:
            resume = Round(0, self._negated(task))
            yield resume
        if self.batchnorm == "recalibrate" and resume.number == 0:
            yield recalibrated(task, resume)

    def _negated(self, task: Task) -> Weights:
        batchnorm = "leave" if self.batchnorm == "recalibrate" else self.batchnorm
        return negate(
            task.weights,
            self.layers,
            like=task.architecture.template,
            include_bias=self.include_bias,
            batchnorm=batchnorm,
        )
