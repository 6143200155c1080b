"""How much a parameter matters to a client's samples: moments of its minibatch gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F  # noqa: N812

from fedunlearn.federation import ClientContext, ClientId, Reply, Traffic, Work
from fedunlearn.needs import Size
from fedunlearn.weights import Weights

__all__ = ["GradientMoment", "moment"]


def moment(size: Size, samples: Mapping[ClientId, int]) -> Traffic:
    """What it costs to ask clients with so many samples each for a `GradientMoment`."""
    passes = sum(samples.values())
    return size.sent(len(samples), Work(passes, passes))


@dataclass(frozen=True)
class GradientMoment:
    """The mean over minibatches of the gradient of their mean cross-entropy, each entry to the power of ``order``.

    Taken at the weights that were sent, in eval mode. A batch counts by its samples, so that a last, smaller one weighs
    no more than it should; the mean of clients' answers over samples is then that over all of their batches. Batches
    are drawn as in training (order and augmentation): the order in which data happen to lie, by class perhaps, would
    decide the second moment.

    Answers with the moments where parameters would be, and the buffers that were sent. A parameter that no gradient
    reaches has 0.

    Attributes:
        order: 1: the gradient on all samples, however they are batched; 2: the diagonal of the empirical Fisher
            information, as it is computed from minibatches, which shrinks as they grow.
        batch_size: samples a batch.
    """

    order: Literal[1, 2]
    batch_size: int

    def __call__(self, context: ClientContext) -> Reply:
        """See `Program`."""
        model, samples = context.model.eval(), context.samples()
        parameters = list(model.parameters())
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        for batch in context.batches(0, self.batch_size):
            model.zero_grad()
            F.cross_entropy(model(batch.x), batch.y).backward()  # type: ignore[no-untyped-call]
            for total, parameter in zip(sums, parameters, strict=True):
                if parameter.grad is not None:
                    total.add_(parameter.grad**self.order, alpha=len(batch.y))
        with torch.no_grad():
            for total, parameter in zip(sums, parameters, strict=True):
                parameter.copy_(total / samples)
        return Reply(Weights.of(model), samples)
