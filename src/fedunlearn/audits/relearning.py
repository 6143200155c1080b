"""Relearning: how soon a model learns again what it was to forget. What is left in it need not be learnt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

from fedunlearn.federation import Federation, Turn
from fedunlearn.programs import Constant, Evaluate, LocalTraining
from fedunlearn.rounds import fedavg
from fedunlearn.weights import Weights

__all__ = ["Relearned", "relearn"]


@dataclass(frozen=True)
class Relearned:
    """A model on its way back.

    Attributes:
        steps: of the optimizer, at which it was measured; 0 first.
        losses: mean cross-entropy on the samples that it learns.
        accuracies: on them, in [0, 1].
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]

    def steps_to(self, loss: float) -> int | None:
        """The first measured step at which the loss is so low; None: at none."""
        return next((step for step, found in zip(self.steps, self.losses, strict=True) if found <= loss), None)

    @property
    def area(self) -> float:
        """Mean of the accuracy over the steps (trapezoids), in [0, 1]: the higher, the sooner it was learnt."""
        widths = [b - a for a, b in zip(self.steps, self.steps[1:], strict=False)]
        heights = [(a + b) / 2 for a, b in zip(self.accuracies, self.accuracies[1:], strict=False)]
        return sum(w * h for w, h in zip(widths, heights, strict=True)) / sum(widths)


def relearn(
    samples: Federation, weights: Weights, training: LocalTraining, *, seed: int, steps: int = 200, every: int = 4
) -> Relearned:
    """Train a model on samples that it was to forget, as their holder can.

    Args:
        samples: whose they are; several holders train as federations do, a few steps a round.
        weights: to begin with.
        training: the ordinary local training, whose optimizer and batch size serve; the learning rate stays as at
            first.
        seed: of the order of batches.
        steps: in all.
        every: steps between two measurements.

    Raises:
        ValueError: ``steps`` is no multiple of ``every``.
        ClientError: training diverged.
    """
    if steps < 1 or every < 1 or steps % every:
        raise ValueError(f"{steps} steps cannot be measured every {every}: give a multiple")
    local = replace(training, schedule=Constant(), batches=every)
    found = [_measured(samples, weights, seed)]
    for done in islice(fedavg(samples, weights, local, seed, "train"), steps // every):
        found.append(_measured(samples, done.after, seed))
    losses, accuracies = zip(*found, strict=True)
    return Relearned(tuple(range(0, steps + 1, every)), losses, accuracies)


def _measured(samples: Federation, weights: Weights, seed: int) -> tuple[float, float]:
    replies = [reply for _, reply in samples.run(Evaluate(), weights, Turn(seed, "evaluate", 0))]
    total = sum(reply.samples for reply in replies)
    loss, accuracy = (sum(r.metrics[name] * r.samples for r in replies) / total for name in ("loss", "accuracy"))
    return loss, accuracy
