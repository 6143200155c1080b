"""Fine-tuning: go on training without the data, and hope."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedunlearn.needs import Needs
from fedunlearn.rounds import Round
from fedunlearn.task import Method, Task

__all__ = ["FineTune"]


@dataclass(frozen=True)
class FineTune(Method):
    """FT, "natural forgetting": no unlearning step, recovery alone.

    At convergence the loss on what stays is about zero, so there is hardly a gradient that could forget: that
    its forget accuracy stays high is the expected outcome.
    """

    name = "FT"
    needs = Needs()

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Nothing."""
        return iter(())
