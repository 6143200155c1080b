"""MoDe: momentum degradation. Zhao, Wang, Qi, Huang, Wei, Zhang. IEEE Internet of Things Journal, 2023."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.federation import Batch, ClientContext, Traffic, Work
from fedunlearn.needs import Needs, Size
from fedunlearn.rounds import Round, aggregate, fold
from fedunlearn.task import Method, Task
from fedunlearn.weights import Average, Weights

__all__ = ["Guidance", "MoDE"]

_DEGRADED = "degraded"


@dataclass(frozen=True)
class MoDE(Method):
    """Pull the model towards one that never saw what is to be forgotten, and let that one label it.

    M_de starts from a fresh draw. In each of the first ``erasure_rounds``, those who stay train M_de for a round, and
    M <- lambda M + (1 - lambda) M_de (erasure). In each round, M is trained by all: by what stays with its labels, by
    what goes with the labels argmax M_de(x) (guidance).

    No code of the authors is known; what they leave open: floating buffers are mixed like parameters (a variance
    stays positive); hard labels, anew in each round; everybody guides at the guidance's learning rate, where the only
    port that was found has the leaving client at the degraded model's. Clients keep nothing between rounds, so M_de
    travels in each.

    Attributes:
        rounds: of guidance. The paper's values for its CNN (supplement 14.1), as are the next four.
        erasure_rounds: the first so many of them erase too.
        keep: lambda, the share of M that an erasure keeps, in [0, 1].
        lr: of guidance.
        degraded_lr: of M_de's training.
        guide_target: whether what goes takes part in guidance; else nobody needs to be asked who leaves.
    """

    rounds: Annotated[int, Ge(0)] = 3
    erasure_rounds: Annotated[int, Ge(0)] = 2
    keep: Annotated[float, Ge(0), Le(1)] = 0.4
    lr: Annotated[float, Gt(0)] | None = 0.005
    degraded_lr: Annotated[float, Gt(0)] | None = 0.1
    guide_target: bool = True

    @property
    def needs(self) -> Needs:
        """Everybody; labels of what goes are never read."""
        if not self.guide_target:
            return Needs(retain_online=True)
        return Needs(forget_data="inputs", target_online=True, retain_online=True)

    def cost(self, size: Size) -> Traffic:
        """A round of erasure sends (2 x 2 stay + 3 leave) models client-wise, a later one (2 stay + 3 leave).

        In a fraction of an epoch, how many of a class or of single samples are labelled is chance: then it is the mean.
        """
        guided = size.forgotten if self.guide_target else {}
        plain = {client: samples for client, samples in size.retained.items() if client not in guided}
        both = {client: samples + size.retained.get(client, 0) for client, samples in guided.items()}
        passes = {client: size.training.passes(samples) for client, samples in both.items()}
        labelled = Work(forward=sum(passes[client] * guided[client] // both[client] for client in both))
        guidance = size.round(plain) + size.sent(len(both), size.trained(both.values()) + labelled, down=2)
        return size.round() * min(self.erasure_rounds, self.rounds) + guidance * self.rounds

    def check(self, task: Task) -> None:
        """Both learning rates must go with the optimizer."""
        task.training.at(self.lr)
        task.training.at(self.degraded_lr)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Round by round; M_de is carried along."""
        weights = resume.after if resume else task.weights
        degraded = resume.carry[_DEGRADED] if resume else task.fresh(_DEGRADED)
        for number in range(resume.number + 1 if resume else 0, self.rounds):
            if number < self.erasure_rounds:
                training = task.training.at(self.degraded_lr)
                degraded = aggregate(task.retained, degraded, training, task.turn(number, "degrade"))
                weights = mixed(weights, degraded, self.keep)
            weights = self._guided(task, weights, degraded, number)
            yield Round(number, weights, {_DEGRADED: degraded})

    def _guided(self, task: Task, weights: Weights, degraded: Weights, number: int) -> Weights:
        turn, training = task.turn(number, "guide"), task.training.at(self.lr)
        guided = task.forgotten.clients if self.guide_target else ()
        plain = [client for client in task.retained.clients if client not in guided]
        guiding = replace(training, loss=Guidance(degraded))  # only to those who need it
        mean = Average(like=weights)
        if plain:
            fold(mean, task.retained, weights, training, turn, plain)
        if guided:
            fold(mean, task.everyone, weights, guiding, turn, guided)
        return mean.result()


def mixed(weights: Weights, degraded: Weights, keep: float) -> Weights:
    """``keep`` of the one and the rest of the other, floating buffers too."""
    mean = Average(like=weights)
    mean.add(weights, keep)
    mean.add(degraded, 1 - keep)
    return mean.result()


@dataclass(frozen=True, eq=False)
class Guidance:
    """Cross-entropy, with a model's own answers as the labels of what is to be forgotten."""

    degraded: Weights

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        """See `Loss`."""
        teacher = context.frozen(self.degraded)

        def cost(model: nn.Module, batch: Batch) -> Tensor:
            labels = batch.y
            if batch.forget.any():
                with torch.no_grad():
                    labels = labels.masked_scatter(batch.forget, teacher(batch.x[batch.forget]).argmax(1))
            return F.cross_entropy(model(batch.x), labels)

        return cost
