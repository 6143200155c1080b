"""Retraining from scratch: the exact reference that all others are measured against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedunlearn.needs import Needs
from fedunlearn.rounds import Round
from fedunlearn.task import Method, Task

__all__ = ["Retrain"]


@dataclass(frozen=True)
class Retrain(Method):
    """A new network, never shown what is to be forgotten, trained like the first one (paper, section 3).

    Its initial weights are drawn anew, by a seed other than the first training's: where both started from the
    same draw, Retrain would be closer to the original model than a retrained model can be expected to be.
    """

    needs = Needs()
    from_scratch = True

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Forget everything."""
        if resume is None:
            yield Round(0, task.fresh(self.name))
