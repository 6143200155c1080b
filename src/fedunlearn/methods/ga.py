"""GA: gradient ascent on what is to be forgotten. Thudi, Deza, Chandrasekaran, Papernot. EuroS&P 2022."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.federation import Batch, ClientContext, Reply, Traffic
from fedunlearn.needs import Needs, Size
from fedunlearn.programs import Diverged, LocalTraining
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["GA", "Ascent"]


@dataclass(frozen=True)
class GA(Method):
    """Raise the loss on what is to be forgotten, for a few epochs, with the optimizer of ordinary training.

        theta <- theta + lr grad CE(D_f)

    A centralized method, on a federation of one client; on several it is FedAvg of what those who hold D_f arrive at
    (ours). A round is an epoch, and its optimizer is a fresh one, where centralized training has one throughout. The
    loss has no upper bound: once it is not finite, the last state that had a finite one is kept, and the epoch is
    over (ours; a later epoch starts from it). Weight decay and BatchNorm's statistics are ordinary training's, as in
    the code of SalUn's authors.

    Attributes:
        epochs: passes over D_f, a round each. The paper's value (supplement 14.2).
        lr: of ascent; None: the training's.
        clip: largest Euclidean norm of a step's gradient; None: the training's.
    """

    epochs: Annotated[int, Ge(1)] = 1
    lr: Annotated[float, Gt(0)] | None = None
    clip: Annotated[float, Gt(0)] | None = None
    needs = Needs(forget_data="labelled", target_online=True)

    def cost(self, size: Size) -> Traffic:
        """At most ``epochs`` rounds of those who hold D_f; where the loss overflows, it is less."""
        return size.round(size.forgotten, self._epoch(size.training)) * self.epochs

    def check(self, task: Task) -> None:
        """The learning rate must go with the optimizer."""
        self._epoch(task.training)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Epoch by epoch."""
        weights = resume.after if resume else task.weights
        ascent = Ascent(self._epoch(task.training))
        for number in range(resume.number + 1 if resume else 0, self.epochs):
            weights = aggregate(task.forgotten, weights, ascent, task.turn(number))
            yield Round(number, weights)

    def _epoch(self, training: LocalTraining) -> LocalTraining:
        clip = training.clip if self.clip is None else self.clip
        return replace(training.at(self.lr), epochs=1.0, batches=None, clip=clip)


@dataclass(frozen=True)
class Ascent:
    """Local training uphill, as far as there are numbers for it."""

    training: LocalTraining

    def __call__(self, context: ClientContext) -> Reply:
        """Answer with the model after all steps, or the last one whose loss was finite.

        What the last step arrives at has no loss: there, parameters and buffers must be finite.
        """
        finite = Weights.of(context.model)

        def negated(model: nn.Module, batch: Batch) -> Tensor:
            nonlocal finite
            here = Weights.of(model)  # before the forward pass, in which BatchNorm's statistics follow the batch
            cost = -F.cross_entropy(model(batch.x), batch.y)
            if not cost.isfinite():
                raise Diverged("the loss that is raised has overflowed")
            finite = here
            return cost

        try:
            reply = replace(self.training, loss=lambda _: negated)(context)
        except Diverged:
            return Reply(finite, context.samples())
        assert reply.weights is not None
        return reply if reply.weights.finite() else replace(reply, weights=finite)
