"""FedOSD: orthogonal steepest descent. Pan, Wang, Li, Zheng, Wang, Cheng, Gu. AAAI 2025."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from fedunlearn.federation import Batch, ClientContext, Traffic
from fedunlearn.needs import Needs, Size
from fedunlearn.paged import paged, reserve
from fedunlearn.rounds import Round
from fedunlearn.task import Method, Task
from fedunlearn.weights import Average, Weights

__all__ = ["FedOSD", "UnlearningCrossEntropy", "orthogonal", "without_component"]


@dataclass(frozen=True)
class FedOSD(Method):
    """Descend on a bounded loss of those who leave, in the direction closest to it that no client which stays feels.

        d = g_u - A^T (A A^T)^+ A g_u, rescaled to ||g_u||;  theta <- theta - lr d

    g_u: mean over those who leave of (theta - theta_k) / lr after training with -log(1 - p_y / 2); rows of A: the
    same of those who stay, with cross-entropy. The learning rate cancels, so here all is said in updates
    theta_k - theta. Then recovery takes out of each client's update what points along theta - theta*, forward or back
    (so does the authors' code; the paper argues against going back), and keeps its length; of an update that points
    nowhere else, nothing is left.

    Means are over clients, not over samples, as in the code. Buffers: those of theta while unlearning, the mean of
    those who stay in recovery (the authors' networks have none).

    Attributes:
        rounds: of unlearning. The authors' code has 100.
        lr: of local training while unlearning; None: the training's. The code has 4e-4.
        recovery: "projected": the paper's own; "plain": that of all methods.
        recovery_lr: of local training in projected recovery; None: the training's. The code has 1e-6.
    """

    rounds: Annotated[int, Ge(0)] = 100
    lr: Annotated[float, Gt(0)] | None = None
    recovery: Literal["projected", "plain"] = "projected"
    recovery_lr: Annotated[float, Gt(0)] | None = None
    needs = Needs(forget_data="labelled", target_online=True, retain_online=True, per_client_updates=True)

    @property
    def name(self) -> str:
        """With plain recovery it is another method."""
        return "FedOSD" if self.recovery == "projected" else "FedOSD, plain recovery"

    def cost(self, size: Size) -> Traffic:
        """A round of those who leave and of those who stay, at most ``rounds`` times."""
        return (size.round(size.forgotten) + size.round()) * self.rounds

    def check(self, task: Task) -> None:
        """Both learning rates must go with the optimizer."""
        task.training.at(self.lr)
        task.recovering.at(self.recovery_lr)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Round by round, until nothing is left of the direction but rounding."""
        weights = resume.after if resume else task.weights
        for number in range(resume.number + 1 if resume else 0, self.rounds):
            step = self._step(task, weights, number)
            if step is None:
                return
            weights = weights.with_vector(weights.vector() + step)
            yield Round(number, weights)

    def _step(self, task: Task, weights: Weights, number: int) -> Tensor | None:
        before = weights.vector()
        training, turn = task.training.at(self.lr), task.turn(number)
        forgetting = replace(training, loss=UnlearningCrossEntropy())
        mean = Average(like=weights)
        for _, reply in task.forgotten.run(forgetting, weights, turn):
            assert reply.weights is not None
            mean.add(reply.weights, 1.0)
        leaving = mean.result().vector() - before
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            file = Path(folder) / "updates"
            staying = paged(file, len(task.retained.clients), before)
            for row, (_, reply) in enumerate(task.retained.run(training, weights, turn)):
                assert reply.weights is not None
                reserve(file, staying, row)
                staying[row] = reply.weights.vector() - before
            # Weights are rounded to their last digit, and so are updates: what is shorter means nothing, and would be
            # drawn out to full length.
            noise = torch.finfo(before.dtype).eps * float(before.double().norm() + leaving.double().norm())
            return orthogonal(leaving, staying, noise)

    def recover(self, task: Task, weights: Weights, start: int = 0) -> Iterator[Round]:
        """Ordinary rounds whose clients do not go along what was unlearned; see the class."""
        if self.recovery == "plain":
            yield from super().recover(task, weights, start)
            return
        training = task.recovering.at(self.recovery_lr)
        for number in count(start):
            away = weights - task.weights
            mean = Average(like=weights)
            for _, reply in task.retained.run(training, weights, task.turn(number, phase="recover")):
                assert reply.weights is not None
                update = without_component((reply.weights - weights).vector(), away.vector())
                mean.add(reply.weights.with_vector(weights.vector() + update), 1.0)
            weights = mean.result()
            yield Round(number, weights)


@dataclass(frozen=True)
class UnlearningCrossEntropy:
    """-log(1 - p_y / 2), mean over the batch: 0 where the true class has no share, log 2 where it has all."""

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        """See `Loss`."""
        return lambda model, batch: unlearning_cross_entropy(model(batch.x), batch.y)


def unlearning_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Of scores ``(n, C)``."""
    truth = scores.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return -torch.log1p(-truth / 2).mean()


def orthogonal(direction: Tensor, rows: Tensor, noise: float = 0.0) -> Tensor | None:
    """What of ``direction`` (P,) is orthogonal to all ``rows`` (R, P), at its old length.

    None, if that is nothing: not longer than ``noise``. Computed in float64, the rows read a slice at a time.
    """
    direction, slices = direction.double(), [slice(at, at + _COLUMNS) for at in range(0, rows.shape[1], _COLUMNS)]
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for part in slices:
        some = rows[:, part].double()
        gram += some @ some.T
    # Of rows of length one, which span the same: beside a long update the cutoff would take a tiny one for none.
    scale = gram.diagonal().rsqrt().nan_to_num(posinf=0)
    inverse = torch.linalg.pinv(gram * torch.outer(scale, scale), rtol=_CUTOFF, hermitian=True)
    rest = direction
    for _ in range(2):  # the second time takes out what rounding has left, where rows are all but parallel
        along = torch.zeros(len(rows), dtype=torch.float64)
        for part in slices:
            along += rows[:, part].double() @ rest[part]
        shares = scale * (inverse @ (scale * along))
        rest = torch.cat([rest[part] - shares @ rows[:, part].double() for part in slices])
    length, left = float(direction.norm()), float(rest.norm())
    return rest * (length / left) if left > max(_NOTHING * length, noise) else None


def without_component(update: Tensor, away: Tensor) -> Tensor:
    """``update`` (P,) without what points along ``away`` (P,), at its old length; zeros where nothing is left."""
    update, away = update.double(), away.double()
    squared = away @ away
    rest = update - (update @ away / squared) * away if squared > 0 else update
    length, left = float(update.norm()), float(rest.norm())
    return rest * (length / left) if left > _NOTHING * length else torch.zeros_like(rest)


_COLUMNS = 1 << 20
_CUTOFF = 1e-12  # of squared singular values: the authors' 1e-6 of singular values
_NOTHING = 1e-9
