"""l1-sparse: sparsity-aware fine-tuning. Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu. NeurIPS 2023."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from fedunlearn.federation import Batch, ClientContext, Loss, Traffic
from fedunlearn.needs import Needs, Size
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method, Task

__all__ = ["L1Penalty", "L1Sparse"]


@dataclass(frozen=True)
class L1Sparse(Method):
    """Fine-tune on what stays with an l1 term that fades, then without (which is recovery).

        loss + a_e ||theta||_1,   a_e = a (1 - e / epochs),   e = 0, 1, ..., epochs - 1

    over all parameters, biases and those of normalisation too, as in the authors' code. Steps along a subgradient make
    weights small, not zero. Where the strength is 0 it is FT, by ordinary rounds. What goes is never read.

    A centralized method, meant for a federation of one client. With several, each adds the term to its own loss in a
    round of FedAvg (ours). Optimizers are made anew in each round, as everywhere here; centralized code lets one
    momentum run through all.

    Attributes:
        epochs: rounds with the term, of the training's epochs each. The supplement's value (14.2), as is the next.
        strength: a, of the first round.
        lr: of these rounds; None: the training's.
    """

    epochs: Annotated[int, Ge(0)] = 2
    strength: Annotated[float, Ge(0)] = 2e-3
    lr: Annotated[float, Gt(0)] | None = None
    name = "l1-sparse"
    needs = Needs(retain_online=True)

    def cost(self, size: Size) -> Traffic:
        """Ordinary rounds: the term is no pass."""
        return size.round() * self.epochs

    def check(self, task: Task) -> None:
        """The learning rate must go with the optimizer."""
        task.training.at(self.lr)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Round by round."""
        weights = resume.after if resume else task.weights
        training = task.training.at(self.lr)
        for number in range(resume.number + 1 if resume else 0, self.epochs):
            strength = self.strength * (1 - number / self.epochs)
            sparse = replace(training, loss=L1Penalty(training.loss, strength))
            weights = aggregate(task.retained, weights, sparse, task.turn(number))
            yield Round(number, weights)


@dataclass(frozen=True)
class L1Penalty:
    """A loss, and so many times the sum of the parameters' absolute values."""

    loss: Loss
    strength: float

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        """See `Loss`."""
        cost_of = self.loss(context)

        def cost(model: nn.Module, batch: Batch) -> Tensor:
            norm = torch.stack([parameter.abs().sum() for parameter in model.parameters()]).sum()
            return cost_of(model, batch) + self.strength * norm

        return cost
