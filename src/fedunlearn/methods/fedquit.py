"""FedQUIT: quitting by distillation from a virtual teacher. Mora, Valerio, Bellavista, Passarella. arXiv 2408.07587."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.federation import Batch, ClientContext, Traffic, Work
from fedunlearn.needs import Needs, Size
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method, Task

__all__ = ["FedQUIT", "VirtualTeacher"]


@dataclass(frozen=True)
class FedQUIT(Method):
    """Those who leave distil, into the model, its own answers without the true class; the result replaces it.

    The teacher is theta*, frozen; of its probabilities p(x) the true class's becomes 0 and is spread evenly over the
    others ("softmax_zero" in the authors' code, one of its variants). One ordinary round of those who leave.

    Attributes:
        lr: of this round; None: the training's.
    """

    lr: Annotated[float, Gt(0)] | None = None
    needs = Needs(forget_data="labelled", target_online=True)

    def cost(self, size: Size) -> Traffic:
        """One round of those who leave, with a teacher."""
        work = size.trained(size.forgotten.values())
        return size.sent(len(size.forgotten), work + Work(forward=work.forward))

    def check(self, task: Task) -> None:
        """The learning rate must go with the optimizer."""
        task.training.at(self.lr)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """One round."""
        if resume is None:
            quitting = replace(task.training.at(self.lr), loss=VirtualTeacher())
            trained = aggregate(task.forgotten, task.weights, quitting, task.turn())
            yield Round(0, replace(trained, buffers=task.weights.buffers))  # no statistics of what goes


@dataclass(frozen=True)
class VirtualTeacher:
    """Cross-entropy against the sent model's probabilities with the true class taken out."""

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        """See `Loss`."""
        teacher = context.frozen()
        return lambda model, batch: F.cross_entropy(model(batch.x), without(teacher(batch.x).softmax(1), batch.y))


def without(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Rows ``(n, C)`` whose true class has 0, its share spread evenly over the others; each sums to 1."""
    truth = F.one_hot(labels, probabilities.shape[1]).to(probabilities.dtype)
    taken = (probabilities * truth).sum(1, keepdim=True)
    return (1 - truth) * (probabilities + taken / (probabilities.shape[1] - 1))
