"""BadT: a bad teacher for what goes. Chundawat, Tarun, Mandal, Kankanhalli. AAAI 2023."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from fedunlearn.federation import Batch, ClientContext, Reply, Traffic, Work
from fedunlearn.methods.distillation import divergence
from fedunlearn.needs import Needs, Size
from fedunlearn.programs import LocalTraining
from fedunlearn.randomness import generator, stable_seed
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["BadT", "BadTeaching", "TwoTeachers", "WithSomeRetained", "taught"]


@dataclass(frozen=True)
class BadT(Method):
    """Distil an untrained network into the model where it should forget, and the model into itself elsewhere.

        min KL(q || softmax(z / T)),  q = softmax(z_incompetent / T) on D_f,  softmax(z_competent / T) on what stays

    over D_f and a random part of D_r, in the same batches. The competent teacher is theta*, the incompetent one a
    fresh draw, the same at all clients and in all epochs; no label is read.

    A centralized method, on a federation of one client; on several it is FedAvg of what each arrives at, by the
    samples it has read (ours). A round is an epoch, and its optimizer is a fresh one, where centralized training has
    one throughout. The part of D_r is drawn anew in each epoch, where the authors' notebook draws it once, for the one
    epoch it has. Each teacher is asked about its own samples alone: their code asks both about all and throws half of
    the answers away.

    Attributes:
        epochs: passes, a round each.
        lr: None: the training's.
        retain_fraction: how much of a client's D_r is read in an epoch, in [0, 1], rounded down to whole samples.
        temperature: T, of both softmaxes. The paper's value (supplement 14.2).
        reduction: "batchmean": the divergence, mean over samples; "mean": that divided by the number of classes, as
            torch's default in the authors' code does. Adam, which they use, hardly feels it; to SGD it is a learning
            rate that much smaller.
    """

    epochs: Annotated[int, Ge(1)] = 1
    lr: Annotated[float, Gt(0)] | None = None
    retain_fraction: Annotated[float, Ge(0), Le(1)] = 0.3
    temperature: Annotated[float, Gt(0)] = 1.0
    reduction: Literal["batchmean", "mean"] = "batchmean"
    needs = Needs(forget_data="inputs", target_online=True, retain_online=True)

    def cost(self, size: Size) -> Traffic:
        """A round of everybody for each epoch; after the first, the competent teacher travels beside the model."""
        clients = size.forgotten.keys() | size.retained.keys()
        read = sum(size.forgotten.values())
        read += sum(part_of(samples, self.retain_fraction) for samples in size.retained.values())
        work = Work(forward=2 * read, backward=read)
        return size.sent(len(clients), work) + size.sent(len(clients), work, down=2) * (self.epochs - 1)

    def check(self, task: Task) -> None:
        """The learning rate must go with the optimizer."""
        task.training.at(self.lr)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Epoch by epoch."""
        weights = resume.after if resume else task.weights
        incompetent = stable_seed(task.seed, "incompetent")
        for number in range(resume.number + 1 if resume else 0, self.epochs):
            competent = task.weights if number else None  # at first it is the model that is sent anyway
            loss = TwoTeachers(competent, incompetent, self.temperature, self.reduction)
            training = replace(task.training.at(self.lr), epochs=1.0, batches=None, loss=loss)
            teaching = BadTeaching(training, self.retain_fraction)
            weights = aggregate(task.everyone, weights, teaching, task.turn(number))
            yield Round(number, weights)


@dataclass(frozen=True, eq=False)
class BadTeaching:
    """Local training on what is to be forgotten and a part of what stays, drawn at the client."""

    training: LocalTraining
    retain_fraction: float

    def __call__(self, context: ClientContext) -> Reply:
        """See `BadT`."""
        seed = int(torch.randint(2**62, (), generator=context.rng))
        return replace(self.training, of=WithSomeRetained(self.retain_fraction, seed))(context)


@dataclass(frozen=True)
class WithSomeRetained:
    """All samples that go, and a random part of those that stay."""

    fraction: float
    seed: int

    def __call__(self, forget: Tensor) -> Tensor:
        """See `Choose`."""
        stay = (~forget).nonzero().squeeze(1)
        order = torch.randperm(len(stay), generator=generator(self.seed))
        return forget.index_fill(0, stay[order[: part_of(len(stay), self.fraction)]], True)


def part_of(samples: int, fraction: float) -> int:
    """How many samples a fraction of them is, rounded down."""
    return math.floor(round(fraction * samples, 9))  # 0.3 * 10 is 3


@dataclass(frozen=True, eq=False)
class TwoTeachers:
    """Divergence from the incompetent teacher on what goes, from the competent one on what stays.

    Attributes:
        competent: its weights; None: those that were sent.
        incompetent: the seed that it is initialised by.
        temperature: of teachers and student.
        reduction: see `BadT`.
    """

    competent: Weights | None
    incompetent: int
    temperature: float
    reduction: Literal["batchmean", "mean"]

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        """See `Loss`."""
        competent, incompetent = context.frozen(self.competent), context.fresh(self.incompetent)

        def cost(student: nn.Module, batch: Batch) -> Tensor:
            learnt = student(batch.x)
            apart = divergence(taught(competent, incompetent, batch, learnt), learnt, self.temperature)
            return apart / learnt.shape[1] if self.reduction == "mean" else apart

        return cost


def taught(competent: nn.Module, incompetent: nn.Module, batch: Batch, like: Tensor) -> Tensor:
    """Scores ``(n, C)``, of the shape and type of ``like``: each sample's by its own teacher."""
    scores = torch.empty_like(like, requires_grad=False)
    for teacher, own in ((incompetent, batch.forget), (competent, ~batch.forget)):
        if own.any():  # not every layer takes an empty batch
            scores[own] = teacher(batch.x[own])
    return scores
