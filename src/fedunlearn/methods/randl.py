"""RandL: random labels. A centralized baseline after Amnesiac unlearning (Graves, Nagisetty, Ganesh, AAAI 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Generator, Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.federation import Batch, Choose, ClientContext, Forgotten, Traffic
from fedunlearn.needs import Needs, Size
from fedunlearn.programs import LocalTraining
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["RandL", "RandomLabels", "random_labels"]


@dataclass(frozen=True)
class RandL(Method):
    """In each round, learn random labels of what goes, then the true ones of what stays (supplement 14.2).

    A centralized method, meant for a federation of one client. With several, each pass is a round of FedAvg of those
    who hold such data (ours). Optimizers are made anew for every pass, as everywhere here; centralized code lets one
    momentum run through all.

    Labels are drawn anew for every batch of every epoch, as in SalUn's code for CIFAR-10; that of Amnesiac unlearning
    draws one a sample, once.

    Attributes:
        rounds: of a pass over what goes and one over what stays, of the training's epochs each.
        exclude_true: whether a drawn label is never the true one, as in Amnesiac unlearning; else it may be by chance,
            as in SalUn's code, and labels of what goes are not read.
        mix: "sequential": one after the other; "joint": in the same batches, as in SalUn's code for CIFAR-100.
        lr: of every pass; None: the training's.
    """

    rounds: Annotated[int, Ge(0)] = 50
    exclude_true: bool = True
    mix: Literal["sequential", "joint"] = "sequential"
    lr: Annotated[float, Gt(0)] | None = None

    @property
    def needs(self) -> Needs:
        """Everybody; labels of what goes only to avoid them."""
        return Needs(forget_data="labelled" if self.exclude_true else "inputs", target_online=True, retain_online=True)

    def cost(self, size: Size) -> Traffic:
        """Two rounds a round, or one of all; each sample passes once an epoch either way."""
        a_round = size.round(size.everyone) if self.mix == "joint" else size.round(size.forgotten) + size.round()
        return a_round * self.rounds

    def check(self, task: Task) -> None:
        """The learning rate must go with the optimizer."""
        task.training.at(self.lr)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Round by round."""
        weights = resume.after if resume else task.weights
        training = task.training.at(self.lr)
        for number in range(resume.number + 1 if resume else 0, self.rounds):
            weights = self.relearnt(task, weights, training, number)
            yield Round(number, weights)

    def relearnt(self, task: Task, weights: Weights, training: LocalTraining, number: int) -> Weights:
        """The model after round ``number`` from ``weights``, by the training that is given."""
        if self.mix == "joint":
            both = replace(training, loss=RandomLabels(self.exclude_true, Forgotten()))
            return aggregate(task.everyone, weights, both, task.turn(number))
        random = replace(training, loss=RandomLabels(self.exclude_true))
        weights = aggregate(task.forgotten, weights, random, task.turn(number, "forget"))
        return aggregate(task.retained, weights, training, task.turn(number, "retain"))


@dataclass(frozen=True)
class RandomLabels:
    """Mean cross-entropy to random labels, drawn for every batch anew.

    Attributes:
        exclude_true: whether none is the true one.
        of: which samples get one, by their forget flags, the others keeping theirs; None: all.
    """

    exclude_true: bool
    of: Choose | None = None

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        """See `Loss`."""

        def cost(model: nn.Module, batch: Batch) -> Tensor:
            scores = model(batch.x)
            labels = random_labels(batch.y, scores.shape[1], self.exclude_true, context.rng)
            if self.of is not None:
                labels = torch.where(self.of(batch.forget), labels, batch.y)
            return F.cross_entropy(scores, labels)

        return cost


def random_labels(labels: Tensor, classes: int, exclude_true: bool, rng: Generator) -> Tensor:
    """A label for each of ``(n,)``: uniform over all classes, or over all but its own. Drawn on the CPU."""
    drawn = torch.randint(int(exclude_true), classes, labels.shape, generator=rng).to(labels.device)
    return (labels + drawn) % classes if exclude_true else drawn
