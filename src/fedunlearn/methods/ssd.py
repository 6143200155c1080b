"""SSD: selective synaptic dampening. Foster, Schoepf, Brintrup. AAAI 2024."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge

from fedunlearn.federation import Traffic
from fedunlearn.methods.gradients import GradientMoment, moment
from fedunlearn.needs import Needs, Size
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["SSD", "dampened"]


@dataclass(frozen=True)
class SSD(Method):
    """Dampen the parameters that matter more to what goes than to all data; nothing is trained.

        where F_f > alpha F_D:   theta <- theta min(lambda F_D / F_f, 1)

    F_S: the diagonal of the Fisher information on S, as the authors' code has it: the mean over minibatches of the
    squared gradient of their mean cross-entropy, in eval mode. D is all training data, what goes among them. Such an F
    depends on the size of the batches, which is the same for both, and on what meets in one: batches are drawn, and a
    last, smaller one counts by its samples, where the code takes data as they lie (for a class, sorted by class) and
    counts all batches alike.

    Where what goes is like what stays, F_f is about F_D, and the supplement's 0.5 and 0.5 halve most parameters: the
    model then lives by the recovery that follows. Where alpha > lambda the factor jumps at the selection's edge.

    A centralized method, meant for a federation of one client. With several, F is the mean of theirs over samples
    (ours). Buffers stay as they are.

    Attributes:
        alpha: how many times F_D must be exceeded, >= 0; infinity selects nothing. The supplement's value (14.2), as is
            the next; the authors have 10 and 1.
        damping: lambda, >= 0.
        batch_size: of the minibatches.
    """

    alpha: Annotated[float, Ge(0)] = 0.5
    damping: Annotated[float, Ge(0)] = 0.5
    batch_size: Annotated[int, Ge(1)] = 64
    needs = Needs(forget_data="labelled", target_online=True, retain_online=True)

    def cost(self, size: Size) -> Traffic:
        """Two looks: at all data and at what goes."""
        return moment(size, size.everyone) + moment(size, size.forgotten)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """One round."""
        if resume is None:
            fisher = GradientMoment(2, self.batch_size)
            of_all = aggregate(task.everyone, task.weights, fisher, task.turn(step="all"))
            of_forgotten = aggregate(task.forgotten, task.weights, fisher, task.turn(step="forgotten"))
            yield Round(0, dampened(task.weights, of_all, of_forgotten, self.alpha, self.damping))


def dampened(weights: Weights, of_all: Weights, of_forgotten: Weights, alpha: float, damping: float) -> Weights:
    """``weights`` with the selected parameters dampened, from the importance of each to all data and to what goes."""
    changed = {}
    for name, theta in weights.parameters.items():
        f_all, f_forgotten = of_all.parameters[name], of_forgotten.parameters[name]
        factor = (damping * f_all / f_forgotten).clamp(max=1)
        changed[name] = torch.where(f_forgotten > alpha * f_all, theta * factor, theta)
    return replace(weights, parameters=changed)
