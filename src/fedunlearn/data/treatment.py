"""What makes one client's data unlike the others'."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fedunlearn.samples import Samples

__all__ = ["Turned"]


@dataclass(frozen=True)
class Turned:
    """Images turned anticlockwise, as by a scanner that is mounted sideways; their labels are right.

    Attributes:
        quarter_turns: of 90 degrees; 1, 2 or 3.
    """

    quarter_turns: int = 1

    def __post_init__(self) -> None:
        if self.quarter_turns not in (1, 2, 3):
            raise ValueError(f"images are turned by 1, 2 or 3 quarters, not {self.quarter_turns}")

    def __call__(self, samples: Samples) -> Samples:
        """The same samples, turned when they are gathered: no image is copied."""
        return _TurnedSamples(samples, self.quarter_turns)


@dataclass(frozen=True, eq=False)
class _TurnedSamples:
    samples: Samples
    quarter_turns: int

    @property
    def labels(self) -> Tensor:
        return self.samples.labels

    def inputs(self, indices: Tensor, rng: Generator | None, device: torch.device) -> Tensor:
        return torch.rot90(self.samples.inputs(indices, rng, device), self.quarter_turns, (-2, -1))
