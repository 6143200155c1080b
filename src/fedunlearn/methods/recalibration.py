"""The round that follows a change of weights, where BatchNorm's running statistics are to fit them again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fedunlearn.federation import ClientContext, Reply, Traffic, Work
from fedunlearn.needs import Size
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Task
from fedunlearn.weights import Weights

__all__ = ["Recalibrate", "recalibrated", "recalibration"]


def recalibrated(task: Task, changed: Round) -> Round:
    """The round after ``changed``: those who stay estimate all running statistics anew, parameters stay."""
    number = changed.number + 1
    statistics = Recalibrate(task.training.batch_size)
    return Round(number, aggregate(task.retained, changed.after, statistics, task.turn(number)))


def recalibration(size: Size) -> Traffic:
    """What `recalibrated` costs: a round without gradients."""
    return size.sent(len(size.retained), Work(forward=sum(size.retained.values())))


@dataclass(frozen=True)
class Recalibrate:
    """Estimate BatchNorm's running statistics anew: the mean over a client's batches, parameters untouched."""

    batch_size: int

    def __call__(self, context: ClientContext) -> Reply:
        """See `Program`."""
        model = context.model.eval()  # dropout stays off
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()
                module.momentum = None  # a plain mean over batches
                module.train()
        with torch.no_grad():
            for batch in context.batches(0, self.batch_size):
                model(batch.x)
        return Reply(Weights.of(model), context.samples())
