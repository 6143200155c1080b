"""SCRUB: away from the teacher and back to it. Kurmanji, Triantafillou, Hayes, Triantafillou. NeurIPS 2023."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.federation import Batch, ClientContext, Loss, Traffic, Work
from fedunlearn.methods.distillation import distilled
from fedunlearn.needs import Needs, Size
from fedunlearn.programs import LocalTraining, Schedule
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["SCRUB", "Away", "Decayed", "Towards"]


@dataclass(frozen=True)
class SCRUB(Method):
    """Move the model's answers away from the old ones on D_f, back to them and to the labels on D_r, in turns.

        KD(x) = T^2 KL(softmax(z_teacher / T) || softmax(z / T)),  the teacher is theta*, frozen
        epochs 1 to msteps:  max KD on D_f, one pass
        every epoch:         min gamma CE + alpha KD on D_r, one pass

    At theta* KD is at its minimum, so that the very first step has no gradient, were it not for dropout and
    BatchNorm: the student is in training mode, the teacher in evaluation mode, as in the authors' code.

    A centralized method, on a federation of one client; on several each pass is a round of FedAvg of those who hold
    such data (ours). Each pass has a fresh optimizer, where centralized training has one throughout; it is the
    training's, where the code has Adam on its small data sets. SCRUB+R, which goes back to an earlier epoch by its
    error on validation data, is not there: a method does not score itself.

    Attributes:
        epochs: a round each. The authors' values for their large data sets (code), as are the next five.
        msteps: the first so many epochs maximise too.
        alpha: weight of KD on D_r.
        gamma: weight of cross-entropy on D_r.
        temperature: T, of both softmaxes.
        decay_after: the learning rate falls once after each of these epochs, counted from 1.
        decay: to this part of itself.
        lr: None: the training's.
        forget_batch_size: samples a step on D_f; None: the training's.
        retain_batch_size: samples a step on D_r; None: the training's.
    """

    epochs: Annotated[int, Ge(1)] = 3
    msteps: Annotated[int, Ge(0)] = 2
    alpha: Annotated[float, Ge(0)] = 0.001
    gamma: Annotated[float, Ge(0)] = 0.99
    temperature: Annotated[float, Gt(0)] = 4.0
    decay_after: tuple[Annotated[int, Ge(1)], ...] = (3, 5, 9)
    decay: Annotated[float, Gt(0)] = 0.1
    lr: Annotated[float, Gt(0)] | None = None
    forget_batch_size: Annotated[int, Ge(1)] | None = None
    retain_batch_size: Annotated[int, Ge(1)] | None = None

    @property
    def needs(self) -> Needs:
        """Those who stay, and D_f where there is maximisation; its labels are never read."""
        if not self.msteps:
            return Needs(retain_online=True)
        return Needs(forget_data="inputs", target_online=True, retain_online=True)

    def cost(self, size: Size) -> Traffic:
        """A round a pass, with a teacher, which travels beside the model in all but the first."""
        spent = Traffic()
        for epoch in range(self.epochs):
            for part in (size.forgotten, size.retained) if epoch < self.msteps else (size.retained,):
                read = sum(part.values())
                down = 2 if spent.down else 1
                spent += size.sent(len(part), Work(forward=2 * read, backward=read), down=down)
        return spent

    def check(self, task: Task) -> None:
        """The learning rate must go with the optimizer."""
        task.training.at(self.lr)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Epoch by epoch."""
        weights = resume.after if resume else task.weights
        for number in range(resume.number + 1 if resume else 0, self.epochs):
            if number < self.msteps:
                away = Away(_teacher(task, weights), self.temperature)
                maximising = self._pass(task.training, away, self.forget_batch_size)
                weights = aggregate(task.forgotten, weights, maximising, task.turn(number, "maximise"))
            towards = Towards(_teacher(task, weights), self.temperature, self.alpha, self.gamma)
            minimising = self._pass(task.training, towards, self.retain_batch_size)
            weights = aggregate(task.retained, weights, minimising, task.turn(number, "minimise"))
            yield Round(number, weights)

    def _pass(self, training: LocalTraining, loss: Loss, batch_size: int | None) -> LocalTraining:
        training = training.at(self.lr)
        return replace(
            training,
            schedule=Decayed(training.schedule, self.decay, self.decay_after),
            epochs=1.0,
            batches=None,
            batch_size=batch_size or training.batch_size,
            loss=loss,
        )


def _teacher(task: Task, sent: Weights) -> Weights | None:
    """What must travel beside the model for a client to have the teacher: nothing where it is the model."""
    return None if sent is task.weights else task.weights


@dataclass(frozen=True)
class Decayed:
    """A schedule whose factor falls to a part of itself after each of some rounds, counted from 1."""

    schedule: Schedule
    decay: float
    after: tuple[int, ...]

    def __call__(self, number: int) -> float:
        """See `Schedule`."""
        return self.schedule(number) * self.decay ** sum(number >= last for last in self.after)


@dataclass(frozen=True, eq=False)
class Away:
    """-KD of a batch: minimising it maximises the divergence. Without a teacher: from the model that was sent."""

    teacher: Weights | None
    temperature: float

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        """See `Loss`."""
        teacher = context.frozen(self.teacher)
        return lambda student, batch: -distilled(teacher(batch.x), student(batch.x), self.temperature)


@dataclass(frozen=True, eq=False)
class Towards:
    """gamma CE + alpha KD of a batch. Without a teacher: to the model that was sent."""

    teacher: Weights | None
    temperature: float
    alpha: float
    gamma: float

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        """See `Loss`."""
        teacher = context.frozen(self.teacher)

        def cost(student: nn.Module, batch: Batch) -> Tensor:
            scores = student(batch.x)
            kept = distilled(teacher(batch.x), scores, self.temperature)
            return self.gamma * F.cross_entropy(scores, batch.y) + self.alpha * kept

        return cost
