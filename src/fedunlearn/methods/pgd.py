"""Projected gradient ascent at the leaving client. Halimi, Kadhe, Rawat, Baracaldo. 2022 (IBM)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.federation import ClientContext, Reply, Traffic
from fedunlearn.needs import Needs, NeedsError, Size
from fedunlearn.programs import SGD, LocalTraining, endless
from fedunlearn.rounds import Round, fold
from fedunlearn.task import Method, Task
from fedunlearn.weights import Average, Weights

__all__ = ["PGD", "ProjectedAscent"]


@dataclass(frozen=True)
class PGD(Method):
    """The leaving client raises its own loss, inside a ball around the mean of the others' last local models.

        w_ref = (theta* - sum_U p_i theta_i) / (1 - sum_U p_i)

    in the last round of training. Its steps are clipped and projected on ||w - w_ref||^2 <= squared radius, and end
    once ||w - theta_i||^2 exceeds the squared stop distance, or a gradient is not finite. Both are squared distances,
    as in the authors' code, whose iterations however take one step more than they say.

    Where several clients leave, each ascends from the same w_ref and the mean by samples is taken (ours; the paper
    has one). Buffers are those of theta*: statistics of what is to be forgotten should not get in.

    Attributes:
        lr, momentum: of ascent. The paper's values for its CNN (supplement 14.1), as are the next four.
        iterations: each of ``updates`` steps.
        updates: steps an iteration, each on the next batch of the client's, going round where they do not suffice.
        squared_stop_distance: from the client's last local model.
        clip: largest Euclidean norm of a step's gradient.
        squared_radius: of the ball; None: a third of the mean squared distance of w_ref to ten fresh draws, the
            authors' rule.
    """

    lr: Annotated[float, Gt(0)] = 0.1
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    iterations: Annotated[int, Ge(0)] = 10
    updates: Annotated[int, Ge(0)] = 5
    squared_stop_distance: Annotated[float, Gt(0)] = 3.0
    clip: Annotated[float, Gt(0)] = 2.0
    squared_radius: Annotated[float, Gt(0)] | None = None
    needs = Needs(history="last_local", forget_data="labelled", target_online=True, whole_clients=True)

    def cost(self, size: Size) -> Traffic:
        """At most: each leaving client gets w_ref and, kept at the server, its own last model; it may stop early."""
        ascent = LocalTraining(batches=self.iterations * self.updates, batch_size=size.training.batch_size)
        return size.sent(len(size.forgotten), size.trained(size.forgotten.values(), ascent), down=2)

    def check(self, task: Task) -> None:
        """Somebody must stay, or there is no mean of the others."""
        if not task.retained.clients:
            raise ValueError("PGD needs clients that stay: nobody is left, so drop the model instead")

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """One visit to each who leaves."""
        if resume is not None:
            return
        assert task.history is not None  # as `needs` demands
        kept = task.history.last
        last = {target: kept[target] for target in kept if target in task.targets}  # of those who ever took part
        start = reference(task.weights, last.values())
        radius = self.squared_radius or squared_radius(start, [task.fresh("radius", n) for n in range(10)])
        mean = Average(like=task.weights)
        for target, (own, _) in last.items():
            fold(mean, task.forgotten, start, self._ascent(task, own, radius), task.turn(), [target])
        yield Round(0, mean.result() if mean.total else start)

    def _ascent(self, task: Task, own: Weights, radius: float) -> ProjectedAscent:
        steps = self.iterations * self.updates
        sgd = SGD(self.lr, self.momentum, 0.0)
        return ProjectedAscent(own, radius, self.squared_stop_distance, sgd, steps, self.clip, task.training.batch_size)


def reference(weights: Weights, leaving: Iterable[tuple[Weights, float]]) -> Weights:
    """Mean of the last local models of those who stay, from the mean of all: models and shares of those who leave.

    Raises:
        NeedsError: they are all.
    """
    others, left = weights, 1.0
    for own, share in leaving:
        others, left = others - own * share, left - share
    if left <= _ALL:
        raise NeedsError("PGD needs clients that stay: nobody else took part in the last round of training")
    return others * (1 / left)


def squared_radius(start: Weights, fresh: Iterable[Weights]) -> float:
    """A third of the mean squared distance to newly initialised models."""
    return fmean((start - one).norm() ** 2 for one in fresh) / 3


@dataclass(frozen=True, eq=False)
class ProjectedAscent:
    """Ascend on the client's own loss within a ball around the weights that were sent."""

    own: Weights
    squared_radius: float
    squared_stop_distance: float
    optimizer: SGD
    steps: int
    clip: float
    batch_size: int

    def __call__(self, context: ClientContext) -> Reply:
        """Answer with the ascended model, and with the number of steps."""
        model, sent = context.model.train(), Weights.of(context.model)
        parameters = dict(model.named_parameters())
        start, own = ([w.parameters[name].to(context.device) for name in parameters] for w in (sent, self.own))
        optimizer = self.optimizer(parameters.values(), 1.0)
        steps = 0
        for batch in islice(endless(context, self.batch_size), self.steps):
            optimizer.zero_grad()
            (-F.cross_entropy(model(batch.x), batch.y)).backward()  # type: ignore[no-untyped-call]
            if not nn.utils.clip_grad_norm_(parameters.values(), self.clip).isfinite():
                break  # a loss that is raised without end may overflow; what was reached before it counts
            optimizer.step()
            steps += 1
            with torch.no_grad():
                _project(list(parameters.values()), start, self.squared_radius)
                if _squared_distance(parameters.values(), own) > self.squared_stop_distance:
                    break
        ascended = replace(Weights.of(model), buffers=sent.buffers)
        return Reply(ascended, context.samples(), {"steps": steps})


_ALL = 1e-9


def _project(point: Sequence[Tensor], centre: Sequence[Tensor], squared_radius: float) -> None:
    """Back on the ball, in place."""
    squared = _squared_distance(point, centre)
    if squared > squared_radius:
        for tensor, middle in zip(point, centre, strict=True):
            tensor.copy_(middle + (squared_radius / squared) ** 0.5 * (tensor - middle))


def _squared_distance(some: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    return sum(float((a - b).square().sum()) for a, b in zip(some, others, strict=True))
