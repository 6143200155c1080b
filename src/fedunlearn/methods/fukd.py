"""Federated Unlearning with Knowledge Distillation. Wu, Zhu, Mitra. 2022."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from fedunlearn.federation import Batch, ClientContext, Traffic, Work
from fedunlearn.methods.distillation import distilled
from fedunlearn.needs import Needs, Size
from fedunlearn.programs import SGD, Constant, LocalTraining
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["FUKD", "Distillation"]


@dataclass(frozen=True)
class FUKD(Method):
    """Subtract all that the leaving clients ever added, then distil the old model into what is left.

        theta' = theta* - sum_t p_k^t Delta_k^t;  min T^2 KL(softmax(z_teacher / T) || softmax(z_student / T))

    on unlabelled images that the server holds; nobody is asked. Only the sum of a client's contributions is read, so
    one running sum a client is kept, where the paper stores every update. The subtraction ("lazy" rule: as if the
    client had sent zeros) usually destroys the model; distillation restores it, and with it some of what the teacher
    knew of the client.

    Attributes:
        lr: of distillation. The paper's value for its CNN (supplement 14.1), as are the next three.
        momentum: of distillation.
        epochs: passes over the server's images.
        temperature: of both softmaxes; 1 at test time.
    """

    lr: Annotated[float, Gt(0)] = 1e-4
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    epochs: Annotated[int, Ge(0)] = 3
    temperature: Annotated[float, Gt(0)] = 3.0
    needs = Needs(history="sum", proxy=True, whole_clients=True)

    def cost(self, size: Size) -> Traffic:
        """Teacher and student on each image; no byte, since both are at the server."""
        passes = self.epochs * size.proxy
        return Traffic(work=Work(forward=2 * passes, backward=passes))

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Subtract (round 0); distil (round 1)."""
        assert task.history is not None  # as `needs` demands
        assert task.proxy is not None
        if resume is None:
            weights, sums = task.weights, task.history.sums
            for target in task.targets:
                if (contributed := sums.get(target)) is not None:  # or it never took part: there is nothing of it
                    weights = weights - contributed
            resume = Round(0, weights)
            yield resume
        if resume.number == 0:
            yield Round(1, aggregate(task.proxy, resume.after, self._distilling(task), task.turn(1)))

    def _distilling(self, task: Task) -> LocalTraining:
        return replace(
            task.training,
            optimizer=SGD(self.lr, self.momentum, 0.0),
            schedule=Constant(),
            epochs=self.epochs,
            batches=None,
            loss=Distillation(task.weights, self.temperature),
        )


@dataclass(frozen=True, eq=False)
class Distillation:
    """T^2 KL(teacher || student), mean over the batch, both softened by the temperature T; labels are not read."""

    teacher: Weights
    temperature: float

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        """See `Loss`."""
        teacher = context.frozen(self.teacher)
        return lambda student, batch: distilled(teacher(batch.x), student(batch.x), self.temperature)
