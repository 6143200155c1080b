"""What makes one client's data unlike the others'.

A treatment is called with the root data, the indices in them of the samples that the client holds (``held``), and a
seed of its own, and answers with the root data as this client has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fedunlearn.data.trigger import triggered
from fedunlearn.randomness import generator
from fedunlearn.samples import Samples, SteppedSamples

__all__ = ["Backdoored", "Turned"]


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

    def __call__(self, samples: Samples, held: Tensor, seed: int) -> Samples:
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


@dataclass(frozen=True)
class Backdoored:
    """Poisoned images: a trigger is stamped on them, and they are said to be of one class, which it will then open.

    As in the paper's Table 7 and section 13.5, where the client has 80 % of such samples and their label is "airplane".
    Of samples that have this label already none is poisoned. The trigger is stamped when samples are gathered, after
    resizing, cropping and flipping and before normalisation. On the images before they are cropped, as the paper could
    be read, few would keep it: a square of 224 of 256 pixels holds all of it in 2x2 of its 33x33 places.

    Attributes:
        share: of the client's samples of other classes, validation included, in (0, 1]; their number is rounded down.
        label: what they are said to be.
    """

    share: float
    label: int

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of poisoned samples must be in (0, 1], not {self.share}")

    def __call__(self, samples: Samples, held: Tensor, seed: int) -> Samples:
        """The same samples, those that are drawn of ``held`` poisoned.

        Raises:
            ValueError: there is no such class, nothing to poison, or nowhere to stamp a trigger.
        """
        others = held[samples.labels[held] != self.label]
        count = int(round(self.share * len(others), 9))  # 0.29 of 100 are 29, not 28.999...
        if count == 0:
            raise ValueError(f"{self.share:g} of {len(others)} samples to be poisoned are none: raise the share")
        drawn = others[torch.randperm(len(others), generator=generator(seed, "poisoned"))[:count]]
        return self._poisoned(samples, drawn)

    def attack(self, test: Samples) -> tuple[Samples, Tensor]:
        """Test samples all of which bear the trigger and the label, and the indices of those of other classes.

        The attack succeeds where a model agrees.
        """
        others = (test.labels != self.label).nonzero().squeeze(1)
        return self._poisoned(test, others), others

    def _poisoned(self, samples: Samples, which: Tensor) -> _PoisonedSamples:
        classes = int(samples.labels.max()) + 1
        if not 0 <= self.label < classes:
            raise ValueError(f"poisoned samples cannot be of class {self.label}: classes are 0 to {classes - 1}")
        if not isinstance(samples, SteppedSamples):
            raise ValueError(
                "a trigger is stamped before normalisation, but these samples come normalised: give the images as a "
                "tensor, in fedunlearn.samples.TensorSamples with its mean and std"
            )
        poisoned = torch.zeros(len(samples.labels), dtype=torch.bool)
        poisoned[which] = True
        found = _PoisonedSamples(samples, torch.where(poisoned, self.label, samples.labels), poisoned)
        found.inputs(which[:1], None, torch.device("cpu"))  # if it cannot be stamped, say so now
        return found


@dataclass(frozen=True, eq=False)
class _PoisonedSamples:
    samples: SteppedSamples
    labels: Tensor
    poisoned: Tensor  # (N,), bool

    def inputs(self, indices: Tensor, rng: Generator | None, device: torch.device) -> Tensor:
        images = self.samples.shown(indices, rng, device)
        stamped = self.poisoned[indices].to(device).reshape(-1, 1, 1, 1)
        return self.samples.normalised(torch.where(stamped, triggered(images), images))
