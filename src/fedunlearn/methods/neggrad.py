"""NegGrad+: descend on what stays, ascend on what goes. Kurmanji, Triantafillou, Hayes, Triantafillou. NeurIPS 2023."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated

from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.federation import Batch, ClientContext, Forgotten, Reply, Retained, Traffic, Work
from fedunlearn.needs import Needs, Size
from fedunlearn.programs import LocalTraining, endless
from fedunlearn.rounds import Round, aggregate
from fedunlearn.samples import batch_count
from fedunlearn.task import Method, Task

__all__ = ["NegGradPlus", "NegativeGradient"]


@dataclass(frozen=True)
class NegGradPlus(Method):
    """Train on what stays while the loss on what goes is raised, both in each step.

        min beta CE(D_r) - (1 - beta) CE(D_f)

    An epoch is a pass over D_r; beside each of its batches stands one of D_f, which is gone round as often as that
    takes, as in the code of SCRUB's authors, whose baseline this is; in a new order each time, where they repeat the
    first. Both go through the network on their own, in training mode, so that BatchNorm normalises each by itself (as
    in one version of their code; the other has evaluation mode, and an L2 pull to theta*).

    A centralized method, on a federation of one client; on several it is FedAvg of what each arrives at (ours). Who
    has nothing to forget descends on beta CE(D_r) alone; who has nothing that stays ascends on (1 - beta) CE(D_f), one
    pass over it. A round is an epoch, and its optimizer is a fresh one, where centralized training has one throughout.

    Attributes:
        beta: in (0, 1). The authors' value (code), as is the next one; up to 0.999 is in use.
        epochs: passes over D_r, a round each.
        lr: None: the training's.
    """

    beta: Annotated[float, Gt(0), Lt(1)] = 0.95
    epochs: Annotated[int, Ge(1)] = 10
    lr: Annotated[float, Gt(0)] | None = None
    name = "NegGrad+"
    needs = Needs(forget_data="labelled", target_online=True, retain_online=True)

    def cost(self, size: Size) -> Traffic:
        """A round of everybody for each epoch: D_r once, and as many batches of D_f, or D_f once."""
        batch_size = size.training.batch_size
        clients = size.forgotten.keys() | size.retained.keys()
        read = 0
        for client in clients:
            stays, goes = size.retained.get(client, 0), size.forgotten.get(client, 0)
            beside = LocalTraining(batches=batch_count(stays, batch_size), batch_size=batch_size).passes(goes)
            read += stays + beside if stays else goes
        return size.sent(len(clients), Work(read, read)) * self.epochs

    def check(self, task: Task) -> None:
        """The learning rate must go with the optimizer."""
        task.training.at(self.lr)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Epoch by epoch."""
        weights = resume.after if resume else task.weights
        opposing = NegativeGradient(replace(task.training.at(self.lr), epochs=1.0, batches=None), self.beta)
        for number in range(resume.number + 1 if resume else 0, self.epochs):
            weights = aggregate(task.everyone, weights, opposing, task.turn(number))
            yield Round(number, weights)


@dataclass(frozen=True)
class NegativeGradient:
    """Local training for an epoch of what stays, or, where nothing does, of what goes; see `NegGradPlus`."""

    training: LocalTraining
    beta: float

    def __call__(self, context: ClientContext) -> Reply:
        """Answer with the new model; its share in an average are all samples that the client has."""
        stays, goes = Retained(), Forgotten()
        alone = not context.samples(stays)
        beside = iter(()) if alone else endless(context, self.training.batch_size, goes)
        weight = self.beta - 1 if alone else self.beta

        def opposed(model: nn.Module, batch: Batch) -> Tensor:
            cost = weight * F.cross_entropy(model(batch.x), batch.y)
            for other in islice(beside, 1):
                cost = cost - (1 - self.beta) * F.cross_entropy(model(other.x), other.y)
            return cost

        reply = replace(self.training, of=goes if alone else stays, loss=lambda _: opposed)(context)
        return replace(reply, samples=context.samples())
